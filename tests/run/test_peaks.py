"""Peak memory through a whole run: of real frameworks, and in the plan of a study."""

import math

import pytest

from harness.analysis.tables import Tables
from harness.records.store import read_run
from harness.run import jobs, session
from harness.study import matrix, weights
from harness.study.matrix import Framework, Rank
from harness.study.study import Study, Workload
from impls.interface import Arm
from tests.conftest import HERE
from tests.made import execution

WIDE = Workload(name="wide", B=16, T=64, I=8, H=32, O=4000, loss="cross_entropy")
OUTPUTS = 4 * WIDE.T * WIDE.B * WIDE.O  # bytes
LOOPS = {"jax": ("xla", "scan"), "torch": ("eager", "unrolled"), "tf": ("graph", "scan")}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("framework", HERE)
def test_the_loss_inside_takes_a_tenth_of_what_all_outputs_take(framework, tmp_path):
    """Batched has y, and what the loss makes of each of its elements: an array of the same size, or what is left of it.

    The forward pass with its loss, because in training the recurrence keeps arrays of its own.
    """
    name, loop = LOOPS[framework]
    study = Study(
        frameworks=[framework], executions=[name], threads=[1], recurrences=[loop], workloads=[WIDE], passes=["loss"],
        projections=["batched", "chunked_loss_8", "in_loop_loss"], processes=1, rounds=1, rounds_min=1, peaks=True,
        unroll_limit=None, budget_s=None,
    )  # fmt: skip
    peak = peaks_of_a_run(study, tmp_path) if framework == "jax" else peaks_alone(study, tmp_path)
    assert 1.0 <= peak["batched"] / OUTPUTS <= 2.2
    assert peak["in_loop_loss"] <= peak["batched"] / 10
    assert peak["chunked_loss_8"] <= peak["batched"] / 4


def peaks_of_a_run(study, folder):
    """The peaks of a whole run, which its compiler and its front of time against memory agree with."""
    session.run(study, folder / "run", False, "a command")
    tables = Tables(read_run(folder / "run"))
    peak = tables.peaks.set_index("projection").peak_bytes.astype(float)
    assert tables.fronts.set_index("projection").share["in_loop_loss"] <= 0.1
    stated = tables.evidence.set_index("projection").temp_bytes["batched"]
    assert peak["batched"] == pytest.approx(float(stated), rel=0.1)
    return peak


def peaks_alone(study, folder):
    """The peaks of the process that measures them, without the rest of a run."""
    frameworks = session.probe(study, [1])
    plan = matrix.make_plan(study, frameworks, [1])
    weights.write_files(folder / "weights", session.prepare_files(study))
    context = session.make_context(study, frameworks, folder, folder, {})
    jobs_ = matrix.peak_jobs(plan, study, Rank)
    records = [r for job in jobs_ for r in jobs.work(context, job, lambda: math.inf, lambda text: None)]
    assert {record.kind for record in records} == {"peaks"}
    shown = {name: arm.peak.shown_bytes for record in records for name, arm in record.arms.items()}
    return {name.partition("_")[2]: shown_bytes for name, shown_bytes in shown.items()}


def test_memory_is_measured_once_of_own_arms_with_the_first_thread_count_and_its_processes_compile_nothing_anew():
    study = Study(workloads=[WIDE], passes=["loss"], projections=["none", "in_loop", "batched", "vmap"], threads=[1, 2])
    jax = Framework("jax", executions={"xla": execution(loop="scan")}, devices={"cpu": None})
    plan = matrix.make_plan(study, [jax], [1, 2])
    (job,) = matrix.peak_jobs(plan, study, Rank)
    assert (job.configuration.threads, job.replicate, job.measures_peaks) == (1, 0, True)
    arms = {block.part: block.arms for block in job.blocks}
    assert arms["scan"] == (Arm("scan", "in_loop"), Arm("scan", "batched"))
    assert arms["scan-others"] == (Arm("scan", "vmap"),)  # without its guest
    assert {block.kind for block in job.blocks} == {"peaks"}
    assert not jobs.compiles_anew(study, job)
    (first,) = matrix.peak_jobs(plan, study, [Rank.HEADLINE])
    assert [block.part for block in first.blocks] == ["scan"]
