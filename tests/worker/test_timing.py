"""One block, with a backend and a clock made up here."""

import dataclasses
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from harness.records import samples
from harness.study.data import probe_data
from harness.worker import timing
from impls.interface import Arm, Data, Weights

ARMS = [Arm("unrolled", p) for p in ("none", "in_loop", "per_step", "batched")]


class Clock:
    """Counts nanoseconds: 50 a reading, and what calls add."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 50
        return self.now


class Made:
    """A backend whose arms cost what `costs` says; keeps a log of what was called."""

    def __init__(self, clock, costs=None, recompiles=False, fails=()):
        self.clock, self.costs, self.recompiles, self.fails = clock, costs or {}, recompiles, fails
        self.log, self.waited, self.compiled, self.prepared = [], 0, 0, []

    def prepare(self, program, w):
        name = program.arm.name
        self.prepared.append((name, w))
        if name in self.fails:
            raise RuntimeError("\nno such kernel\nmore")

        def run(x, target):
            self.log.append(name)
            self.clock.now += self.costs.get(name, 1_000_000)
            self.compiled += self.recompiles
            return x * 2

        return run

    def put(self, data):
        return data

    def wait(self, outputs):
        self.waited += 1

    def get(self, program, outputs):
        return {"y": np.array(outputs)}

    def compilations(self):
        return self.compiled


def todo(**more):
    data = Data(Weights(*(np.zeros((2, 2), np.float32),) * 5), np.ones((3, 1, 2), np.float32), np.zeros((3, 1, 2)))
    rounds = timing.RoundLimits(3, 50, 0.02)
    given = {"cell": "rnn_tanh", "pass_": "forward", "execution": "eager", "arms": ARMS, "data": data, "rounds": rounds}
    return timing.TimingSpec(**(given | {"seed": 1} | more))


@dataclasses.dataclass
class Ran:
    """A block's result, and what was kept of it."""

    result: timing.BlockResult
    outputs: dict

    @property
    def arms(self):
        return self.result.arms


def run(backend, clock, faults=lambda: 0, **more):
    outputs = {}

    def keep(name, moment, arrays):
        outputs[name, moment] = arrays

    meters = timing.Meters(clock, faults)
    return Ran(timing.block(backend, todo(**more), meters, keep, lambda arm, what: None), outputs)


def test_samples_are_the_time_of_the_call_and_nothing_else():
    clock = Clock()
    result = run(Made(clock, {"unrolled_in_loop": 3_000_000}), clock)
    assert set(result.arms["unrolled_in_loop"].samples_ns) == {3_000_050}
    assert set(result.arms["unrolled_batched"].samples_ns) == {1_000_050}


def test_rounds_fill_the_time_between_their_limits():
    clock = Clock()
    assert len(run(Made(clock), clock).arms["unrolled_none"].samples_ns) == 3  # 5 ms a round of 20 ms: 3.9
    assert len(run(Made(clock), clock, rounds=timing.RoundLimits(7, 50, 1e-9)).arms["unrolled_none"].samples_ns) == 7
    assert len(run(Made(clock), clock, rounds=timing.RoundLimits(3, 9, 60)).arms["unrolled_none"].samples_ns) == 9


def test_arms_alternate_in_a_new_order_each_round_and_the_twin_takes_part():
    clock = Clock()
    backend = Made(clock)
    result = run(backend, clock, rounds=timing.RoundLimits(6, 6, 1))
    timed = backend.log[4 * (len(ARMS) + 1) :]
    rounds = [timed[i : i + 5] for i in range(0, len(timed), 5)]
    assert len(rounds) == 6
    assert all(sorted(r) == sorted([*(a.name for a in ARMS), "unrolled_batched"]) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert len(result.arms["unrolled_twin"].samples_ns) == 6


def test_short_samples_are_batched_and_say_so():
    clock = Clock()
    backend = Made(clock, {"unrolled_none": 100})
    arms = run(backend, clock).arms
    assert arms["unrolled_none"].calls * 150 >= timing.TIMER_COSTS * 50
    assert backend.waited == len(backend.log)  # every call is waited for
    assert samples.median_call_s(arms["unrolled_none"]) == pytest.approx(100e-9, rel=0.01)


def test_every_arm_of_a_block_is_sampled_alike_and_as_the_first_process_was():
    clock = Clock()
    costs = {"unrolled_none": 100, "unrolled_in_loop": 3_000}
    first = {arm.calls for arm in run(Made(clock, costs), clock).arms.values()}
    assert first == {334}  # 100 ns and a reading of the clock: the shortest arm decides for all
    assert {arm.calls for arm in run(Made(clock, costs), clock, calls=7).arms.values()} == {7}


def test_page_faults_are_those_between_just_before_and_just_after_a_sample():
    clock, seen = Clock(), SimpleNamespace(faults=0)

    class Faulting(Made):
        def prepare(self, program, w):
            run = super().prepare(program, w)

            def call(x, target):
                seen.faults += 3 if program.arm.projection == "batched" else 0
                return run(x, target)

            return call

        def get(self, program, outputs):
            seen.faults += 1000  # fetching is no part of a sample
            return super().get(program, outputs)

    arms = run(Faulting(clock), clock, faults=lambda: seen.faults, calls=2).arms
    assert set(arms["unrolled_batched"].faults) == set(arms["unrolled_twin"].faults) == {6}
    assert set(arms["unrolled_none"].faults) == {0}
    assert all(len(arm.faults) == len(arm.samples_ns) for arm in arms.values())


def test_no_outputs_of_an_arm_are_alive_while_another_is_called():
    clock, alive = Clock(), []

    class Array(np.ndarray):
        """One that can be referred to weakly."""

    class Watched(Made):
        def prepare(self, program, w):
            run = super().prepare(program, w)

            def call(x, target):
                others = [name for name, ref in alive if ref() is not None and name != (program.arm.name, id(w))]
                assert not others, f"{others} while {program.arm.name} is called"
                made = run(x, target).view(Array)
                alive.append(((program.arm.name, id(w)), weakref.ref(made)))
                return made

            return call

    assert {arm.status for arm in run(Watched(clock), clock).arms.values()} == {"ok"}
    assert len(alive) > 30


def test_the_control_is_a_second_copy_with_arrays_of_its_own():
    class Put(Made):
        def put(self, data):
            return Data(Weights(*map(np.copy, data.weights)), data.x.copy(), data.target.copy())

    clock = Clock()
    backend = Put(clock)
    run(backend, clock)
    copies = [w for name, w in backend.prepared if name == "unrolled_batched"]
    assert len(copies) == 2
    assert not np.shares_memory(copies[0].w_rec, copies[1].w_rec)


def test_arms_are_prepared_in_another_order_in_another_process():
    orders = set()
    for seed in range(5):
        clock = Clock()
        backend = Made(clock)
        run(backend, clock, seed=seed)
        orders.add(tuple(name for name, _ in backend.prepared))
    assert len(orders) > 1


def test_where_time_is_short_the_pair_comes_first_in_an_order_of_its_own():
    starts, ends = set(), set()
    for seed in range(8):
        clock = Clock()
        backend = Made(clock)
        run(backend, clock, seed=seed, hurried=True)
        names = [name for name, _ in backend.prepared]
        starts.add(tuple(names[:2]))
        assert names[2] == "unrolled_batched"  # its twin
        ends.add(tuple(names[3:5]))
    assert starts == {("unrolled_in_loop", "unrolled_batched"), ("unrolled_batched", "unrolled_in_loop")}
    assert len(ends) > 1


def test_where_time_is_short_the_loop_that_users_write_comes_before_all_others():
    arms = [Arm(loop, form) for loop in ("scan", "unrolled") for form in ("none", "in_loop", "batched")]
    for seed in range(8):
        clock = Clock()
        backend = Made(clock)
        run(backend, clock, seed=seed, hurried=True, loop="unrolled", arms=arms)
        names = [name for name, _ in backend.prepared]
        assert {name.partition("_")[0] for name in names[:4]} == {"unrolled"}
        assert set(names[:2]) == {"unrolled_in_loop", "unrolled_batched"}


def test_a_control_that_fails_where_its_arm_does_not_is_named():
    class Once(Made):
        def prepare(self, program, w):
            if any(name == "unrolled_batched" == program.arm.name for name, _ in self.prepared):
                raise RuntimeError("only one of me")
            return super().prepare(program, w)

    clock = Clock()
    arms = run(Once(clock), clock).arms
    failed = {name: arm.reason for name, arm in arms.items() if arm.status == "failed"}
    assert list(failed.values()) == ["RuntimeError: only one of me"]
    assert failed.keys() <= {"unrolled_twin", "unrolled_batched"}


class Lent(Made):
    """Every call of any arm writes into the same memory, as CUDA graphs that share a pool do."""

    memory = np.zeros((3, 1, 2), np.float32)

    def prepare(self, program, w):
        run = super().prepare(program, w)

        def call(x, target):
            self.memory[:] = run(x, target) + len(program.arm.name)
            return self.memory

        return call


def test_outputs_that_are_only_lent_are_fetched_before_the_next_call():
    for more in ({}, {"rounds": None}):
        for overwrites in (True, False):
            clock = Clock()
            outputs = run(Lent(clock), clock, overwrites=overwrites, **more).outputs
            given = {"before": probe_data(todo().data).x, "after": todo().data.x}
            right = [
                np.array_equal(outputs[name, moment]["y"], 2 * x + len(name))
                for name in ("unrolled_in_loop", "unrolled_batched")
                for moment, x in given.items()
            ]
            assert all(right) == overwrites


def test_compiling_while_timed_refuses_the_block():
    clock = Clock()
    assert {a.status for a in run(Made(clock, recompiles=True), clock).arms.values()} == {"refused"}
    assert {a.status for a in run(Made(clock), clock).arms.values()} == {"ok"}


def test_a_failing_arm_is_named_and_spares_the_others():
    clock = Clock()
    result = run(Made(clock, fails=["unrolled_batched"]), clock)
    assert result.arms["unrolled_batched"].reason == "RuntimeError: no such kernel"
    assert "unrolled_twin" not in result.arms
    assert result.arms["unrolled_in_loop"].status == "ok"


def test_no_first_call_is_begun_after_the_time_is_up():
    clock = Clock()
    costs = dict.fromkeys((arm.name for arm in ARMS), 10**9)
    result = run(Made(clock, costs), clock, seconds=1.5)
    statuses = sorted(result.arms[arm.name].status for arm in ARMS)
    assert statuses == ["not_reached", "not_reached", "not_reached", "ok"]


def test_the_probe_differs_in_every_element_at_every_size():
    for shape in ((1, 1, 1), (4, 2, 3)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        other = probe_data(Data(None, x, None)).x
        assert other.dtype == x.dtype
        assert (other != x).all()


def test_threads_are_proven_by_processor_time():
    clock, cpu = Clock(), SimpleNamespace(now=0)

    def product(cores):
        def work():
            clock.now += 10**8
            cpu.now += int(cores * 10**8)

        return work

    assert timing.prove_threads(2, product(1.95), lambda: cpu.now, clock)[0]
    assert not timing.prove_threads(1, product(1.9), lambda: cpu.now, clock)[0]
    assert not timing.prove_threads(2, product(1.5), lambda: cpu.now, clock)[0]
