"""A program's standard streams, whatever they were left as: closed, full, without a reader, unable to encode.

A descriptor that was closed is opened on the null device first of all. Left closed, the next pipe or file would take
its number, and a worker would answer into its own log.
"""

import errno
import fcntl
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from harness.errors import UsageError

IN, OUT, ERR = 0, 1, 2
UNWRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
INTERRUPTED = 130
STDOUT = "standard output"  # as an error names it


class Output(io.FileIO):
    """Standard output, whose errors name it."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


class Errors(io.FileIO):
    """Standard error. A write that fails counts as done: nobody is left to be told, and the work goes on."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def settle() -> None:
    """Make the three streams usable. Raises UsageError where nothing could be printed."""
    closed = {descriptor for descriptor in (IN, OUT, ERR) if not _is_open(descriptor)}
    for descriptor in sorted(closed):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    if sys.stdin is None:
        sys.stdin = open(IN, closefd=False)  # noqa: SIM115  a stream of the process
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(Errors(ERR, "w", closefd=False), line_buffering=True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(Output(OUT, "w", closefd=False), line_buffering=os.isatty(OUT))
    if OUT in closed or fcntl.fcntl(OUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError("standard output is closed: nothing could be printed")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _text(raw: io.FileIO, line_buffering: bool) -> io.TextIOWrapper:
    """A text stream in the locale's encoding; what that lacks is written as an escape."""
    known = sys.__stdout__ or sys.__stderr__
    encoding = known.encoding if known else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def leave(program: Callable[[], int | None]) -> NoReturn:
    """Carry a program out and leave with its exit status; what goes wrong is one sentence on stderr.

    SIGTERM and SIGHUP interrupt it as Ctrl-C does, so that what is temporary is removed.
    """
    try:
        settle()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
                signal.signal(number, signal.default_int_handler)
        status = program() or 0
    except SystemExit as left:
        status = _status(left.code)
    except UsageError as refused:
        status = tell(refused, 2)
    except KeyboardInterrupt:
        status = tell("interrupted", INTERRUPTED)
    except OSError as error:
        status = _failed(error)
    sys.exit(_flushed(status))


def _status(code: Any) -> int:
    """The exit status that `sys.exit(code)` stands for; a text goes to stderr."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def tell(sentence: object, status: int) -> int:
    """Print an error on stderr; returns the exit status."""
    print(f"error: {sentence}" if status != INTERRUPTED else sentence, file=sys.stderr)
    return status


def _failed(error: OSError) -> int:
    """Exit status 1, in words but for a reader that has left. What standard output holds yet goes to the null device:
    Python would try again at its end.
    """
    if error.filename == STDOUT or error.errno == errno.EPIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), OUT)
    return 1 if error.errno == errno.EPIPE else tell(sentence(error), 1)


def _flushed(status: int) -> int:
    """The exit status once all is printed, or cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        failed = _failed(error)
        return status or failed
    return status


def sentence(error: OSError) -> str:
    """What an error of the system says, and of which file."""
    if not error.strerror:
        return " ".join(str(error).split())
    where = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or "a file")
    return str(UsageError(f"{where}{' cannot be written' if error.errno in UNWRITTEN else ''}: {error.strerror}"))


def quoted(words: list[str]) -> str:
    """Words as a shell takes them, on one line; bytes that are no text, and controls, as $'\\x..'."""
    return " ".join(shlex.quote(word) if _is_text(word) else _escaped(word) for word in words)


def _is_text(word: str) -> bool:
    """Whether a word can be printed as it is."""
    try:
        word.encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return word.isprintable()


def _escaped(word: str) -> str:
    plain = set(range(0x20, 0x7F)) - set(b"'\\")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"
