"""`explain`: which cell words name, and what is said of one."""

import pytest

from harness.cli import explain
from harness.errors import UsageError
from impls.interface import Arm

EXECUTIONS = ("eager", "xla", "inductor")


def test_a_cell_is_named_by_words_in_any_order():
    words = ["train", "torch/inductor", "scan", "in_loop", "B=1,T=2,I=3,H=4,O=5,cell=gru"]
    cell = explain.parse_cell(explain.split_cell(words), EXECUTIONS)
    assert (cell.framework, cell.execution, cell.arm) == ("torch", "inductor", Arm("scan", "in_loop"))
    assert (cell.pass_, cell.precision, cell.workload.cell, cell.workload.T) == ("train", "fp32", "gru", 2)
    assert explain.parse_cell(["jax", "xla", "scan", "bmm"], EXECUTIONS).workload.name == "book"
    assert explain.parse_cell(["chunked_4", "jax", "xla", "scan"], EXECUTIONS).arm.name == "scan_chunked_4"


def test_no_two_cells_have_one_folder():
    words = ["torch", "inductor", "scan", "in_loop"]
    further = [[], ["train"], ["bf16"], ["gpu"], ["vocab"], ["B=1,T=2,I=3,H=4,O=5"], ["gpu", "train"]]
    places = [explain._folder_name(explain.parse_cell([*words, *more], EXECUTIONS)) for more in further]
    assert len(set(places)) == len(further)
    assert places[0] == "torch-inductor-scan_in_loop-book-forward-fp32"


@pytest.mark.parametrize("words", [[""], ["torch", ""], ["torch//eager"], ["torch/eager/"], ["/"]])
def test_an_empty_word_is_refused(words):
    with pytest.raises(UsageError, match="has an empty word"):
        explain.split_cell(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["torch", "inductr", "scan", "in_loop"], "did you mean inductor?"),
        (["torch", "inductor", "scan"], "a cell needs its projection: none, in_loop"),
        (["torch", "jax", "xla", "scan", "bmm"], "one framework, but torch and jax"),
        (["jax", "xla", "scan", "bmm", "B=0,T=1,I=1,H=1,O=1"], "greater than or equal to 1"),
        (["jax", "xla", "scan", "bmm", "B=1"], "lacks T, I, H, O"),
    ],
)
def test_what_names_no_cell_is_refused_in_one_sentence(words, said):
    with pytest.raises(UsageError, match=said.replace("?", r"\?")) as refused:
        explain.parse_cell(words, EXECUTIONS)
    assert "\n" not in str(refused.value)


def test_a_cell_is_counted_and_its_program_saved(framework, tmp_path, capsys, asked_once):
    words = [framework, "eager", "unrolled", "batched", "B=3,T=5,I=2,H=16,O=4", "train"]
    assert explain.explain(words, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "27: " in said  # 5 × 2 forward and, of d_h, d_w_in and d_w_rec, 4 + 5 + 5; the projection's are 3
    assert "29,184" in said
    (text,) = (tmp_path / "out").iterdir()
    assert text.stat().st_size > 500
    assert text.name in said.replace("\n", "")


def test_a_cell_that_is_not_to_be_had_is_refused_with_its_reason(tmp_path, numpy_backend):
    with pytest.raises(UsageError, match="no symbolic loop"):
        explain.explain(["numpy", "eager", "scan", "batched"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
