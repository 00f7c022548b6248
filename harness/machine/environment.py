"""The machine, the versions and the code: what a number depends on besides the study."""

import hashlib
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import impls
from harness.errors import UsageError
from harness.machine import gpu

ROOT = Path(__file__).resolve().parents[2]
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct")
LIBRARIES = ("numpy", "scipy", "pandas", "safetensors", "pydantic", "matplotlib")


def cores() -> int:
    """Physical cores this process may use: the smallest of the machine's, its affinity's and its quota's."""
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, len(os.sched_getaffinity(0)), _quota() or physical))


def free_bytes() -> int:
    """Memory that processes can still have."""
    import psutil

    return int(psutil.virtual_memory().available)


def machine() -> dict[str, Any]:
    """Facts of the machine that a reader needs to judge a time. Memory in GiB."""
    import psutil

    return {
        "cpu": _cpu(),
        "cores": cores(),
        "logical_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "governor": text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "not readable",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    } | gpu.facts()


def _cpu() -> str:
    """The processor's name as the kernel gives it; asked without a child process, which could be killed."""
    named = re.search(r"^model name\s*: (.+)$", text("/proc/cpuinfo") or "", re.MULTILINE)
    return named.group(1) if named else platform.processor() or platform.machine()


def libraries() -> dict[str, str]:
    """Versions of the harness's own libraries; measuring needs not all of them."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def load() -> float:
    """Runnable processes in the last minute, on average."""
    return os.getloadavg()[0]


def code() -> dict[str, str]:
    """The commit, and a hash of every Python file of harness/ and of impls/, wherever on the import path that lies."""
    return {"commit": _commit(), "hash": hash_of([ROOT / "harness", *map(Path, impls.__path__)])}


def hash_of(packages: Iterable[Path]) -> str:
    """A short hash of the names and bytes of all Python files of some packages."""
    hashed = hashlib.sha256()
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            hashed.update(f"{file.relative_to(package).as_posix()} {content}\n".encode())
    return hashed.hexdigest()[:16]


def _commit() -> str:
    """What git calls the checkout. Raises UsageError when git was killed: a guess would spoil every resume."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except FileNotFoundError:
        return "no git here"
    except subprocess.TimeoutExpired:
        raise UsageError("git did not say within a minute which commit this is") from None
    if found.returncode < 0:
        raise UsageError(f"git was ended by {signal.Signals(-found.returncode).name} when asked for the commit")
    return found.stdout.strip() if found.returncode == 0 else "not a git checkout"


def _quota() -> int | None:
    """Whole cores of the control group's quota, if there is one; a part of a core counts as one."""
    share = quota()
    return None if share is None else max(1, int(share))


def quota() -> float | None:
    """Cores that this process's control groups grant: the least of its own and of those that it is in; None: no limit.

    Of both versions: of the first the hierarchy `cpu`, of the second the only one. In a container the groups that
    /proc names may lie above what is mounted, whose root then is its own.
    """
    folders = dict.fromkeys(folder for mount, path in _groups() for folder in _above(mount, path))
    shares = [share for folder in folders for share in (_second(folder), _first(folder)) if share is not None]
    return min(shares, default=None)


def _groups() -> list[tuple[str, str]]:
    """Where a hierarchy that limits processors may be mounted, and the path of this process's group in it."""
    found = [(mount, "/") for mount in CGROUPS]
    for line in (text("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "cpu" in controllers.split(","):
            found += [(mount, path) for mount in CGROUPS]
    return found


def _above(mount: str, path: str) -> list[str]:
    """The folders of a group and of all that it is in, up to where the hierarchy is mounted."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [f"{mount}{''.join(f'/{part}' for part in parts[:depth])}" for depth in range(len(parts) + 1)]


def _second(folder: str) -> float | None:
    """Cores that a group of the second version grants."""
    limit, _, period = (text(f"{folder}/cpu.max") or "max").partition(" ")
    return _cores(limit, period)


def _first(folder: str) -> float | None:
    """Cores that a group of the first version grants; -1 is no limit."""
    return _cores(text(f"{folder}/cpu.cfs_quota_us") or "-1", text(f"{folder}/cpu.cfs_period_us") or "")


def _cores(limit: str, period: str) -> float | None:
    known = limit.isdecimal() and period.isdecimal() and int(limit) > 0 and int(period) > 0
    return int(limit) / int(period) if known else None


def text(path: str | Path) -> str | None:
    """A small file's text without its end, or None where it can not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
