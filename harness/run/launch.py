"""Start a worker process, exchange requests and answers with it, and end it with everything it started."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from harness.worker.messages import Answer, Request, StageAnswer, decode_answer, encode

TAIL = 2000  # bytes of a dead worker's output that are kept with the failure
INHERITED = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "TMPDIR", "LD_LIBRARY_PATH"),
    *("VIRTUAL_ENV", "USER", "CUDA_VISIBLE_DEVICES"),
)
COMMON = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that an index names the same GPU to CUDA as to NVML
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": str(sys.flags.utf8_mode),  # so that a path in a request names the same file in both processes
    "PYTHONIOENCODING": "utf-8:backslashreplace",  # so that a framework can print any character
}
A = TypeVar("A", bound=Answer)


LIVE: set["Worker"] = set()


class WorkerDied(Exception):  # noqa: N818  its death becomes a record, not an error
    """A worker ended or fell silent. `status` is failed or timeout; `arm` is the arm it was working on, or ""."""

    def __init__(self, status: str, reason: str, arm: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.arm = status, reason, arm


class Worker:
    """A worker process in a session of its own, which answers on a private file descriptor.

    Its environment holds the parent's variables named in `INHERITED`, those of `COMMON`, and `variables`; no others.
    """

    def __init__(self, framework: str, variables: dict[str, str], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.arm = ""
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self.answers, worker_end = os.pipe()
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.worker", framework, str(worker_end)],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env=environment | COMMON | variables,
            pass_fds=(worker_end,),
            start_new_session=True,
        )
        os.close(worker_end)
        self.buffer = b""
        LIVE.add(self)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def ask(self, request: Request, stage: Callable[[StageAnswer], None] | None = None) -> Answer:
        """Send a request and return its answer. Raises WorkerDied when the worker ends or falls silent."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(encode(request))
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._death_error() from None
        while isinstance(answer := self._next_answer(), StageAnswer):
            self.arm = answer.arm
            if stage:
                stage(answer)
        self.arm = ""
        return answer

    def end(self) -> None:
        """End the process and everything it started. Safe to call twice."""
        self.kill()
        self.process.wait()
        LIVE.discard(self)
        if self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # closing would send the rest to a process that is gone
                self.process.stdin.close()
        if self.answers >= 0:
            os.close(self.answers)
            self.log.close()
            self.answers = -1

    def kill(self) -> None:
        """Kill the process group. A pending `ask` then raises WorkerDied."""
        with contextlib.suppress(ProcessLookupError):  # the whole group has ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)

    def _next_answer(self) -> Answer | StageAnswer:
        """Return the next line of the worker, parsed. Raises WorkerDied after `timeout_s` of silence, or at its end."""
        while b"\n" not in self.buffer:
            if not select.select([self.answers], [], [], self.timeout_s)[0]:
                raise WorkerDied("timeout", f"nothing was heard for {self.timeout_s:g} s", self.arm)
            chunk = os.read(self.answers, 1 << 16)
            if not chunk:
                raise self._death_error()
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return decode_answer(line)

    def _death_error(self) -> WorkerDied:
        """Return the error of a worker that ended, with how it ended and the end of its output."""
        code = self.process.wait()
        ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if code == -signal.SIGKILL:
            ending += ", which the kernel sends when memory runs out"
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - TAIL))
        tail = self.log.read().decode(errors="replace").strip()
        return WorkerDied("failed", f"the worker {ending}; its last words: {tail or 'none'}", self.arm)


def expect(answer: Answer, type_: type[A]) -> A:
    """Return an answer, which must be of a type."""
    assert isinstance(answer, type_), answer
    return answer


def end_all() -> None:
    """Kill every live worker, as an interrupted run does before it ends."""
    for worker in list(LIVE):
        worker.kill()
