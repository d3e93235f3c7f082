"""A matrix of exports, backends and batches, measured cell by cell, each in a process of its own."""
