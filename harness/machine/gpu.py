"""What a GPU is and how it does, from NVML, which comes with its driver. None where there is no GPU to ask.

A GPU that is too hot, or is told to brake, lowers its clocks: times taken then are of another machine. One that
merely reaches its power limit does so under every large load, and so that is recorded and not held against it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

State = dict[str, Any]
REASONS = {  # bits of NVML's clocks event reasons that lower the clocks
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
HARMLESS = ("power limit",)
VIOLATIONS = {0: "power limit", 1: "heat", 3: "board limit", 5: "reliability"}  # NVML's performance policies


@cache
def nvml() -> Any:
    """NVML, begun, or None without a GPU or its library."""
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
    """Name, memory and driver of the first GPU; nothing without one."""
    library = library or nvml()
    if library is None:
        return {}
    device = library.nvmlDeviceGetHandleByIndex(0)
    memory_gib = library.nvmlDeviceGetMemoryInfo(device).total / 2**30
    name, driver = library.nvmlDeviceGetName(device), library.nvmlSystemGetDriverVersion()
    return {"gpu": f"{name}, {memory_gib:.0f} GiB", "gpu_driver": driver}


def state(library: Any = None) -> State | None:
    """Clocks in MHz, temperature in °C, power in W, why the clocks are low, processes, and time at each limit in ns.

    What the driver does not tell is None.
    """
    library = library or nvml()
    if library is None:
        return None
    device = library.nvmlDeviceGetHandleByIndex(0)

    def told(ask: Callable[..., Any], *more: Any) -> Any:
        try:
            return ask(device, *more)
        except library.NVMLError:
            return None

    bits = told(library.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    power_mw, running = told(library.nvmlDeviceGetPowerUsage), told(library.nvmlDeviceGetComputeRunningProcesses)
    limits = {name: told(library.nvmlDeviceGetViolationStatus, policy) for policy, name in VIOLATIONS.items()}
    return {
        "sm_mhz": told(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_SM),
        "memory_mhz": told(library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_MEM),
        "temperature_c": told(library.nvmlDeviceGetTemperature, library.NVML_TEMPERATURE_GPU),
        "power_w": None if power_mw is None else power_mw / 1000,
        "reasons": [name for bit, name in REASONS.items() if bits & bit],
        "processes": None if running is None else [process.pid for process in running],
        "limited_ns": {name: found.violationTime for name, found in limits.items() if found is not None},
    }


def throttled(before: State, after: State) -> list[str]:
    """Why the clocks were lowered between two states, but for what is harmless."""
    limits = after["limited_ns"]
    grown = [name for name in limits if limits[name] > before["limited_ns"].get(name, limits[name])]
    found = dict.fromkeys([*before["reasons"], *after["reasons"], *grown])
    return [name for name in found if name not in HARMLESS]


def foreign(now: State) -> int | None:
    """Processes on the GPU but for the worker that uses it; None where the driver does not tell.

    Counted, not told by their numbers, which in a container are others than ours.
    """
    return None if now["processes"] is None else max(0, len(now["processes"]) - 1)
