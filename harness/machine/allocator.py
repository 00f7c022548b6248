"""How a worker takes memory from the kernel.

glibc returns large arrays to the kernel when they are freed, and takes them again, page by page, at the next call. It
does so in some processes and not in others, because it depends on what lies above the arrays in the heap. A block's
arms share a heap, so this would make a gap between programs that have none. By default memory is therefore held: what
was taken once is kept (mallopt(3)). The page faults counted with every sample show whether it was.
"""

from ctypes.util import find_library

from harness.errors import UsageError

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
HELD = {
    "MALLOC_TRIM_THRESHOLD_": str(4 * GIB),  # free memory at the heap's end, above which it is given back
    "MALLOC_MMAP_THRESHOLD_": str(4 * GIB),  # an array above it is mapped by itself, and unmapped when freed
    "MALLOC_TOP_PAD_": str(256 * MIB),  # taken in addition to each request
}
GIVEN_BACK = {  # of workers that measure peak memory: what a call has freed is the kernel's again
    "MALLOC_TRIM_THRESHOLD_": str(64 * KIB),
    "MALLOC_MMAP_THRESHOLD_": str(64 * KIB),
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",  # threads have heaps of their own otherwise, whose ends are not given back
}
ALLOCATORS = {"tcmalloc": ("tcmalloc_minimal", "tcmalloc"), "jemalloc": ("jemalloc",)}  # setting -> libraries
SETTINGS = ("held", "default", *ALLOCATORS)


def variables(setting: str) -> dict[str, str]:
    """Return the environment variables of a setting. Raises UsageError when its library is not installed."""
    if setting in ALLOCATORS:
        return {"LD_PRELOAD": _library(setting)}
    return HELD if setting == "held" else {}


def _library(setting: str) -> str:
    """Return the name of a setting's library. Raises UsageError when it is not installed."""
    library = next(filter(None, map(find_library, ALLOCATORS[setting])), None)
    if library is None:
        raise UsageError(f"memory {setting} was asked for, but no lib{ALLOCATORS[setting][0]} is installed")
    return library
