"""How a worker takes memory from the kernel.

glibc gives large arrays back to the kernel when they are freed, and takes them anew, page by page, at the next call; in
some processes and not in others, since it depends on what lies above them in the heap. A block's arms share a heap, so
that would make a gap between programs that have none. Memory is therefore held by default: what was taken once is kept
(mallopt(3)). Whether it was is proven by the page faults counted with every sample.
"""

from ctypes.util import find_library

from harness.errors import UsageError

GIB, MIB = 1 << 30, 1 << 20
HELD = {
    "MALLOC_TRIM_THRESHOLD_": str(4 * GIB),  # free memory at the heap's end, above which it is given back
    "MALLOC_MMAP_THRESHOLD_": str(4 * GIB),  # an array above it is mapped by itself, and unmapped when freed
    "MALLOC_TOP_PAD_": str(256 * MIB),  # taken besides what is asked for
}
ALLOCATORS = {"tcmalloc": ("tcmalloc_minimal", "tcmalloc"), "jemalloc": ("jemalloc",)}  # setting -> libraries
SETTINGS = ("held", "default", *ALLOCATORS)


def variables(setting: str) -> dict[str, str]:
    """The environment variables of a setting. Raises UsageError where its library is not installed."""
    if setting in ALLOCATORS:
        return {"LD_PRELOAD": _library(setting)}
    return HELD if setting == "held" else {}


def _library(setting: str) -> str:
    found = next(filter(None, map(find_library, ALLOCATORS[setting])), None)
    if found is None:
        raise UsageError(f"memory {setting} was asked for, but no lib{ALLOCATORS[setting][0]} is installed")
    return found
