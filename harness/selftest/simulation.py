"""A simulated machine whose true ratio is known, to test the measuring and the statistics on.

The machine is a backend and a clock for `timing.block`. So the code under test, including the order in which arms take
turns, is the code that measures real machines, not a copy of it. The clock advances only during calls, and a call lasts

    base * ratio of its arm * exp(process + arm effect + drift + mode + autocorrelated noise + own noise + spike)

Process, drift, mode and the autocorrelated noise belong to the machine and its time, and are the same for whichever arm
runs then. Own noise and spikes are symmetric between the arms, except for the size of the own noise, so the median of
the log ratio is the true one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import signal

from harness.analysis import stats
from harness.worker import timing
from impls.interface import Arm, Data, Outputs, Program, Run, Weights

BASE_NS = 1e6  # time of a batched call
CONTENDER, BASELINE = "unrolled_in_loop", "unrolled_batched"
ARMS = [Arm("unrolled", "in_loop"), Arm("unrolled", "batched")]
NOTHING = np.zeros((1, 1, 1), np.float32)
DATA = Data(Weights(*(NOTHING[0],) * 5), NOTHING, NOTHING)


@dataclass(frozen=True)
class World:
    """Parameters of a simulated machine: standard deviations and heights in logarithms, so 0.02 is 2%.

    `arm` is a measured value. Over the processes of the first long CPU study, log ratios of blocks of at least 30
    rounds varied by 0.010 between processes (0.002 to 0.006 between A/A controls), which is 0.007 for each of two arms.
    """

    process: float = 0.14  # of a process's speed
    arm: float = 0.007  # of a process's effect on one arm but not on the other
    drift: float = 0.15  # from a block's start to its end, up or down
    autocorrelation: float = 0.4
    correlated: float = 0.03  # of the autocorrelated noise
    own: tuple[float, float] = (0.02, 0.01)  # of contender and baseline
    spikes: float = 0.05  # share of calls that last longer
    spike: float = 0.5  # mean height of a spike, exponential
    mode: float = 0.2  # height of the machine's second mode
    switch: float = 0.02  # probability that the machine changes its mode at a call


class IdleBackend:
    """A backend without `prepare`, for programs that compute nothing."""

    def put(self, data: Data) -> Data:
        """Return the data unchanged."""
        return data

    def wait(self, outputs: Any) -> None:
        """Return at once, because a call's outputs exist when it returns."""

    def get(self, program: Program, outputs: Any) -> Outputs:
        """Return no outputs."""
        return {}

    def compilations(self) -> int:
        """Return 0, because nothing is compiled."""
        return 0


class Machine(IdleBackend):
    """One simulated process: backend and clock, with the times of `calls` calls drawn beforehand."""

    def __init__(self, world: World, ratio: float, calls: int, rng: np.random.Generator) -> None:
        self.now_ns, self.call_index = 0, 0
        shared = world.process * rng.normal() + np.linspace(0, world.drift * rng.choice([-1, 1]), calls)
        shared += world.mode * (np.cumsum(rng.random(calls) < world.switch) % 2)
        shared += world.correlated * _autocorrelated_noise(world.autocorrelation, rng.normal(size=calls))
        shared += rng.exponential(world.spike, calls) * (rng.random(calls) < world.spikes)
        self.times_ns: dict[str, list[int]] = {}
        for name, own_noise, arm_ratio in zip((CONTENDER, BASELINE), world.own, (ratio, 1.0), strict=True):
            effect = math.log(arm_ratio) + world.arm * rng.normal()
            self.times_ns[name] = (
                (BASE_NS * np.exp(shared + effect + own_noise * rng.normal(size=calls))).astype(int).tolist()
            )

    def __call__(self) -> int:
        """Return the clock's time in nanoseconds."""
        return self.now_ns

    def prepare(self, program: Program, w: Weights) -> Run:
        """Return a callable that advances the clock by the arm's next time."""
        times = self.times_ns[program.arm.name]

        def run(x: Any, target: Any) -> Any:
            self.now_ns += times[self.call_index]
            self.call_index += 1
            return x

        return run


def _autocorrelated_noise(coefficient: float, white_noise: np.ndarray) -> np.ndarray:
    """Return a first-order autoregression of unit variance, made from unit white noise."""
    return signal.lfilter([math.sqrt(1 - coefficient * coefficient)], [1, -coefficient], white_noise)


def measure_block(backend: Any, clock: Any, rounds: int, seed: int) -> dict[str, list[float]]:
    """Measure one block, and return each arm's seconds per call, one value per round."""
    limits = timing.RoundLimits(rounds, rounds, 1.0)
    spec = timing.TimingSpec("rnn_tanh", "forward", "eager", ARMS, DATA, limits, seed)
    meters = timing.Meters(clock, lambda: 0)
    arms = timing.block(backend, spec, meters, lambda *outputs: None, lambda arm, what: None).arms
    return {name: [ns / arm.calls / 1e9 for ns in arm.samples_ns] for name, arm in arms.items()}


def measure_processes(
    world: World, ratio: float, processes: int, rounds: int, rng: np.random.Generator
) -> list[tuple[list[float], list[float]]]:
    """Measure contender and baseline on a simulated machine of true `ratio`, and return their times per process."""
    process_times = []
    for _ in range(processes):
        machine = Machine(world, ratio, 4 * rounds + 20, rng)  # enough for three arms' rounds and the calls before them
        times = measure_block(machine, machine, rounds, int(rng.integers(2**31)))
        process_times.append((times[CONTENDER], times[BASELINE]))
    return process_times


def node_sample(
    world: World, ratio: float, nodes: int, processes: int, rounds: int, rng: np.random.Generator
) -> tuple[stats.Sample, stats.Sample]:
    """Return the sample of one gap from nodes that differ by as much as processes do, and the one that ignores nodes.

    `processes`: of each node. The true ratio of machines of this kind is `ratio`, and that of a node differs from it
    as a process's does from its node's.
    """
    times, names = [], []
    for node in range(nodes):
        own = ratio * math.exp(math.sqrt(2) * world.arm * rng.normal())  # both arms of a process vary by world.arm
        times += measure_processes(world, own, processes, rounds, rng)
        names += [f"n{node}"] * processes
    return stats.gap_sample(times, names), stats.gap_sample(times)


def sample(world: World, ratio: float, processes: int, rounds: int, rng: np.random.Generator) -> stats.Sample:
    """Return the sample of one gap of true `ratio`, from a simulated study of so many processes and rounds."""
    return stats.gap_sample(measure_processes(world, ratio, processes, rounds, rng))
