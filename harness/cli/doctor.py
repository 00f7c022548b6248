"""The command `doctor`: what on this machine will hurt a measurement, what to do about it, and the noise to expect."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from harness.analysis.stats import half_width
from harness.analysis.tables import Tables
from harness.machine import environment, gpu
from harness.run import session
from harness.run.progress import console
from harness.study.parts import TWIN
from harness.study.study import Study, load_study

CPU = Path("/sys/devices/system/cpu")
BUSY = 0.1  # of a core: another process that uses more disturbs a measurement
LOOK_S = 1.0  # how long processes are watched
COMPILER = "g++"  # what Inductor calls where CXX is not set; as in impls/torch, which only a worker imports
PIP_S = 120
MEMORY_GIB = 4.0  # of free memory, which compiling takes beside a worker
CONTROL: dict[str, Any] = {  # about 20 seconds
    "threads": [1],
    "recurrences": ["unrolled"],
    "projections": ["batched"],
    "passes": ["forward"],
    "workloads": ["book"],
    "processes": 4,
    "block_s": 2.0,
}
PAIRS = (("tensorflow", "tf-keras"), ("jax", "jaxlib"))  # whose minor versions must agree


@dataclass(frozen=True)
class Finding:
    """The result of one check. `advice` is what to do about it; it is empty when nothing is wrong."""

    what: str
    found: str
    advice: str = ""


def check_governor(folder: Path = CPU) -> Finding:
    """Check the frequency governor of the first core."""
    value = environment.read_text(folder / "cpu0/cpufreq/scaling_governor")
    if value is None:
        return Finding("governor", "not readable (a virtual machine, mostly)")
    advice = "" if value == "performance" else "set it: cpupower frequency-set -g performance"
    return Finding("governor", value, advice)


def check_turbo(folder: Path = CPU) -> Finding:
    """Check whether the processor's turbo is off."""
    off = environment.read_text(folder / "intel_pstate/no_turbo")
    on = environment.read_text(folder / "cpufreq/boost")
    if off is None and on is None:
        return Finding("turbo", "not readable")
    if off == "1" or on == "0":
        return Finding("turbo", "off")
    return Finding("turbo", "on", "times then depend on heat; switch it off for absolute times (ratios stand it)")


def check_other_processes(watch_s: float = LOOK_S) -> Finding:
    """Check for other processes that use the processor, watched for `watch_s` seconds."""
    own_pids = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    processes = [p for p in psutil.process_iter(["name"]) if p.pid not in own_pids]
    for process in processes:
        _core_share(process)
    time.sleep(watch_s)
    busy = sorted(((_core_share(p), p.info["name"] or "?", p.pid) for p in processes), reverse=True)
    busy = [usage for usage in busy if usage[0] > BUSY]
    if not busy:
        return Finding("other processes", f"none uses more than {BUSY:.0%} of a core")
    names = ", ".join(f"{name} ({pid}): {share:.0%}" for share, name, pid in busy[:3])
    return Finding("other processes", names, "end them while measuring: a busy second core turned 0.6 ms into 16 ms")


def _core_share(process: psutil.Process) -> float:
    """Return the share of one core that a process has used since the last call; 0 when it cannot be read."""
    try:
        return process.cpu_percent() / 100
    except psutil.Error:  # it has ended, or is not ours to see
        return 0.0


def check_steal(watch_s: float = LOOK_S) -> Finding:
    """Check how much time a hypervisor gave to other machines, watched for `watch_s` seconds."""
    share = getattr(psutil.cpu_times_percent(watch_s), "steal", 0.0)
    advice = "" if share <= 1 else "another machine shares these cores: use more processes, or another machine"
    return Finding("stolen by the hypervisor", f"{share:.1f}%", advice)


def check_cores(cores: int, logical: int) -> Finding:
    """Check that the usable cores leave a logical processor for anything else."""
    counts = f"{cores} cores can be used, {logical} logical processors"
    if cores == logical:
        return Finding("cores", counts, "'all' threads leave no core for anything else: keep the machine idle")
    return Finding("cores", counts)


def check_quota(cores: float | None) -> Finding:
    """Check how many cores the control groups grant; None is no limit."""
    if cores is None:
        return Finding("quota", "none")
    advice = "" if cores >= 1 else "less than a core: no block can prove its thread, and all are refused; ask for more"
    return Finding("quota", f"{cores:g} cores", advice)


def check_memory(free_gib: float) -> Finding:
    """Check that enough memory is free for compiling."""
    advice = "" if free_gib >= MEMORY_GIB else f"below {MEMORY_GIB:g} GiB compiling may be killed: free some"
    return Finding("free memory", f"{free_gib:.1f} GiB", advice)


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """Check for the C++ compiler that torch's Inductor calls in a worker, which does not see CXX."""
    description = which(COMPILER) or f"no {COMPILER}"
    advice = "" if which(COMPILER) else f"torch's inductor needs a C++ compiler: install {COMPILER}"
    if (cxx := os.environ.get("CXX")) and which(cxx) != which(COMPILER):
        description += f" (CXX, {cxx}, is not passed on to workers)"
    return Finding("C++ compiler", description, advice)


def check_versions(version: Callable[[str], str] = importlib.metadata.version) -> Finding:
    """Check the packages that are known to need each other's minor version."""
    clashes = []
    for pair in PAIRS:
        try:
            first, second = (version(name) for name in pair)
        except importlib.metadata.PackageNotFoundError:
            continue
        if first.split(".")[:2] != second.split(".")[:2]:
            clashes.append(f"{pair[0]} {first} with {pair[1]} {second}")
    if clashes:
        return Finding("versions", "; ".join(clashes), "install both from constraints.txt")
    return Finding("versions", "none that are known to clash")


def check_requirements() -> Finding:
    """Run `pip check` on the installed packages."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=PIP_S)
    except subprocess.TimeoutExpired:
        return Finding("requirements", f"pip did not answer within {PIP_S} s")
    lines = result.stdout.strip().splitlines() or ["pip said nothing"]
    if result.returncode == 0:
        return Finding("requirements", lines[0])
    return Finding("requirements", "; ".join(lines[:3]), "install again with constraints.txt")


def check_gpu(state: gpu.State | None) -> Finding:
    """Check the GPU for processes and for low clocks; `state` is None where there is no GPU."""
    if state is None:
        return Finding("GPU", "none that NVML can see")
    causes = [reason for reason in state.reasons or () if reason not in gpu.HARMLESS]
    if causes:
        return Finding("GPU", f"its clocks are low: {', '.join(causes)}, {state.temperature_c} °C", "let it cool")
    if state.processes:
        names = ", ".join(map(str, state.processes[:3]))
        return Finding("GPU", f"used by {len(state.processes)} processes ({names})", "end them while measuring")
    if state.reasons is None:
        return Finding("GPU", "whether its clocks are lowered is not reported")
    return Finding("GPU", "its processes are not reported" if state.processes is None else "used by no process")


def findings() -> list[Finding]:
    """Run every check on this machine."""
    return [
        check_governor(),
        check_turbo(),
        check_other_processes(),
        check_steal(),
        check_cores(environment.cores(), os.cpu_count() or 1),
        check_quota(environment.cpu_quota()),
        check_memory(psutil.virtual_memory().available / 2**30),
        check_compiler(),
        check_versions(),
        check_requirements(),
        check_gpu(gpu.state()),
    ]


def measure_noise_floor() -> str:
    """Measure a program against itself and return a sentence with the noise floor: smaller gaps cannot be seen."""
    available = [framework for framework in session.probe(Study(), [1]) if not framework.missing]
    if not available:
        return "noise floor: not measured, for no framework is installed"
    first = available[0]
    control = {"frameworks": [first.name], "executions": [next(iter(first.executions))]} | CONTROL
    with tempfile.TemporaryDirectory(prefix="fusegap-") as folder:
        gaps = Tables(session.run(load_study(None, None, control), Path(folder) / "run", False, "doctor")).gaps
    controls = gaps[(gaps.contender == TWIN) & gaps.ci_low.notna()]
    if controls.empty:
        return "noise floor: not measured; `run` says why"
    row = controls.iloc[0]
    return (
        f"noise floor: the same program against itself is {row.ratio:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}] "
        f"({row.framework} {row.execution}, {row.processes} processes × {row.rounds:g} rounds): with so few, gaps "
        f"under {half_width(row.ci_low, row.ci_high):.1%} cannot be seen here"
    )


def say(as_json: bool = False) -> int:
    """Print the findings and the noise floor, and return the exit status 0, because advice is not an error."""
    if as_json:
        found = [asdict(finding) for finding in findings()]
        print(json.dumps({"findings": found, "noise_floor": measure_noise_floor()}, indent=1))
        return 0
    table = Table("", "found", "what to do")
    for finding in findings():
        table.add_row(finding.what, finding.found, finding.advice)
    out = console()
    out.print(table, markup=False)
    out.print(measure_noise_floor(), markup=False, highlight=False)
    return 0
