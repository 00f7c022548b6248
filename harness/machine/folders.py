"""Folders: output folders, which are checked before any work, and private folders, which are removed at the end.

A private folder holds what frameworks store during a run (compilation caches, temporary files). Its path becomes part
of flags and of a compiler's command lines, so the folder is placed where no character of the path can break those. It
is locked while its process lives. The next run removes the private folders of killed runs.
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
NEEDED_BYTES = 64 * 2**20  # free space, enough for the compiled code of a few programs
PAGE = 4096  # bytes written to see whether a disk is full


def check_writable(folder: Path) -> None:
    """Raise UsageError when a folder cannot be written into, or cannot be created. Leaves no trace."""
    try:
        with tempfile.TemporaryFile(dir=_nearest_existing(folder)) as file:
            file.write(bytes(PAGE))
            file.flush()
    except OSError as error:
        raise UsageError(f"{folder} cannot be written into: {error.strerror or error}") from None


def _nearest_existing(folder: Path) -> Path:
    """Return the folder if it exists, otherwise its nearest parent that does. Raises OSError."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        if folder.is_symlink() or folder == folder.parent:
            raise
        return _nearest_existing(folder.parent)
    return folder


def make_folder(folder: Path) -> None:
    """Create a folder if it does not exist. Raises UsageError when it cannot be written into."""
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}") from None


@contextmanager
def add_path_to_errors(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file, such as one about a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def private() -> Iterator[Path]:
    """Create a folder for this process alone, and remove it on leaving. Raises UsageError when no place has room."""
    for base in _base_folders():
        _remove_stale_folders(base)
    folder, lock = _make_locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _base_folders() -> list[Path]:
    """Return the places where a private folder may lie, the first choice first. Raises UsageError when none fits."""
    places: dict[str, None] = {}
    for choice in (tempfile.gettempdir, lambda: "/tmp", lambda: "/var/tmp", lambda: "/dev/shm", os.getcwd):
        with suppress(OSError):  # Python finds no temporary folder, or the working directory was removed
            places[os.path.realpath(choice())] = None
    if bases := [Path(place) for place in places if PLAIN.fullmatch(place) and _is_suitable(place)]:
        return bases
    raise UsageError(
        f"no folder for temporary files: none of {', '.join(places)} has a plain path, {NEEDED_BYTES >> 20} MiB free "
        "and leave to run what is compiled there; set TMPDIR to one that has"
    )


def _is_suitable(place: str) -> bool:
    """Return whether a folder can be written into, allows programs to run, and has NEEDED_BYTES free."""
    try:
        filesystem = os.statvfs(place)
    except OSError:
        return False
    usable = os.access(place, os.W_OK | os.X_OK) and not filesystem.f_flag & (os.ST_NOEXEC | os.ST_RDONLY)
    return usable and filesystem.f_bavail * filesystem.f_frsize >= NEEDED_BYTES


def _make_locked_folder() -> tuple[Path, int]:
    """Create a folder; return it and the descriptor that holds its lock. Raises UsageError when none can be created."""
    reason = ""
    for base in _base_folders():
        try:
            while True:
                folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                if _try_lock(lock) and folder.exists():
                    return folder, lock
                os.close(lock)  # before it was locked, another run took the folder for one of a killed run
        except OSError as error:
            reason = f"{base}: {error.strerror}"
    raise UsageError(f"no folder for temporary files can be made: {reason}")


def _try_lock(descriptor: int) -> bool:
    """Lock a folder, and return whether this process holds the lock.

    Returns true on a file system without locks, where no other process can hold it either.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _remove_stale_folders(base: Path) -> None:
    """Remove this user's private folders whose process no longer exists."""
    for folder in base.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or just removed
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # its process lives
            continue
        finally:
            os.close(lock)
