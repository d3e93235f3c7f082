"""Bundles: one signed folder or archive with everything that a target needs."""
