"""Facts and state of the GPU, from NVML, which comes with the driver. No error of NVML ends a run.

The GPU is the first one that workers see: the first of CUDA_VISIBLE_DEVICES, or the machine's first. A GPU that is too
hot, or gets a brake signal, lowers its clocks: times taken then are those of another machine. A GPU that merely reaches
its power limit does so under every large load, so this is recorded but does not count as throttling.
"""

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

REASONS = {  # those of NVML's clocks event reasons that lower the clocks, by bit
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
HARMLESS = ("power limit",)
EVERY_S = 0.1  # seconds between two looks at a GPU that works
VIOLATIONS = {0: "power limit", 1: "heat", 3: "board limit", 5: "reliability"}  # NVML's performance policies


@dataclass(frozen=True)
class State:
    """State of a GPU: clocks in MHz, temperature in °C, power in W. What the driver does not report is None.

    `reasons`: why the clocks are low. `processes`: the ids of those on the GPU. `limited_ns`: the time at each limit,
    of those that the driver reports.
    """

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: list[str] | None
    processes: list[int] | None
    limited_ns: dict[str, int]


@cache
def nvml() -> Any:
    """Return the NVML module, initialised, or None without a GPU or without the library."""
    try:
        import pynvml
    except ImportError:
        return None
    except Exception:  # a broken installation is none
        return None
    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except Exception:  # no driver, no permission: whatever it is, the GPU cannot be looked at
        return None


def _visible_gpu(library: Any) -> Any:
    """Return NVML's handle of the first GPU that workers see, or None.

    CUDA_VISIBLE_DEVICES names it by index or by UUID; workers count in NVML's order (harness.run.launch).
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if first.isdecimal():
        return _ask(library.nvmlDeviceGetHandleByIndex, int(first))
    return _ask(library.nvmlDeviceGetHandleByUUID, first) if first.startswith(("GPU-", "MIG-")) else None


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of NVML; return None where it fails, for which a driver has many reasons."""
    try:
        return function(*arguments)
    except Exception:
        return None


def facts(library: Any = None) -> dict[str, str]:
    """Return name and memory, UUID and driver of the GPU, as far as they are reported; an empty dict without a GPU."""
    library = library or nvml()
    if library is None or (device := _visible_gpu(library)) is None:
        return {}
    name, memory = _ask(library.nvmlDeviceGetName, device), _ask(library.nvmlDeviceGetMemoryInfo, device)
    size = "memory not reported" if memory is None else f"{memory.total / 2**30:.0f} GiB"
    reported = {
        "gpu": f"{name or 'name not reported'}, {size}",
        "gpu_uuid": _ask(library.nvmlDeviceGetUUID, device),
        "gpu_driver": _ask(library.nvmlSystemGetDriverVersion),
    }
    return {key: value for key, value in reported.items() if value is not None}


def state(library: Any = None) -> State | None:
    """Return the state of the GPU, or None without a GPU."""
    library = library or nvml()
    if library is None or (device := _visible_gpu(library)) is None:
        return None
    bits = _ask(lambda: library.nvmlDeviceGetCurrentClocksEventReasons(device))
    if bits is None:  # the name that older drivers know
        bits = _ask(lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(device))
    power_mw = _ask(library.nvmlDeviceGetPowerUsage, device)
    running = _ask(library.nvmlDeviceGetComputeRunningProcesses, device)
    limits = {name: _ask(library.nvmlDeviceGetViolationStatus, device, policy) for policy, name in VIOLATIONS.items()}
    return State(
        sm_mhz=_ask(library.nvmlDeviceGetClockInfo, device, library.NVML_CLOCK_SM),
        memory_mhz=_ask(library.nvmlDeviceGetClockInfo, device, library.NVML_CLOCK_MEM),
        temperature_c=_ask(library.nvmlDeviceGetTemperature, device, library.NVML_TEMPERATURE_GPU),
        power_w=None if power_mw is None else power_mw / 1000,
        reasons=None if bits is None else [name for bit, name in REASONS.items() if bits & bit],
        processes=None if running is None else [process.pid for process in running],
        limited_ns={name: status.violationTime for name, status in limits.items() if status is not None},
    )


def merged(states: Sequence[State]) -> State:
    """Return what one or more states of a GPU have in common as one state.

    That is the lowest clocks, the highest temperature and power, every reason, every process, and the last limits.
    """

    def reported(name: str) -> list[Any]:
        return [value for state in states if (value := getattr(state, name)) is not None]

    reasons, processes = reported("reasons"), reported("processes")
    return State(
        sm_mhz=min(reported("sm_mhz"), default=None),
        memory_mhz=min(reported("memory_mhz"), default=None),
        temperature_c=max(reported("temperature_c"), default=None),
        power_w=max(reported("power_w"), default=None),
        reasons=list(dict.fromkeys(itertools.chain(*reasons))) if reasons else None,
        processes=sorted(set(itertools.chain(*processes))) if processes else None,
        limited_ns=states[-1].limited_ns,
    )


class Watch:
    """Looks at a GPU before and after the body of a `with` statement, and while told to, every `every_s` seconds.

    `look` returns the GPU's state, or None where there is none to look at: then nothing is watched.
    """

    def __init__(self, look: Callable[[], State | None], every_s: float = EVERY_S) -> None:
        self.look, self.every_s = look, every_s
        self.active_states: list[State] = []  # while active
        self.active, self.ended = threading.Event(), threading.Event()
        self.before: State | None = None
        self.after: State | None = None

    def __enter__(self) -> "Watch":
        self.before = self.look()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if self.before is not None:
            self.thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.before is not None:
            self.ended.set()
            self.thread.join()
            self.after = self.look()

    def set_active(self, active: bool) -> None:
        """Look at the GPU from now on, or no longer."""
        (self.active.set if active else self.active.clear)()

    @property
    def states(self) -> dict[str, State]:
        """Return the states "before", "during" if it was looked at then, and "after"; empty if one end is missing."""
        if self.before is None or self.after is None:
            return {}
        return {
            "before": self.before,
            **({"during": merged(self.active_states)} if self.active_states else {}),
            "after": self.after,
        }

    def _watch(self) -> None:
        while not self.ended.wait(self.every_s):
            if self.active.is_set() and (state := self.look()) is not None and self.active.is_set():
                self.active_states.append(state)


def throttle_reasons(states: dict[str, State]) -> list[str]:
    """Return why the clocks were lowered in a block, except for harmless reasons.

    `states`: those "before" and "after" it, and "during" its rounds where the GPU was looked at then. A GPU that does
    nothing lowers its clocks by itself, so reasons count during the rounds alone, where they are known.
    """
    before, after = states["before"], states["after"]
    counted_states = [states["during"]] if "during" in states else [before, after]
    limits = after.limited_ns
    violations = [name for name in limits if limits[name] > before.limited_ns.get(name, limits[name])]
    reasons = dict.fromkeys([*(reason for state in counted_states for reason in state.reasons or ()), *violations])
    return [name for name in reasons if name not in HARMLESS]


def other_process_count(snapshot: State) -> int | None:
    """Return the number of processes on the GPU besides the worker that uses it, or None if the driver does not report.

    The processes are only counted: in a container, the driver's process ids differ from ours.
    """
    return None if snapshot.processes is None else max(0, len(snapshot.processes) - 1)
