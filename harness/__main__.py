import os

# The oracle's products are small: more threads of BLAS wait for each other, longest where a machine is busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from harness.cli.app import main

main()
