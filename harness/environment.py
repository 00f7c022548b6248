"""The machine, the versions and the code: what a number depends on besides the study."""

import hashlib
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from harness import gpu
from harness.refused import Refused

ROOT = Path(__file__).resolve().parent.parent
MEASURING = (
    "study",
    "weights",
    "plan",
    "launch",
    "worker",
    "measure",
    "verify",
    "jobs",
    "course",
    "gpu",
    "training",
    "train",
)  # modules a number depends on
LIBRARIES = ("numpy", "scipy", "pandas", "safetensors", "pydantic", "matplotlib")


def cores() -> int:
    """Physical cores this process may use: the smallest of the machine's, its affinity's and its quota's."""
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, len(os.sched_getaffinity(0)), _quota() or physical))


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
    """The commit, and a hash of every file that measuring depends on."""
    files = sorted(Path(ROOT / "impls").rglob("*.py")) + [ROOT / "harness" / f"{name}.py" for name in MEASURING]
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.read_bytes())
    return {"commit": _commit(), "hash": hashed.hexdigest()[:16]}


def _commit() -> str:
    """What git calls the checkout. Raises Refused when git was killed: a guess would spoil every resume."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return "no git here"
    except subprocess.TimeoutExpired:
        raise Refused("git did not say within a minute which commit this is") from None
    if found.returncode < 0:
        raise Refused(f"git was ended by {signal.Signals(-found.returncode).name} when asked for the commit")
    return found.stdout.strip() if found.returncode == 0 else "not a git checkout"


def _quota() -> int | None:
    """Whole cores of the control group's quota, if there is one."""
    quota, _, period = (text("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    return None if quota == "max" else max(1, int(quota) // int(period))


def text(path: str | Path) -> str | None:
    """A small file's text without its end, or None where it can not be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
