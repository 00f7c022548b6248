import os

# As in harness/__main__.py, before anything imports NumPy: with more threads, small products wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
