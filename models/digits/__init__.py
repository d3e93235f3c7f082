"""Small FasterViTs trained on handwritten digits, so that accuracy can be measured without a download."""
