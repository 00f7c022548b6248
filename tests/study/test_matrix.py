"""The matrix of a study: which cells are measured, and why others are not."""

import pytest

from harness.errors import UsageError
from harness.records import gates
from harness.run import session
from harness.study import matrix, study
from harness.study.matrix import Framework
from harness.study.study import NAMED, Study, Workload
from impls.interface import Arm
from tests import made
from tests.conftest import HERE
from tests.made import execution


def test_a_sweep_compiles_no_unrolled_steps_unless_any_number_may_be():
    loop = execution(traced=True, unrolls=("unrolled",))
    torch = Framework("torch", executions={"inductor": loop}, devices={"cpu": None})
    made = {
        limit: matrix.make_plan(study.Study(sweep="book", unroll_limit=limit), [torch], [1]) for limit in (32, None)
    }
    reasons = {why for cell, _, why in made[32].absent if cell.workload.name == "book-T5"}
    assert reasons == {"a sweep compiles every size's unrolled steps anew, and unroll_limit is set"}
    assert not any(cell.workload.name.startswith("book-") for cell in made[32].cells)
    assert any(cell.workload.name == "book-T80" for cell in made[None].cells)


def test_fp64_is_checked_for_each_cell_and_speaks_for_no_other():
    workloads = [
        Workload(name=n, B=1, T=9, I=1, H=1, O=1, cell=c) for n, c in (("a", "gru"), ("b", "lstm"), ("c", "gru"))
    ]
    study = Study(workloads=workloads, threads=[1], passes=["forward"])
    numpy = Framework(
        "numpy",
        None,
        {},
        {"eager": made.execution(loop="scan")},
        {"cpu": None},
    )
    made_plan = matrix.make_plan(study, [numpy], [1])
    (job,) = matrix.fp64_check_jobs(made_plan, study)
    assert [(todo.workload.name, todo.steps) for todo in job.blocks] == [("a", 3), ("b", 3)]
    assert len(job.blocks[0].arms) == 6 + 6 + 3 + 6  # the usual ones; a layer projects nothing inside its loop
    assert [arm.name for arm in job.blocks[1].arms] == ["layer_none", "scan_none", "unrolled_none"]
    keys = {gates.program(job.configuration, cell, "forward", "scan_none") for cell in ("gru", "lstm")}
    assert len(keys) == 2
    (question,), (others,) = (matrix.fp64_check_jobs(made_plan, study, first) for first in (True, False))
    assert [(todo.part, len(todo.arms)) for todo in question.blocks] == [("scan", 6), ("scan", 1)]
    assert {todo.part for todo in others.blocks} == {""}
    for whole, first, last in zip(job.blocks, question.blocks, others.blocks, strict=True):
        assert {*first.arms, *last.arms} == set(whole.arms)
        assert not set(first.arms) & set(last.arms)


def test_what_nobody_writes_is_measured_where_it_is_asked_for_by_name():
    eager = made.execution(on_request={"scan": "nobody writes it"})
    numpy = Framework("numpy", executions={"eager": eager}, devices={"cpu": None})
    for selected, measured in (({}, 0), ({"projections": ["in_loop"]}, 0), ({"recurrences": ["scan"]}, 2)):
        planned = matrix.make_plan(Study(threads=[1], **selected), [numpy], [1])
        scans = [cell.pass_ for cell in planned.cells if cell.arm == Arm("scan", "in_loop")]
        assert len(set(scans)) == measured
        reasons = {(status, reason) for cell, status, reason in planned.absent if cell.arm.recurrence == "scan"}
        why = "nobody writes it: it is measured where --recurrence scan asks for it"
        assert reasons == (set() if measured else {("skipped", why)})


@pytest.mark.skipif("tf" not in HERE, reason="it is about TensorFlow")
def test_an_eager_while_loop_is_one():
    (framework,) = session.probe(Study(frameworks=["tf"]), [1])
    on_request = {name: list(execution.on_request) for name, execution in framework.executions.items()}
    assert {name: recurrences for name, recurrences in on_request.items() if recurrences} == {"eager": ["scan"]}


def test_all_cores_are_not_measured_twice_where_their_number_is_given_too():
    """The usual threads, 1 and all, are one on a machine of one core."""
    assert matrix.thread_counts(Study(threads=[2, "all"]), 2) == [2]
    assert matrix.thread_counts(Study(threads=["all", 1, 2]), 2) == [2, 1]
    framework = Framework("numpy", executions={"eager": execution()}, devices={"cpu": None})
    study = Study(threads=[2, "all"], workloads=[NAMED["book"]])
    cells = matrix.make_plan(study, [framework], matrix.thread_counts(study, 2)).cells
    assert len(cells) == len(set(cells)) > 0


EACH = [
    Framework(name, executions={"eager": execution(), other: execution()}, devices={"cpu": None})
    for name, other in (("torch", "inductor"), ("jax", "xla"))
]


@pytest.mark.parametrize(
    ("executions", "found"),
    [
        (None, {"torch eager", "torch inductor", "jax eager", "jax xla"}),
        (["eager"], {"torch eager", "jax eager"}),
        (["torch:eager", "jax:xla"], {"torch eager", "jax xla"}),
        (["xla", "torch:inductor"], {"torch inductor", "jax xla"}),
    ],
)
def test_an_execution_is_that_of_every_framework_or_of_the_one_that_is_named(executions, found):
    plan = matrix.make_plan(
        Study(executions=executions), matrix.select_frameworks(Study(executions=executions), EACH), [1]
    )
    assert {f"{c.configuration.framework} {c.configuration.execution}" for c in plan.cells} == found


@pytest.mark.parametrize(("name", "hint"), [("jax:xlaa", "jax:xla"), ("eagr", "eager")])
def test_an_execution_that_no_framework_has_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UsageError, match=f"unknown execution '{name}': did you mean {hint}"):
        matrix.select_frameworks(Study(executions=[name]), EACH)
