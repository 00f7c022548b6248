"""Folders: those that a command is told to write into, asked before any work, and those that end with it.

A private folder holds what frameworks keep for a run (compilation caches, temporary files). Their paths become parts
of flags and of a compiler's command lines, so it lies where no character of a user's path can break those. It is
locked while its process lives; the next run removes those that a killed one left.
"""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.errors import UsageError

PREFIX = "fusegap-private-"
PLAIN = re.compile(r"/[A-Za-z0-9._/+-]{0,63}")  # what flags, command lines and a socket's path can hold
NEEDED_BYTES = 64 * 2**20  # free, for what a few programs compile to
PAGE = 4096  # bytes written to see whether a disk is full


def check(folder: Path) -> None:
    """See whether a folder is there to be written into, or can be made; leaves no trace. Raises UsageError."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
            file.write(bytes(PAGE))
            file.flush()
    except OSError as error:
        raise UsageError(f"{folder} cannot be written into: {error.strerror or error}") from None


def _nearest(folder: Path) -> Path:
    """The folder, or of those that it is to be made in the nearest that exists. Raises OSError."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        if folder.is_symlink() or folder == folder.parent:
            raise
        return _nearest(folder.parent)
    return folder


def make(folder: Path) -> None:
    """Make a folder, if there is none. Raises UsageError where it cannot be written into."""
    check(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system that names no file, as one of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def private() -> Iterator[Path]:
    """A folder of this process alone, removed on leaving. Raises UsageError where there is room for none."""
    for base in _bases():
        _sweep(base)
    folder, lock = _locked()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _bases() -> list[Path]:
    """Where a private folder may lie, the first choice first. Raises UsageError where there is no such place."""
    places: dict[str, None] = {}
    for choice in (tempfile.gettempdir, lambda: "/tmp", lambda: "/var/tmp", lambda: "/dev/shm", os.getcwd):
        with suppress(OSError):  # none that Python would take, or the working directory is gone
            places[os.path.realpath(choice())] = None
    if fitting := [Path(place) for place in places if PLAIN.fullmatch(place) and _has_room(place)]:
        return fitting
    raise UsageError(
        f"no folder for temporary files: none of {', '.join(places)} has a plain path, {NEEDED_BYTES >> 20} MiB free "
        "and leave to run what is compiled there; set TMPDIR to one that has"
    )


def _has_room(place: str) -> bool:
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    usable = os.access(place, os.W_OK | os.X_OK) and not found.f_flag & (os.ST_NOEXEC | os.ST_RDONLY)
    return usable and found.f_bavail * found.f_frsize >= NEEDED_BYTES


def _locked() -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock. Raises UsageError where none can be made."""
    why = ""
    for base in _bases():
        try:
            while True:
                folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                if _lock(lock) and folder.exists():
                    return folder, lock
                os.close(lock)  # another run took it, new and not yet locked, for one that was left
        except OSError as error:
            why = f"{base}: {error.strerror}"
    raise UsageError(f"no folder for temporary files can be made: {why}")


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours now; on a file system without locks nobody else can have it either."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _sweep(base: Path) -> None:
    """Remove private folders of ours whose process is gone."""
    for folder in base.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another's, or just removed
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives
            continue
        finally:
            os.close(lock)
