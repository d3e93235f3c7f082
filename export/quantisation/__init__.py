"""From a deploy form and images to a graph with explicit Q/DQ: operands, ranges, simulation, rewriting, assignment."""
