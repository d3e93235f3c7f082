"""Accuracy and speed of exported files on every backend, and the reports that show them."""
