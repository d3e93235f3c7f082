"""Accuracy and speed of exported files, and the report that shows them."""
