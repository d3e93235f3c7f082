"""From an export to a machine that serves it: bundles, targets, installation, arrival, serving."""
