"""The environment of a measurement: the machine, the versions and the code that it depends on besides the study."""

import hashlib
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import impls
from harness.errors import UsageError
from harness.machine import gpu

ROOT = Path(__file__).resolve().parents[2]
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MODEL = {"family": "cpu family", "model": "model", "stepping": "stepping"}  # fields of /proc/cpuinfo
ARITHMETIC = re.compile(
    r"avx\w*|amx\w*|fma\d?|f16c|neon|asimd\w*|sve\w*|bf16|i8mm"
)  # instruction sets that matter here
UNREADABLE = "not readable"
LIBRARIES = ("numpy", "scipy", "pandas", "safetensors", "pydantic", "matplotlib")


def cores() -> int:
    """Return the number of physical cores this process may use.

    It is the smallest of the machine's cores, the process's affinity and its control groups' quota.
    """
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(physical, len(os.sched_getaffinity(0)), _whole_cpu_quota() or physical))


def free_memory_bytes() -> int:
    """Return the memory that is available to processes, in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def machine_facts() -> dict[str, Any]:
    """Return the facts of the machine that a reader needs to judge a time. Memory is in GiB."""
    import psutil

    return (
        processor_facts()
        | {
            "cores": cores(),
            "logical_cpus": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or UNREADABLE,
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        }
        | gpu.facts()
    )


def processor_facts(cpuinfo: Path = Path("/proc/cpuinfo"), caches: Path = CACHES) -> dict[str, str]:
    """Return the processor's name and model, its instruction sets for arithmetic, and the caches of its first core.

    They are read from the kernel's own files. A library such as py-cpuinfo reads the same ones, but starts child
    processes for the rest, which take seconds and may be killed. A hypervisor may hide the name; the model remains.
    """
    lines = (line.partition(":") for line in (read_text(cpuinfo) or "").partition("\n\n")[0].splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    model = [f"{name} {fields[key]}" for name, key in MODEL.items() if key in fields]
    sets = [name for name in fields.get("flags", fields.get("Features", "")).split() if ARITHMETIC.fullmatch(name)]
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_model": ", ".join([fields.get("vendor_id", ""), *model]).strip(", ") or UNREADABLE,
        "instruction_sets": " ".join(sorted(sets)) or UNREADABLE,
        "caches": ", ".join(_caches(caches)) or UNREADABLE,
    }


def _caches(folder: Path) -> Iterator[str]:
    """Yield the level and size of each cache of a core that holds data."""
    for entry in sorted(folder.glob("index*")):
        level, kind, size = (read_text(entry / name) for name in ("level", "type", "size"))
        if level and size and kind != "Instruction":
            yield f"L{level} {size}"


def library_versions() -> dict[str, str]:
    """Return the versions of the harness's own libraries, some of which measuring does not need."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def node_name() -> str:
    """Return the name of this machine among those of a cluster: Slurm's, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or platform.node() or "unnamed"


def load_average() -> float:
    """Return the average number of runnable processes in the last minute."""
    return os.getloadavg()[0]


def code_version() -> dict[str, str]:
    """Return the commit, and a hash of every Python file of harness/ and of impls/.

    Every folder of the import path that holds a part of impls/ counts.
    """
    return {"commit": _commit(), "hash": hash_of([ROOT / "harness", *map(Path, impls.__path__)])}


def hash_of(packages: Iterable[Path]) -> str:
    """Return a short hash of the names and bytes of all Python files in the packages."""
    digest = hashlib.sha256()
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(package).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def _commit() -> str:
    """Return git's name of the checkout.

    Raises UsageError when git was killed or took longer than a minute: a guess would spoil every resume.
    """
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except FileNotFoundError:
        return "no git here"
    except subprocess.TimeoutExpired:
        raise UsageError("git did not say within a minute which commit this is") from None
    if process.returncode < 0:
        raise UsageError(f"git was ended by {signal.Signals(-process.returncode).name} when asked for the commit")
    return process.stdout.strip() if process.returncode == 0 else "not a git checkout"


def _whole_cpu_quota() -> int | None:
    """Return the whole cores of the control groups' quota, at least one; None without a quota."""
    share = cpu_quota()
    return None if share is None else max(1, int(share))


def cpu_quota() -> float | None:
    """Return the cores that this process's control groups grant, or None for no limit.

    It is the smallest quota of the process's own groups and the groups that contain them. Both versions of control
    groups are read: of version 1 the hierarchy `cpu`, of version 2 the only hierarchy. In a container, the groups that
    /proc names may lie above the mounted hierarchy, whose root is then the container's own group.
    """
    folders = dict.fromkeys(folder for mount, path in _control_groups() for folder in _group_folders(mount, path))
    shares = [
        share
        for folder in folders
        for share in (_cgroup_v2_quota(folder), _cgroup_v1_quota(folder))
        if share is not None
    ]
    return min(shares, default=None)


def _control_groups() -> list[tuple[str, str]]:
    """Return (mount, path): where a hierarchy that limits processors may be mounted, and this process's group in it."""
    groups = [(mount, "/") for mount in CGROUPS]
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" or "cpu" in controllers.split(","):
            groups += [(mount, path) for mount in CGROUPS]
    return groups


def _group_folders(mount: str, path: str) -> list[str]:
    """Return the folders of a group and of all groups that contain it, up to where the hierarchy is mounted."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [f"{mount}{''.join(f'/{part}' for part in parts[:depth])}" for depth in range(len(parts) + 1)]


def _cgroup_v2_quota(folder: str) -> float | None:
    """Return the cores that a group of version 2 grants, or None for no limit."""
    limit, _, period = (read_text(f"{folder}/cpu.max") or "max").partition(" ")
    return _parse_quota(limit, period)


def _cgroup_v1_quota(folder: str) -> float | None:
    """Return the cores that a group of version 1 grants, or None for no limit, which the kernel writes as -1."""
    return _parse_quota(read_text(f"{folder}/cpu.cfs_quota_us") or "-1", read_text(f"{folder}/cpu.cfs_period_us") or "")


def _parse_quota(limit: str, period: str) -> float | None:
    """Return a quota's cores, or None where the two texts are not positive whole numbers."""
    is_limited = limit.isdecimal() and period.isdecimal() and int(limit) > 0 and int(period) > 0
    return int(limit) / int(period) if is_limited else None


def read_text(path: str | Path) -> str | None:
    """Return a small file's text, stripped of white space at both ends, or None when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
