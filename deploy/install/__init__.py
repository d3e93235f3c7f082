"""On the target: a bundle in, a built and verified deployment out."""
