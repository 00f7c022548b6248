"""The claims and causes, from tables made up here: a claim that is false reads as false."""

from types import SimpleNamespace

import pandas as pd
import pytest

from harness.analysis.gaps import GAPS
from harness.analysis.tables import EVIDENCE, VARIABLES
from harness.report import causes, claims

CONFIG = ("tf", "cpu", 1, "graph", "fp32", "book", "forward")
V1 = ("tf", "cpu", 1, "v1", "fp32", "book", "forward")  # TF1's own programs on the book's workload
T = 20


def row(place, ratio, verdict, trusted=True):
    """A row of a table of gaps, 1% wide either way."""
    direction = "longer" if ratio > 1.01 else "shorter" if ratio < 0.99 else "unknown"
    return (*place, ratio, ratio * 0.99, ratio * 1.01, 3, 40, verdict, trusted, 7.0, direction)


def gap(ratio, verdict, recurrence="scan", contender="in_loop", trusted=True, framework="tf", device="cpu"):
    place = (framework, device, *CONFIG[2:], recurrence, contender, "batched")
    return row(place, ratio, verdict, trusted)


def stated(ratio, verdict, pass_="forward", threads=1, workload="book", trusted=True):
    """A gap of TF1's own programs."""
    place = ("tf", "cpu", threads, "v1", "fp32", workload, pass_, "scan", "in_loop", "batched")
    return row(place, ratio, verdict, trusted)


def contrast(ratio, verdict, contender="per_step", baseline="in_loop", trusted=True):
    return row((*CONFIG, "scan", contender, baseline), ratio, verdict, trusted)


def counted(
    projection, products, flops=1000, temp=500.0, recurrence="scan", pass_="forward", configuration=CONFIG, moved=0
):
    place = (*configuration[:-1], pass_, recurrence, projection)
    return (*place, products, "", flops, moved, 99, "", 0, "", temp, None, None, "", None, "", "", "")


def listed(projection, *shapes, pass_="train"):
    place = (*CONFIG[:3], "v1", "fp32", "book", pass_, "scan", projection)
    return [(*place, f"variable{number}", shape) for number, shape in enumerate(shapes)]


def tables(gaps=(), contrasts=(), evidence=(), label="default", variables=(), prototypes=None):
    return SimpleNamespace(
        gaps=pd.DataFrame(gaps, columns=GAPS),
        contrasts=pd.DataFrame(contrasts, columns=GAPS),
        evidence=pd.DataFrame(evidence, columns=EVIDENCE),
        variables=pd.DataFrame(variables, columns=VARIABLES),
        times=pd.DataFrame([("book", "rnn_relu", T)], columns=["workload", "cell", "T"]),
        prototype_reasons=prototypes or {},
        study=SimpleNamespace(label=label, margin=0.02),
    )


def test_a_gpu_is_counted_beside_a_cpu_with_another_number_of_threads():
    gpu = ("tf", "gpu", 16, *CONFIG[3:])
    places = (CONFIG, ("tf", "cpu", 16, *CONFIG[3:]), gpu)
    both = [
        counted(projection, 41 + 19 * (projection == "in_loop"), configuration=place)
        for place in places
        for projection in ("in_loop", "batched")
    ]
    kept = causes.rows_with_fewest_threads(tables(evidence=both).evidence)
    assert set(zip(kept.device, kept.threads, strict=True)) == {("cpu", 1), ("gpu", 16)}
    assert judged("C3", tables(evidence=both)).numbers.endswith("in 2 of 2 pairs of programs")


def test_verdicts_of_a_cpu_and_a_gpu_are_told_apart():
    alone = {"recurrence": "given", "contender": "per_step"}
    made = judged("C6", tables([gap(1.5, "slower", **alone), gap(0.9, "faster", device="gpu", **alone)]))
    assert made.numbers.startswith("cpu: 1 slower, 0 faster")
    assert "gpu: 0 slower, 1 faster" in made.numbers


def judged(name, made):
    return next(claim.check(made) for claim in claims.CLAIMS if claim.name == name)


LONG, SHORT = "slower", "faster"
SOME = "not known in others"


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([stated(1.5, LONG)], "true here"),
        ([stated(0.9, SHORT)], "false here"),
        ([stated(1.0, "equivalent")], "false here"),
        ([stated(1.0, "inconclusive")], "this run cannot tell"),
        ([stated(1.5, LONG), stated(0.9, SHORT, "train")], "true in forward, 1 thread; false in train, 1 thread"),
        (
            [stated(1.5, LONG), stated(1.0, "inconclusive", threads=2)],
            "true in forward, 1 thread; not known in forward, 2 threads",
        ),
        ([stated(1.5, LONG, trusted=False)], "not yet judged"),
        ([stated(1.5, LONG, workload="vocab")], "not yet judged"),
        ([gap(1.5, LONG)], "not yet judged"),
        ([stated(0.9, SHORT), gap(1.5, LONG), gap(1.5, LONG, framework="jax")], "false here"),
    ],
)
@pytest.mark.parametrize("claim", ["C1", "C7"])
def test_what_was_said_of_tf1_is_judged_by_its_own_programs_on_the_book(claim, gaps, verdict):
    assert judged(claim, tables(gaps)).verdict == verdict


def test_a_stated_gap_that_is_left_out_is_told():
    made = tables([stated(1.5, LONG), stated(0.9, SHORT, "train", trusted=False)])
    assert judged("C1", made).numbers.endswith("(forward, 1 thread), and 1 left out ⚠")
    assert claims.original_sentence(made).endswith("(forward, 1 thread), and 1 left out ⚠.")


def test_where_else_a_claim_holds_stands_beside_it_and_is_counted_nowhere():
    others = [gap(1.5, LONG), gap(1.2, LONG, "unrolled"), gap(1.1, "inconclusive", framework="jax")]
    others += [gap(1.5, LONG, framework="torch"), gap(0.9, SHORT, framework="torch")]
    found = judged("C1", tables([stated(0.9, SHORT), *others]))
    assert found.numbers.startswith("as stated (TensorFlow v1, book): 0.900 [0.891, 0.909] faster (forward, 1 thread)")
    assert "true in all programs: TensorFlow graph" in found.elsewhere
    assert "this run cannot tell: JAX graph" in found.elsewhere
    assert "depends: true in some programs, false in others: PyTorch graph" in found.elsewhere
    assert "JAX" not in judged("C7", tables([stated(0.9, SHORT), *others])).elsewhere
    without = judged("C1", tables(others))
    assert without.numbers == "this run has no original TF1 program (execution v1 of tf) on book"


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ([LONG, LONG], "true here"),
        ([LONG, *["inconclusive"] * 9], f"true in some programs, {SOME}"),
        (["equivalent", *["inconclusive"] * 9], f"false in some programs, {SOME}"),
        ([LONG, SHORT, "equivalent"], "depends: true in some programs, false in others"),
        (["inconclusive"], "this run cannot tell"),
    ],
)
def test_one_gap_among_inconclusive_ones_makes_no_claim_true_and_none_is_a_tally(verdicts, verdict):
    made = [gap(1.2, each, "given", "per_step") for each in verdicts]
    assert judged("C6", tables(made)).verdict == verdict


def test_products_and_operations_are_judged_by_what_was_counted():
    right = [counted("none", 40), counted("in_loop", 60), counted("batched", 41)]
    assert judged("C2", tables(evidence=right)).verdict == "as layers not counted; as products true here"
    assert judged("C3", tables(evidence=right)).verdict == "true here"
    merged = [counted("none", 40), counted("in_loop", 41), counted("batched", 41)]
    assert judged("C2", tables(evidence=merged)).verdict == "as layers not counted; as products false here"
    more = [counted("none", 40), counted("in_loop", 60), counted("batched", 41, flops=999)]
    assert judged("C3", tables(evidence=more)).verdict == "false here"
    assert judged("C3", tables()).verdict == "not yet judged"


@pytest.mark.parametrize(
    ("in_loop", "verdict", "said"),
    [
        (2, "as layers false here", "in 1 of 1 pairs of programs"),
        (2 * T, "as layers true here", "(book train: 40 and 2; a layer for each step would be 40)"),
    ],
)
def test_a_layer_for_each_step_is_told_by_the_arrays_that_programs_keep(in_loop, verdict, said):
    kept = [
        *listed("none", "[100]"),
        *listed("batched", *["[100]"] * 3),
        *listed("in_loop", *["[100]"] * (1 + in_loop)),
    ]
    found = judged("C2", tables(variables=kept))
    assert found.verdict.startswith(verdict)
    assert said in found.numbers


def test_a_pair_that_a_compiler_changed_is_unequal_and_says_what_changed():
    swapped = [counted("none", 40), counted("in_loop", 41), counted("batched", 60, flops=999)]
    found = judged("C3", tables(evidence=swapped))
    assert found.verdict == "false here"
    assert "equal in 0 of 1 pairs" in found.numbers
    assert "TensorFlow graph scan book forward 41 in the loop and 60 after it" in found.numbers
    equal = [counted(name, n, recurrence="unrolled") for name, n in (("none", 40), ("in_loop", 60), ("batched", 41))]
    both = judged("C3", tables(evidence=[*equal, *swapped]))
    assert both.verdict == "depends: true in some programs, false in others"


@pytest.mark.parametrize(
    ("in_loop", "batched", "verdict", "said"),
    [
        # a compiler made multiplications of products, and no `none` beside them tells
        ((0, 50, 0), (1, 270, 0), "false here", "a compiler made something else of a product"),
        ((0, None, None), (1, 270, 0), "this run cannot tell", "1 pair is not known"),
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
    assert "0.50" in found.elsewhere
    assert found.elsewhere.startswith("of the arms here, peak temporary memory")
    assert judged("C4", tables()).verdict == "not yet judged"


FORWARD_IN_LOOP, FORWARD_BATCHED = (listed(form, "[100]", pass_="forward") for form in ("in_loop", "batched"))
IN_LOOP, BATCHED = listed("in_loop", "[101×100]", "[100]", "[]"), listed("batched", "[100]", "[]", "[101×100]")


@pytest.mark.parametrize(
    ("variables", "in_loop_bytes", "verdict"),
    [
        ([*IN_LOOP, *BATCHED], 50.0, "as variables true here; as memory false here"),
        ([*IN_LOOP, *BATCHED], 100.0, "as variables true here; as memory true here"),
        (
            [*IN_LOOP, *BATCHED],
            101.0,
            "as variables true here; as memory false here",
        ),  # times have a margin, bytes none
        ([*IN_LOOP, *BATCHED], 0.0, "as variables true here; as memory not yet judged"),
        ([*IN_LOOP, *BATCHED[1:]], 50.0, "as variables false here; as memory false here"),
        (IN_LOOP, 50.0, "as variables not yet judged; as memory false here"),
    ],
)
def test_variables_and_bytes_are_those_of_tf1s_own_programs_on_the_book(variables, in_loop_bytes, verdict):
    memory = [
        counted("in_loop", 60, temp=in_loop_bytes, configuration=V1),
        counted("batched", 41, temp=100.0, configuration=V1),
    ]
    others = [counted("in_loop", 60, temp=7.0), counted("batched", 41, temp=7.0)]
    found = judged("C4", tables(evidence=[*memory, *others], variables=variables))
    assert found.verdict == verdict
    assert "peak temporary memory of in_loop/batched is 1.00" in found.elsewhere


def test_variables_that_differ_are_named():
    alike = judged("C4", tables(variables=[*IN_LOOP, *BATCHED]))
    assert alike.numbers == "both forms make the same variables in 1 of 1 pairs (book: 3: 1×[100], 1×[101×100], 1×[])"
    assert alike.cells == "1 pair of variables, 0 of memory as stated; 0 elsewhere"
    apart = judged("C4", tables(variables=[*IN_LOOP, *BATCHED[1:]]))
    assert "in book in_loop makes 3: 1×[100], 1×[101×100], 1×[] and batched 2: 1×[101×100], 1×[]" in apart.numbers
    forward = judged("C4", tables(variables=[*FORWARD_IN_LOOP, *FORWARD_BATCHED]))
    assert forward.verdict == "not yet judged"


def test_a_prototype_has_no_part_in_claims_of_what_was_counted():
    odd = [counted("none", 40), counted("in_loop", 40), counted("batched", 40, flops=999)]
    plain = [counted(name, n, recurrence="unrolled") for name, n in (("none", 40), ("in_loop", 60), ("batched", 41))]
    marked = tables(evidence=[*odd, *plain], prototypes={("tf", "graph", "scan"): "why"})
    assert judged("C2", marked).verdict == "as layers not counted; as products true here"
    assert judged("C3", marked).verdict == "true here"
    assert judged("C3", tables(evidence=[*odd, *plain])).verdict != "true here"


@pytest.mark.parametrize(
    ("contrasts", "verdict"),
    [
        ([contrast(1.0, "equivalent")], "the same as inside the loop"),
        ([contrast(1.2, "slower")], "not the same as inside the loop"),
        (
            [contrast(1.2, "slower"), contrast(1.0, "equivalent")],
            "depends: the same in some programs, not the same in others",
        ),
        ([contrast(1.0, "inconclusive")], "this run cannot tell"),
        (
            [contrast(1.2, "slower"), contrast(1.0, "inconclusive")],
            "not the same as inside the loop in some programs, not known in others",
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
    assert "judges no claim" in claims.claims_table(made)
    assert "no advice" in claims.advice(made)


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([gap(1.5, "slower")], "project once, after the loop: inside it was slower in 1 of 1"),
        ([gap(0.9, "faster")], "project inside the loop: it was faster in 1 of 1"),
        (
            [gap(1.5, "slower"), gap(0.9, "faster")],
            "measure your own case: of 2 comparisons, inside the loop was slower in 1, up to 1.50",
        ),
        (
            [gap(1.5, "slower"), gap(0.95, "inconclusive")],
            "slower in 1, up to 1.50 times (book forward, scan, 1 thread) "
            "and took less time in 1 (book forward, scan, 1 thread)",
        ),
        (
            [gap(1.1, "inconclusive"), gap(0.9, "faster")],
            "took longer in 1 (book forward, scan, 1 thread) and faster in",
        ),
        ([gap(1.0, "equivalent")], "both forms cost the same in 1 of 1"),
        ([gap(1.1, "inconclusive")], "inside took longer in 1 and shorter in 0 of 1 comparisons"),
    ],
)
def test_advice_is_that_of_the_verdicts(gaps, said):
    assert said in claims.advice(tables(gaps))


def test_advice_names_the_layer_that_a_wrapper_forbids():
    made = tables([gap(1.5, "slower")], [contrast(2.5, "slower", "in_loop", "layer_batched")])
    assert "took 2.50 of the time (longer in 1, shorter in 0 of 1 comparison)" in claims.advice(made)


def test_causes_name_what_a_compiler_made_of_a_form():
    rows = [counted("none", 40), counted("in_loop", 60), counted("per_step", 41), counted("batched", 41)]
    said = causes.section_text(tables(evidence=rows))
    assert "In 2 of 3 counted programs" in said
    assert "- TensorFlow graph scan, per_step, forward: 1 for 20 (book, T=20)" in said
    assert (
        causes.format_product_counts(
            causes.product_counts(tables(evidence=rows)),
            dict(zip(causes.PLACE, (*CONFIG, "scan"), strict=True)),
            ["in_loop"],
        )
        == "60"
    )


def test_training_is_expected_to_issue_three_times_the_products():
    rows = [counted(p, n, pass_="train") for p, n in (("none", 100), ("in_loop", 160), ("batched", 103))]
    added = causes.added_products(tables(evidence=rows))
    assert (added.found == added.expected).all()
