"""Which programs are counted, and that what a folder holds is not counted again; the worker is made up."""

import pytest

from harness.errors import UsageError
from harness.records import counts
from harness.records.counts import CountRecord
from harness.run import count
from harness.run.count import Counting
from harness.run.launch import WorkerDied
from harness.study.matrix import Framework, WorkerEnvironment
from harness.study.study import NAMED
from harness.worker.messages import CountAnswer, FactsAnswer, FactsRequest
from impls.interface import Execution

XLA = Execution(True, without={"time_distributed": "it is a layer of Keras"})
JAX = Framework("jax", executions={"xla": XLA}, environments=[WorkerEnvironment("cpu", 1, {"JAX_PLATFORMS": "cpu"})])


def counting(**changed) -> Counting:
    fields = {"cards": ["h100"], "workloads": [NAMED["book"]], "recurrences": ["scan"], "projections": ["batched"]}
    return Counting(**(fields | {"passes": ["forward"], "unroll_limit": 32} | changed))


def names(wanted: Counting, without=()) -> list[str]:
    return list(dict.fromkeys(request.arm.name for request in wanted.requests(without)))


class MadeUpWorker:
    """Answers as a worker would. `asked`: all requests of all of them; `facts` and `missing`: what it says."""

    asked: list = []  # noqa: RUF012  shared on purpose: a count starts two workers
    facts, missing = JAX, ""

    def __init__(self, framework, variables, timeout_s):
        self.variables = variables

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, request):
        if isinstance(request, FactsRequest):
            return FactsAnswer(framework=self.facts)
        assert self.variables == {"JAX_PLATFORMS": "cpu"}
        self.asked.append(request)
        if self.missing:
            return CountAnswer(missing=self.missing)
        card, triton, workload, pass_, recurrence, projection = count.key_of(request)
        place = {"workload": workload, "recurrence": recurrence, "projection": projection}
        return CountAnswer(record=CountRecord(card=card, xla="xla 1", triton=triton, pass_=pass_, **place))


@pytest.fixture
def worker(monkeypatch):
    class Worker(MadeUpWorker):
        asked: list = []  # noqa: RUF012

    monkeypatch.setattr(count, "Worker", Worker)
    return Worker


def test_every_program_is_compiled_with_and_without_triton():
    requests = list(counting().requests(()))
    assert [request.triton for request in requests] == [True, False]


def test_the_usual_arms_are_those_of_a_study_and_impossible_or_missing_ones_are_left_out():
    usual = names(counting(recurrences=["layer", "given"], projections=None), XLA.without)
    assert "layer_in_loop" not in usual
    assert "given_time_distributed" not in usual
    assert {"layer_none", "layer_batched", "given_per_step", "given_vmap"} <= set(usual)


def test_long_programs_are_not_unrolled_above_the_limit():
    long = {"workloads": [NAMED["stream"]], "recurrences": ["unrolled", "scan"]}
    assert names(counting(**long)) == ["scan_batched"]
    assert names(counting(**long, unroll_limit=None)) == ["unrolled_batched", "scan_batched"]


def test_what_a_folder_holds_is_not_counted_again(worker, tmp_path):
    assert len(count.count(counting(), tmp_path)) == 2
    both = count.count(counting(projections=["batched", "in_loop"]), tmp_path)
    assert [request.arm.projection for request in worker.asked] == ["batched", "batched", "in_loop", "in_loop"]
    assert counts.read(tmp_path) == both


def test_a_count_that_failed_is_made_again_and_replaced(worker, tmp_path):
    first, second = count.count(counting(), tmp_path)
    counts.append(tmp_path, [second.model_copy(update={"reason": "ValueError: out of memory"})])
    worker.asked.clear()
    assert count.count(counting(), tmp_path) == [first, second]
    assert [request.triton for request in worker.asked] == [second.triton]


def test_where_nothing_can_be_counted_one_sentence_says_why(worker, tmp_path):
    worker.missing = "it is not installed"
    with pytest.raises(UsageError, match="it is not installed"):
        count.count(counting(), tmp_path)
    worker.facts = Framework("jax", missing="jax is not installed")
    with pytest.raises(UsageError, match="jax is needed to count: jax is not installed"):
        count.count(counting(), tmp_path)


def test_a_worker_that_dies_keeps_what_was_counted(worker, tmp_path, monkeypatch):
    ask = worker.ask

    def die_at_the_second(self, request):
        if len(self.asked) == 1:
            raise WorkerDied("failed", "ended by SIGKILL", "")
        return ask(self, request)

    monkeypatch.setattr(worker, "ask", die_at_the_second)
    with pytest.raises(UsageError, match="ended by SIGKILL"):
        count.count(counting(), tmp_path)
    assert len(counts.read(tmp_path)) == 1
