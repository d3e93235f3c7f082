"""Everything there is to measure on a GPU; the entry is :mod:`__main__`."""
