"""Scenes of handwritten digits, with a small detector and segmenter: accuracy of both tasks without a download."""
