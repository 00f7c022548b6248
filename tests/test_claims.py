"""The claims and causes, from tables made up here: a claim that is false reads as false."""

from types import SimpleNamespace

import pandas as pd
import pytest

from harness.analysis import EVIDENCE, VARIABLES
from harness.gaps import GAPS
from harness.report import causes, claims

SEAT = ("tf", "cpu", 1, "graph", "fp32", "book", "forward")
T = 20


def gap(ratio, verdict, recurrence="scan", contender="in_loop", trusted=True, framework="tf", device="cpu"):
    place = (framework, device, *SEAT[2:], recurrence, contender, "batched")
    return (*place, ratio, ratio * 0.99, ratio * 1.01, 3, 40, verdict, trusted, 7.0)


def contrast(ratio, verdict, contender="per_step", baseline="in_loop", trusted=True):
    return (*SEAT, "scan", contender, baseline, ratio, ratio * 0.99, ratio * 1.01, 3, 40, verdict, trusted, 7.0)


def counted(projection, products, flops=1000, temp=500.0, recurrence="scan", pass_="forward", seat=SEAT, moved=0):
    place = (*seat[:-1], pass_, recurrence, projection)
    return (*place, products, "", flops, moved, 99, "", 0, "", temp, None, None, "", None, "")


def listed(projection, *shapes, pass_="train"):
    place = (*SEAT[:3], "v1", "fp32", "book", pass_, "scan", projection)
    return [(*place, f"variable{number}", shape) for number, shape in enumerate(shapes)]


def tables(gaps=(), contrasts=(), evidence=(), label="default", variables=()):
    return SimpleNamespace(
        gaps=pd.DataFrame(gaps, columns=GAPS),
        contrasts=pd.DataFrame(contrasts, columns=GAPS),
        evidence=pd.DataFrame(evidence, columns=EVIDENCE),
        variables=pd.DataFrame(variables, columns=VARIABLES),
        times=pd.DataFrame([("book", "rnn_relu", T)], columns=["workload", "cell", "T"]),
        study=SimpleNamespace(label=label, margin=0.02),
    )


def test_a_gpu_is_counted_beside_a_cpu_with_another_number_of_threads():
    gpu = ("tf", "gpu", 16, *SEAT[3:])
    both = [counted(projection, 41 + 19 * (projection == "in_loop"), seat=seat)
            for seat in (SEAT, ("tf", "cpu", 16, *SEAT[3:]), gpu) for projection in ("in_loop", "batched")]  # fmt: skip
    kept = causes.once(tables(evidence=both).evidence)
    assert set(zip(kept.device, kept.threads, strict=True)) == {("cpu", 1), ("gpu", 16)}
    assert judged("C3", tables(evidence=both)).numbers.endswith("in 2 of 2 pairs of programs")


def test_verdicts_of_a_cpu_and_a_gpu_are_told_apart():
    made = judged("C1", tables([gap(1.5, "slower"), gap(0.9, "faster", device="gpu")]))
    assert made.numbers.startswith("cpu: 1 slower, 0 faster")
    assert "gpu: 0 slower, 1 faster" in made.numbers


def judged(name, made):
    return next(judge(made) for claim, _, judge in claims.CLAIMS if claim == name)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([gap(1.5, "slower")], "true here"),
        ([gap(0.9, "faster")], "false here"),
        ([gap(1.0, "equivalent")], "false here"),
        ([gap(1.5, "slower"), gap(0.9, "faster"), gap(1.0, "equivalent")], "depends: true in 1, false in 2"),
        ([gap(1.0, "inconclusive")], "this run can not tell"),
        ([gap(1.5, "slower"), gap(1.0, "inconclusive")], "true here, wherever this run can tell"),
        ([gap(1.5, "slower", trusted=False)], "not yet judged"),
        ([gap(1.5, "slower", recurrence="given")], "not yet judged"),
    ],
)
def test_the_book_is_judged_by_the_verdicts_of_loops(gaps, verdict):
    assert judged("C1", tables(gaps)).verdict == verdict


def test_the_documentation_is_judged_by_tensorflow_alone():
    made = tables([gap(1.5, "slower"), gap(0.9, "faster", framework="jax")])
    assert judged("C7", made).verdict == "true here"
    assert judged("C1", made).verdict == "depends: true in 1, false in 1"


def test_products_and_operations_are_judged_by_what_was_counted():
    right = [counted("none", 40), counted("in_loop", 60), counted("batched", 41)]
    assert judged("C2", tables(evidence=right)).verdict == "as layers false; as products true here"
    assert judged("C3", tables(evidence=right)).verdict == "true here"
    merged = [counted("none", 40), counted("in_loop", 41), counted("batched", 41)]
    assert judged("C2", tables(evidence=merged)).verdict == "as layers false; as products false here"
    swapped = [counted("none", 40), counted("in_loop", 41), counted("batched", 60, flops=999)]
    assert judged("C2", tables(evidence=swapped)).verdict == "as layers false; as products false here"
    more = [counted("none", 40), counted("in_loop", 60), counted("batched", 41, flops=999)]
    assert judged("C3", tables(evidence=more)).verdict == "false here"
    left_out = judged("C3", tables(evidence=swapped))
    assert left_out.verdict == "not yet judged"
    assert "changed by its compiler" in left_out.numbers
    assert judged("C3", tables()).verdict == "not yet judged"


@pytest.mark.parametrize(
    ("in_loop", "batched", "verdict", "said"),
    [
        # a compiler made multiplications of products, and no `none` beside them tells
        ((0, 50, 0), (1, 270, 0), "not yet judged", "changed by its compiler"),
        ((0, None, None), (1, 270, 0), "not yet judged", "changed by its compiler"),
        ((0, 270, None), (1, 270, None), "true here", "equal in 1 of 1"),
        ((0, 270, None), (1, 290, None), "false here", "equal in 0 of 1"),
        ((20, 270, 0), (1, 270, None), "true here", "equal in 1 of 1"),
    ],
)
def test_operations_that_leave_work_out_judge_no_claim(in_loop, batched, verdict, said):
    rows = [
        counted(name, products, flops=flops, moved=moved)
        for name, (products, flops, moved) in (("in_loop", in_loop), ("batched", batched))
    ]
    found = judged("C3", tables(evidence=rows))
    assert found.verdict == verdict
    assert said in found.numbers


def test_memory_waits_for_the_original_program_and_says_what_is_known():
    found = judged("C4", tables(evidence=[counted("in_loop", 60, temp=50.0), counted("batched", 41, temp=100.0)]))
    assert found.verdict == "not yet judged"
    assert "0.50 to 0.50" in found.numbers
    assert "this run has no original TF1 program (execution v1 of tf); of the arms here, peak" in found.numbers
    assert judged("C4", tables()).verdict == "not yet judged"


FORWARD_IN_LOOP, FORWARD_BATCHED = (listed(form, "[100]", pass_="forward") for form in ("in_loop", "batched"))
IN_LOOP, BATCHED = listed("in_loop", "[101×100]", "[100]", "[]"), listed("batched", "[100]", "[]", "[101×100]")


@pytest.mark.parametrize(
    ("variables", "in_loop_bytes", "verdict"),
    [
        ([*IN_LOOP, *BATCHED], 50.0, "as variables true here; as memory false here"),
        ([*IN_LOOP, *BATCHED], 101.0, "as variables true here; as memory true here"),
        ([*IN_LOOP, *BATCHED], 0.0, "as variables true here; as memory not known"),
        ([*IN_LOOP, *BATCHED[1:]], 50.0, "as variables false here; as memory false here"),
        (IN_LOOP, 50.0, "not yet judged"),
        ([*FORWARD_IN_LOOP, *FORWARD_BATCHED], 50.0, "not yet judged"),
    ],
)
def test_variables_are_compared_where_the_original_lists_them_and_memory_everywhere(variables, in_loop_bytes, verdict):
    memory = [counted("in_loop", 60, temp=in_loop_bytes), counted("batched", 41, temp=100.0)]
    assert judged("C4", tables(evidence=memory, variables=variables)).verdict == verdict


def test_variables_that_differ_are_named():
    alike = judged("C4", tables(variables=[*IN_LOOP, *BATCHED]))
    assert alike.numbers == "both forms make the same variables in 1 of 1 pairs (book: 3: 1×[100], 1×[101×100], 1×[])"
    assert alike.cells == "1 pairs of the original, train; 0 pairs whose memory is known and not zero"
    apart = judged("C4", tables(variables=[*IN_LOOP, *BATCHED[1:]]))
    assert "in book in_loop makes 3: 1×[100], 1×[101×100], 1×[] and batched 2: 1×[101×100], 1×[]" in apart.numbers


@pytest.mark.parametrize(
    ("contrasts", "verdict"),
    [
        ([contrast(1.0, "equivalent")], "the same as inside the loop"),
        ([contrast(1.2, "slower")], "not the same as inside the loop"),
        ([contrast(1.2, "slower"), contrast(1.0, "equivalent")], "depends: the same in 1, another in 1"),
        ([contrast(1.0, "inconclusive")], "this run can not tell"),
        (
            [contrast(1.2, "slower"), contrast(1.0, "inconclusive")],
            "not the same as inside the loop, wherever this run can tell",
        ),
        ([contrast(1.2, "slower", trusted=False)], "not yet judged"),
        ([], "not yet judged"),
    ],
)
def test_products_after_the_loop_are_compared_with_those_inside(contrasts, verdict):
    assert judged("C5", tables(contrasts=contrasts)).verdict == verdict


def test_the_projection_alone_is_judged_where_states_are_given():
    made = tables([gap(3.0, "slower", recurrence="given", contender="per_step"), gap(0.9, "faster")])
    assert judged("C6", made).verdict == "true here"


def test_a_smoke_run_judges_nothing_and_advises_nothing():
    made = tables([gap(1.5, "slower")], label="quick")
    assert "judges no claim" in claims.table_of(made)
    assert "no advice" in claims.advice(made)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([gap(1.5, "slower")], "project once, after the loop: inside it was slower in 1 of 1"),
        ([gap(0.9, "faster")], "project inside the loop: it was faster in 1 of 1"),
        ([gap(1.5, "slower"), gap(0.9, "faster")], "measure your own case: inside the loop was slower in 1 of 2"),
        ([gap(1.0, "equivalent")], "both forms cost the same in 1 of 1"),
        ([gap(1.0, "inconclusive")], "could not exclude one in 1 of 1"),
    ],
)
def test_advice_is_that_of_the_verdicts(gaps, said):
    assert said in claims.advice(tables(gaps))


def test_advice_names_the_layer_that_a_wrapper_forbids():
    made = tables([gap(1.5, "slower")], [contrast(2.5, "slower", "in_loop", "layer_batched")])
    assert "took 2.50 to 2.50 of the time (slower in 1, faster in 0)" in claims.advice(made)


def test_causes_name_what_a_compiler_made_of_a_form():
    rows = [counted("none", 40), counted("in_loop", 60), counted("per_step", 41), counted("batched", 41)]
    said = causes.everything(tables(evidence=rows))
    assert "In 2 of 3 counted programs" in said
    assert "- TensorFlow graph scan, per_step, forward: 1 for 20 (book, T=20)" in said
    assert (
        causes.counts(
            causes.by_place(tables(evidence=rows)), dict(zip(causes.PLACE, (*SEAT, "scan"), strict=True)), ["in_loop"]
        )
        == "60"
    )


def test_training_is_expected_to_issue_three_times_the_products():
    rows = [counted(p, n, pass_="train") for p, n in (("none", 100), ("in_loop", 160), ("batched", 103))]
    added = causes.added(tables(evidence=rows))
    assert (added.found == added.expected).all()
