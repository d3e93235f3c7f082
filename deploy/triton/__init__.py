"""A bundle in, a model repository for the Triton Inference Server out."""
