"""The tie between a process and the process that started it."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends for any reason. Interrupts are left to the parent.

    Where multiprocessing started this process and its parent has ended already, it ends here: the kernel is asked late.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def end_first_without_memory() -> None:
    """Have the kernel end this process before others when memory runs out, where it can be told."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
