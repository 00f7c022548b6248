"""A machine whose true ratio is known: what the measuring and the statistics are tested on.

The machine is a backend and a clock for `measure.block`, so what is tested is the code that measures, and
the way its arms take turns, not a copy of it. The clock stands still but for calls, and a call lasts

    base * ratio of its arm * exp(process + arm effect + drift + mode + autocorrelated noise + own noise + spike)

where process, drift, mode and the autocorrelated noise belong to the machine and its time, and are the same
for whichever arm runs then. Own noise and spikes are symmetric between the arms but for its size, so the
median of the log ratio is the true one.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import signal

from harness.analysis import stats
from harness.worker import timing
from impls.interface import Arm, Data, Outputs, Program, Run, Weights

BASE_NS = 1e6  # of a batched call
CONTENDER, BASELINE = "unrolled_in_loop", "unrolled_batched"
ARMS = [Arm("unrolled", "in_loop"), Arm("unrolled", "batched")]
NOTHING = np.zeros((1, 1, 1), np.float32)
DATA = Data(Weights(*(NOTHING[0],) * 5), NOTHING, NOTHING)


@dataclass(frozen=True)
class World:
    """Standard deviations and heights in logarithms, so 0.02 is 2%.

    `arm` is measured: over the processes of the first long CPU study, log ratios of blocks of at least 30 rounds
    varied by 0.010 between processes (0.002 to 0.006 between twins), which is 0.007 for each of two arms.
    """

    process: float = 0.14  # of a process's speed
    arm: float = 0.007  # of what a process does to one arm and not to the other
    drift: float = 0.15  # from a block's begin to its end, up or down
    autocorrelation: float = 0.4
    correlated: float = 0.03  # of the autocorrelated noise
    own: tuple[float, float] = (0.02, 0.01)  # of contender and baseline
    spikes: float = 0.05  # share of calls that last longer
    spike: float = 0.5  # mean height of a spike, exponential
    mode: float = 0.2  # height of the machine's second mode
    switch: float = 0.02  # how likely it changes its mode at a call


class Still:
    """What a backend must have besides `prepare`, of programs that make nothing."""

    def put(self, data: Data) -> Data:
        return data

    def wait(self, outputs: Any) -> None:
        """Everything exists at once."""

    def get(self, program: Program, outputs: Any) -> Outputs:
        return {}

    def compilations(self) -> int:
        return 0


class Machine(Still):
    """One process: backend and clock, with the times of `calls` calls drawn beforehand."""

    def __init__(self, world: World, ratio: float, calls: int, random: np.random.Generator) -> None:
        self.now, self.call = 0, 0
        shared = world.process * random.normal() + np.linspace(0, world.drift * random.choice([-1, 1]), calls)
        shared += world.mode * (np.cumsum(random.random(calls) < world.switch) % 2)
        shared += world.correlated * _autocorrelated(world.autocorrelation, random.normal(size=calls))
        shared += random.exponential(world.spike, calls) * (random.random(calls) < world.spikes)
        self.times: dict[str, list[int]] = {}
        for name, own, true in zip((CONTENDER, BASELINE), world.own, (ratio, 1.0), strict=True):
            effect = math.log(true) + world.arm * random.normal()
            self.times[name] = (
                (BASE_NS * np.exp(shared + effect + own * random.normal(size=calls))).astype(int).tolist()
            )

    def __call__(self) -> int:
        return self.now

    def prepare(self, program: Program, w: Weights) -> Run:
        times = self.times[program.arm.name]

        def run(x: Any, target: Any) -> Any:
            self.now += times[self.call]
            self.call += 1
            return x

        return run


def _autocorrelated(by: float, white: np.ndarray) -> np.ndarray:
    """First-order autoregression of unit variance from unit white noise."""
    return signal.lfilter([math.sqrt(1 - by * by)], [1, -by], white)


def block(backend: Any, clock: Any, rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds per call of each arm of one measured block, one value a round."""
    limits = timing.Rounds(rounds, rounds, 1.0)
    todo = timing.Block("rnn_tanh", "forward", "eager", ARMS, DATA, limits, seed)
    meters = timing.Meters(clock, lambda: 0)
    arms = timing.block(backend, todo, meters, lambda *outputs: None, lambda arm, what: None).arms
    return {name: [ns / arm.calls / 1e9 for ns in arm.samples_ns] for name, arm in arms.items()}


def measured(
    world: World, ratio: float, processes: int, rounds: int, random: np.random.Generator
) -> list[tuple[list[float], list[float]]]:
    """Times of contender and baseline in each process, for a true `ratio`."""
    found = []
    for _ in range(processes):
        machine = Machine(world, ratio, 4 * rounds + 20, random)  # three arms' rounds, and what is before them
        times = block(machine, machine, rounds, int(random.integers(2**31)))
        found.append((times[CONTENDER], times[BASELINE]))
    return found


def sample(world: World, ratio: float, processes: int, rounds: int, random: np.random.Generator) -> stats.Sample:
    """One gap of a true `ratio`, as a study of that many processes and rounds would have it."""
    return stats.sample(measured(world, ratio, processes, rounds, random))
