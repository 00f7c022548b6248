import os

# The oracle's products are small: with more BLAS threads they wait for each other, longest on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from harness.cli.app import main

main()
