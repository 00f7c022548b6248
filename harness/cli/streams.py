"""A program's standard streams, made usable even when closed, full, without a reader, or unable to encode.

A descriptor that was closed is first opened on the null device. Left closed, it would give its number to the next pipe
or file, and a worker would write its answers into its own log.
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
STDOUT = "standard output"  # its name in error messages


class StandardOutput(io.FileIO):
    """Standard output, whose errors name it."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            raise


class StandardError(io.FileIO):
    """Standard error. A write that fails counts as done: nobody is left to read it, and the work goes on."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def repair_streams() -> None:
    """Make the three streams usable. Raises UsageError when standard output was closed or is read-only."""
    closed = {descriptor for descriptor in (IN, OUT, ERR) if not _is_open(descriptor)}
    for descriptor in sorted(closed):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    if sys.stdin is None:
        sys.stdin = open(IN, closefd=False)  # noqa: SIM115  a stream of the process
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(StandardError(ERR, "w", closefd=False), line_buffering=True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text_stream(StandardOutput(OUT, "w", closefd=False), line_buffering=os.isatty(OUT))
    if OUT in closed or fcntl.fcntl(OUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise UsageError("standard output is closed: nothing could be printed")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _text_stream(raw: io.FileIO, line_buffering: bool) -> io.TextIOWrapper:
    """Return a text stream in the locale's encoding; characters that it lacks are written as escapes."""
    original = sys.__stdout__ or sys.__stderr__
    encoding = original.encoding if original else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def leave(program: Callable[[], int | None]) -> NoReturn:
    """Run a program and exit with its status; an error is printed as one sentence on stderr.

    SIGTERM and SIGHUP interrupt the program as Ctrl-C does, so that temporary files are removed.
    """
    try:
        repair_streams()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup has set SIGHUP to be ignored
                signal.signal(number, signal.default_int_handler)
        status = program() or 0
    except SystemExit as program_exit:
        status = _exit_status(program_exit.code)
    except UsageError as usage_error:
        status = print_error(usage_error, 2)
    except KeyboardInterrupt:
        status = print_error("interrupted", INTERRUPTED)
    except OSError as error:
        status = _handle_os_error(error)
    sys.exit(_flush_output(status))


def _exit_status(code: Any) -> int:
    """Return the exit status that `sys.exit(code)` means; a code that is text is printed on stderr."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def print_error(message: object, status: int) -> int:
    """Print an error on stderr and return the exit status."""
    print(f"error: {message}" if status != INTERRUPTED else message, file=sys.stderr)
    return status


def _handle_os_error(error: OSError) -> int:
    """Return exit status 1, and print the error unless it is a pipe whose reader has left.

    Where standard output failed, it is turned to the null device: Python would try again to flush it at exit.
    """
    if error.filename == STDOUT or error.errno == errno.EPIPE:
        os.dup2(os.open(os.devnull, os.O_WRONLY), OUT)
    return 1 if error.errno == errno.EPIPE else print_error(error_message(error), 1)


def _flush_output(status: int) -> int:
    """Flush standard output and return the exit status; a flush that fails makes a status of 0 a failure."""
    try:
        sys.stdout.flush()
    except OSError as error:
        failure_status = _handle_os_error(error)
        return status or failure_status
    return status


def error_message(error: OSError) -> str:
    """Return the message of an operating system error, with the file that it is about."""
    if not error.strerror:
        return " ".join(str(error).split())
    path = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or "a file")
    return str(UsageError(f"{path}{' cannot be written' if error.errno in UNWRITTEN else ''}: {error.strerror}"))


def quote_words(words: list[str]) -> str:
    """Quote words for a shell, on one line; bytes that are not text, and control characters, become $'\\x..'."""
    return " ".join(shlex.quote(word) if _is_printable(word) else _escape(word) for word in words)


def _is_printable(word: str) -> bool:
    """Return whether a word can be printed as it is."""
    try:
        word.encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return word.isprintable()


def _escape(word: str) -> str:
    printable = set(range(0x20, 0x7F)) - set(b"'\\")
    return "$'" + "".join(chr(byte) if byte in printable else f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"
