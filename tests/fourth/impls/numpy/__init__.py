"""A fourth framework, added from one directory: NumPy."""
