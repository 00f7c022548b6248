"""Multiply matrices as a program's operations do, in a process of its own in which oneDNN prints a line for each.

oneDNN reads from the environment, once, whether to print, and TensorFlow hides its switch. So the process that measures
asks another one. Each line of its input is an operation (JSON: kind, shapes, transposed, dtype); after what oneDNN
printed of it, the line DONE follows.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from impls.libraries import EIGEN, ONEDNN, Line, lines_of, shorten
from impls.tf.private import PLAIN

DONE = "done"
VERBOSE = {"ONEDNN_VERBOSE": "1"}
BATCHED = ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
FUSED = ("_FusedMatMul", "_MklNativeFusedMatMul")  # of a product and a bias, which Grappler joins
KINDS = ("MatMul", *BATCHED, *FUSED)


class VerboseProcess:
    """A process that multiplies what it is told to, and what its libraries printed of each product so far.

    It is started at the first product, waits idle between products, and ends with the process that started it.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.known: dict[str, Line | None] = {}
        self.proven: bool | None = None

    def library(
        self, kind: str, shapes: Sequence[tuple[int, ...]], transposed: tuple[bool, bool], dtype: str
    ) -> Line | None:
        """Return the library of a product and the text that shows it; None where nothing shows it.

        Where oneDNN prints nothing, the product is that of TensorFlow's own kernel, which is Eigen's; but only if
        oneDNN does print of a product that it multiplies.
        """
        request = _request(kind, shapes, transposed, dtype)
        if request not in self.known:
            self.known[request] = self._find(request) or self._without_a_line(kind, shapes)
        return self.known[request]

    def _find(self, request: str) -> Line | None:
        return next(iter(lines_of(self._ask(request))), None)

    def _without_a_line(self, kind: str, shapes: Sequence[tuple[int, ...]]) -> Line | None:
        """Return the library of a product of which no line was printed."""
        if self.proven is None:
            self.proven = bool(self._find(PROBE) or self._prints_where_it_multiplies())
        if not self.proven or kind not in KINDS:
            return None
        sides = " · ".join(f"[{'×'.join(map(str, shape))}]" for shape in shapes[:2])
        return EIGEN, shorten(f"no line of {ONEDNN} for {kind} {sides}")

    def _prints_where_it_multiplies(self) -> bool:
        """Return whether oneDNN prints in a process from which it was not taken out, if it was from this one."""
        if not PLAIN.items() <= os.environ.items():
            return False
        with _start({name: value for name, value in os.environ.items() if name not in PLAIN}) as other:
            output, _ = other.communicate(f"{PROBE}\n")
        return bool(lines_of(output))

    def _ask(self, request: str) -> str:
        """Return what the process printed of one product. Raises RuntimeError when it has ended."""
        self.process = self.process or _start(os.environ)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        lines: list[str] = []
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{request}\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.strip() == DONE:
                    return "".join(lines)
                lines.append(line)
        process, self.process = self.process, None
        process.communicate()
        raise RuntimeError(f"the process that shows {ONEDNN}'s products ended with status {process.returncode}")


def _request(kind: str, shapes: Sequence[tuple[int, ...]], transposed: tuple[bool, bool], dtype: str) -> str:
    return json.dumps({"kind": kind, "shapes": list(shapes[:2]), "transposed": transposed, "dtype": dtype})


def _start(variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a process that multiplies what it reads, in which oneDNN prints."""
    return subprocess.Popen(
        [sys.executable, "-m", "impls.tf.products"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**variables, **VERBOSE},
        text=True,
    )


PROBE = _request("MatMul", [(64, 64), (64, 64)], (False, False), "float32")  # large enough for oneDNN


def multiply(kind: str, shapes: list[list[int]], transposed: list[bool], dtype: str) -> None:
    """Run one operation on ones; nothing if its kind is not one of KINDS."""
    import tensorflow as tf

    a, b = (tf.ones(shape, dtype) for shape in shapes)
    if kind == "MatMul":
        tf.raw_ops.MatMul(a=a, b=b, transpose_a=transposed[0], transpose_b=transposed[1])
    elif kind in BATCHED:
        tf.raw_ops.BatchMatMulV2(x=a, y=b, adj_x=transposed[0], adj_y=transposed[1])
    elif kind in FUSED:
        bias = tf.ones(shapes[1][0 if transposed[1] else 1], dtype)

        def fused(a: Any, b: Any, bias: Any) -> Any:
            return tf.nn.bias_add(tf.matmul(a, b, transpose_a=transposed[0], transpose_b=transposed[1]), bias)

        tf.function(fused, autograph=False)(a, b, bias)
    tf.test.experimental.sync_devices()


def main() -> None:
    """Multiply until standard input ends."""
    libc = ctypes.CDLL(None)
    for line in sys.stdin:
        multiply(**json.loads(line))
        libc.fflush(None)
        print(DONE, flush=True)


if __name__ == "__main__":
    main()
