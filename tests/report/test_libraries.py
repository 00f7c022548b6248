"""The table of libraries: which one multiplies each shape, what shows it, and at what rate."""

from types import SimpleNamespace

import pandas as pd

from harness.analysis.rates import RATES
from harness.analysis.tables import EVIDENCE
from harness.report import libraries
from harness.study.study import Workload

W = Workload(name="book", B=50, T=20, I=1, H=100, O=1)
STEP, ONCE = (50, 100, 1), (1000, 100, 1)
PLACE = {
    "framework": "tf",
    "execution": "eager",
    "device": "cpu",
    "threads": 1,
    "precision": "fp32",
    "workload": "book",
}
PROOF = "Eigen: no line of oneDNN for MatMul [50×100] · [100×1]; oneDNN: gemm_api,,undef,src:f32,,,48x100:100x7"


def program(shapes, library, **other):
    return PLACE | {"shapes": shapes, "library": library, "library_proof": PROOF, "missing": ""} | other


def tables(programs, rates=(), library="as_shipped"):
    place = ("tf", "eager", "cpu", 1, "fp32", "book")
    return SimpleNamespace(
        evidence=pd.DataFrame(programs, columns=EVIDENCE),
        rates=pd.DataFrame([(*place, *row) for row in rates], columns=RATES),
        study=SimpleNamespace(workloads=[W], library=library),
    )


def test_a_library_is_that_which_all_programs_with_the_product_have():
    both = "20×[50×100×1]; 20×[50×100×100]"
    programs = pd.DataFrame([program(both, "20×Eigen; 20×oneDNN"), program("20×[50×100×100]", "20×oneDNN")])
    assert libraries.libraries_of(programs, STEP) == "Eigen or oneDNN"
    fused = pd.DataFrame([program(both, "20×Eigen; 20×YNNPACK"), program(both, "20×XLA; 20×YNNPACK")])
    assert libraries.libraries_of(fused, STEP) == "Eigen or XLA or YNNPACK"  # not the one that they share
    alone = pd.DataFrame([*programs.to_dict("records"), program("20×[50×100×1]", "20×Eigen")])
    assert libraries.libraries_of(alone, STEP) == "Eigen"
    assert libraries.libraries_of(alone, ONCE) == libraries.NOT_KNOWN
    part = pd.DataFrame(
        [program("2×[50×100×1]", "1×MKL", missing="libraries: nothing shows what multiplied in 1 of 2")]
    )
    assert libraries.libraries_of(part, STEP) == libraries.NOT_KNOWN


def test_a_row_has_library_rate_share_and_proof():
    programs = [program("20×[50×100×1]", "20×Eigen"), program("1×[1000×100×1]", "1×oneDNN")]
    heading, _, row = libraries.section(tables(programs, [(*ONCE, 12.34, 0.5)])).splitlines()
    assert heading == "|  | book [50×100×1] | book [1000×100×1] | shown by |"
    assert row.startswith("| TensorFlow eager, 1 thread | Eigen, – | oneDNN, 12.3 GFLOP/s (50%) | Eigen: `no line of")
    assert row.endswith("[100×1]`; oneDNN: `gemm_api,,undef,src:f32,,,48x100:100x7` |")


def test_the_first_thread_count_comes_first():
    programs = [
        program("1×[1000×100×1]", "1×MKL", framework=name, threads=n) for n in (2, 1) for name in ("torch", "jax")
    ]
    rows = libraries.section(tables(programs)).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| JAX eager, 1 thread",
        "| PyTorch eager, 1 thread",
        "| JAX eager, 2 threads",
        "| PyTorch eager, 2 threads",
    ]


def test_older_records_have_no_table():
    assert libraries.section(tables([program("1×[1000×100×1]", "")])) == ""
    assert libraries.summary(tables([program("1×[1000×100×1]", "")])) == ""


def test_page_one_says_what_multiplies_all_steps_with_the_fewest_threads():
    programs = [program("1×[1000×100×1]", "1×oneDNN"), program("20×[50×100×1]", "20×Eigen")]
    said = libraries.summary(tables(programs, [(*ONCE, 12.34, 0.5), (*STEP, 3.0, 0.1)]))
    assert said.startswith("The product of all steps of book [1000×100×1], with the share of the best rate of any ")
    assert said.endswith("TensorFlow eager oneDNN, 12.3 GFLOP/s (50%).")


def test_plain_is_said_not_to_have_taken_effect_where_another_library_still_multiplies():
    programs = [
        program("1×[1000×100×1]", "1×Eigen", products=1),
        program("1×[1000×100×1]", "2×Eigen; 1×MKL", products=3, framework="torch"),
        program("1×[1000×100×1]", "", products=1, framework="numpy"),
    ]
    assert libraries.problems(tables(programs)) == []
    assert libraries.problems(tables(programs, library="plain")) == [
        "library plain: nothing shows whether it took effect in numpy eager",
        "library plain did not take effect: PyTorch eager still multiplies with MKL",
    ]
