"""Forms in turns, with a backend and a clock made up here."""

import numpy as np

from harness.study.parts import BATCHED, TWIN
from harness.worker import training
from impls.interface import Data, Weights
from tests.run.test_train import FEW
from tests.worker.test_timing import Clock


class Made:
    """A backend whose step takes a millisecond and whose loss counts its form's steps."""

    def __init__(self, clock, fails_at=None, recompiles_at=None):
        self.clock, self.fails_at, self.recompiles_at = clock, fails_at, recompiles_at
        self.log, self.compiled = [], 0

    def put(self, data):
        return data

    def trainer(self, program, w):
        count = iter(range(10**6))

        def step(x, target):
            at = next(count)
            if program.arm.projection == "in_loop" and at == self.fails_at:
                raise RuntimeError("no such kernel")
            self.compiled += at in (0, self.recompiles_at)
            self.clock.now += 1_000_000
            self.log.append(program.arm.projection)
            return np.float32(x[0] + at), w

        return step

    def wait(self, outputs):
        pass

    def compilations(self):
        return self.compiled


def trained(count=FEW, **more):
    clock = Clock()
    backend = Made(clock, **more)
    data = Data(Weights(*(np.zeros(1),) * 5), 100 * np.arange(count)[:, None], np.zeros((count, 1)))
    told = []
    todo = training.TrainingSpec("rnn_relu", "eager", "unrolled", data, 1)
    found = training.train(backend, todo, clock, lambda form, what: told.append(what))
    return found, backend, told


def test_every_form_takes_every_step_once_in_a_new_order_and_the_first_is_told_apart():
    found, backend, told = trained()
    assert set(found) == {"in_loop", BATCHED, TWIN}
    for form in found.values():
        assert form.losses == [101 * at for at in range(FEW)]  # its own steps, on the batch of each
        assert (form.status, form.first_call_ns, form.samples_ns) == ("ok", 1_000_050, [1_000_050] * (FEW - 1))
    turns = [tuple(backend.log[at : at + 3]) for at in range(0, 3 * FEW, 3)]
    assert all(sorted(turn) == [BATCHED, BATCHED, "in_loop"] for turn in turns)
    assert len(set(turns)) > 1
    assert told == [f"step 0 of {FEW}"]


def test_a_form_that_fails_is_named_and_spares_the_others():
    found, *_ = trained(fails_at=3)
    assert (found["in_loop"].status, found["in_loop"].reason) == ("failed", "RuntimeError: no such kernel")
    assert len(found["in_loop"].losses) == 3
    assert len(found[BATCHED].losses) == FEW


def test_compiling_after_the_first_step_refuses_the_times():
    assert {form.status for form in trained(recompiles_at=5)[0].values()} == {"refused"}
