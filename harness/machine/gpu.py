"""Facts and state of the GPU, from NVML, which comes with the driver.

A GPU that is too hot, or gets a brake signal, lowers its clocks: times taken then are those of another machine. A GPU
that merely reaches its power limit does so under every large load, so this is recorded but does not count as
throttling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

REASONS = {  # those of NVML's clocks event reasons that lower the clocks, by bit
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
HARMLESS = ("power limit",)
VIOLATIONS = {0: "power limit", 1: "heat", 3: "board limit", 5: "reliability"}  # NVML's performance policies


@dataclass(frozen=True)
class State:
    """State of a GPU: clocks in MHz, temperature in °C, power in W. What the driver does not report is None.

    `reasons`: why the clocks are low. `processes`: the ids of those on the GPU. `limited_ns`: the time at each limit.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: list[str]
    processes: list[int] | None
    limited_ns: dict[str, int]


@cache
def nvml() -> Any:
    """Return the NVML module, initialised, or None without a GPU or without the library."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError:
        return None


def facts(library: Any = None) -> dict[str, str]:
    """Return name, memory and driver of the first GPU; an empty dict without a GPU."""
    library = library or nvml()
    if library is None:
        return {}
    device = library.nvmlDeviceGetHandleByIndex(0)
    memory_gib = library.nvmlDeviceGetMemoryInfo(device).total / 2**30
    name, driver = library.nvmlDeviceGetName(device), library.nvmlSystemGetDriverVersion()
    return {"gpu": f"{name}, {memory_gib:.0f} GiB", "gpu_driver": driver}


def state(library: Any = None) -> State | None:
    """Return the state of the first GPU, or None without a GPU."""
    library = library or nvml()
    if library is None:
        return None
    device = library.nvmlDeviceGetHandleByIndex(0)

    def query(function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of NVML for the device; return None where it fails."""
        try:
            return function(device, *arguments)
        except library.NVMLError:
            return None

    bits = query(library.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    power_mw, running = query(library.nvmlDeviceGetPowerUsage), query(library.nvmlDeviceGetComputeRunningProcesses)
    limits = {name: query(library.nvmlDeviceGetViolationStatus, policy) for policy, name in VIOLATIONS.items()}
    return State(
        sm_mhz=query(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_SM),
        memory_mhz=query(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_MEM),
        temperature_c=query(library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        reasons=[name for bit, name in REASONS.items() if bits & bit],
        processes=None if running is None else [process.pid for process in running],
        limited_ns={name: status.violationTime for name, status in limits.items() if status is not None},
    )


def throttle_reasons(before: State, after: State) -> list[str]:
    """Return why the clocks were lowered between two states, except for harmless reasons."""
    limits = after.limited_ns
    violations = [name for name in limits if limits[name] > before.limited_ns.get(name, limits[name])]
    reasons = dict.fromkeys([*before.reasons, *after.reasons, *violations])
    return [name for name in reasons if name not in HARMLESS]


def other_process_count(snapshot: State) -> int | None:
    """Return the number of processes on the GPU besides the worker that uses it, or None if the driver does not report.

    The processes are only counted: in a container, the driver's process ids differ from ours.
    """
    return None if snapshot.processes is None else max(0, len(snapshot.processes) - 1)
