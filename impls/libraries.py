"""Which library multiplied the matrices of a call, by what it prints of itself. This module imports no framework.

MKL and oneDNN print a line for each product, once they are told to. XLA's program names what it hands to YNNPACK. A
product of which nothing is printed or named has no library here, and the evidence says so.
"""

import ctypes
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from impls.evidence import Evidence, issued

MKL, ONEDNN, YNNPACK, EIGEN, XLA = "MKL", "oneDNN", "YNNPACK", "Eigen", "XLA"  # XLA: in kernels that it generates
LINES = (  # library, and the lines that it prints of products, and of layers made of them
    (MKL, re.compile(r"^MKL_VERBOSE (?P<call>\w*(?:GEMM|GEMV|DOT)\w*\(.*?\))")),
    (ONEDNN, re.compile(r"^(?:onednn|dnnl)_verbose,.*\bexec,cpu,(?P<call>(?:gemm_api|matmul|inner_product|rnn),.*),")),
)
PLAIN = (EIGEN, XLA)  # what is left to multiply where all other libraries were taken out
SHOWN = 120  # characters of a proof
ON_GPU = "on a GPU the names of its kernels say it"
NOT_FOUND = "no means to find it is known for this framework"
Line = tuple[str, str]  # library, and the text that shows it


def lines_of(output: str) -> list[Line]:
    """Return the library and the text of each printed line that is of a product."""
    matches = ((name, pattern.match(line)) for line in output.splitlines() for name, pattern in LINES)
    return [(name, match.group("call")) for name, match in matches if match]


def add(evidence: Evidence, lines: Iterable[Line], times: int = 1) -> None:
    """Add products to the evidence, `times` for each line: the library that multiplied, and the first line as proof."""
    for library, text in lines:
        evidence.libraries[library] = evidence.libraries.get(library, 0) + times
        evidence.library_proof.setdefault(library, shorten(text))


def look(evidence: Evidence, find: Callable[[], None]) -> None:
    """Have `find` add all lines to the evidence, then say what is missing. If it fails, all other counts stay."""
    try:
        find()
    except Exception as error:  # whatever a library raises is a reason, not a crash
        evidence.missing["libraries"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        close(evidence)


def close(evidence: Evidence) -> None:
    """Say in `missing` of how many products no library is known. All lines must have been added."""
    count, known = issued(evidence.products), sum(evidence.libraries.values())
    if known < count:
        evidence.missing["libraries"] = f"nothing shows what multiplied in {count - known} of {count} products"
    if known > count:
        evidence.missing["libraries"] = f"{known} products were shown where {count} were counted"


def state(evidence: Evidence) -> None:
    """Say in `missing` that no library was looked for, in the evidence of a framework that does not say it itself."""
    if not evidence.libraries and (evidence.products or "products" in evidence.missing):
        evidence.missing.setdefault("libraries", NOT_FOUND)


def on_gpu(evidence: Evidence) -> None:
    """Leave out what is known of a CPU's libraries alone, and say so."""
    evidence.libraries, evidence.library_proof = {}, {}
    evidence.missing["libraries"] = ON_GPU


def shorten(text: str) -> str:
    """Return a line without addresses, which differ from call to call, and no longer than SHOWN."""
    text = re.sub(r"\b0x[0-9a-f]{6,}\b(?:,0x[0-9a-f]{6,}\b)*", "…", " ".join(text.split()))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def printed(call: Callable[[], object]) -> str:
    """Return what a call writes to this process's standard output and error, libraries in C included."""
    with tempfile.TemporaryFile() as file:
        with _redirected(file.fileno()):
            call()
        file.seek(0)
        return file.read().decode(errors="replace")


@contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    """Have standard output and error of the process, not of Python alone, go to an open file."""
    libc = ctypes.CDLL(None)
    libc.fflush(None)
    saved = [os.dup(stream) for stream in (1, 2)]
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    try:
        yield
    finally:
        libc.fflush(None)
        for stream, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
