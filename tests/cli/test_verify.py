"""What `verify --save-outputs` keeps: every cell's outputs in a file of their own, and nothing that was there lost."""

import itertools

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.cli import app as cli
from harness.cli import verify
from harness.errors import UsageError
from harness.machine import environment
from harness.study import matrix
from harness.study.matrix import Framework
from harness.study.study import NAMED, Study, points_around
from harness.verify import tolerance
from tests.conftest import SMALL
from tests.made import execution

OTHER = SMALL.model_copy(update={"name": "other", "H": 9})


def planned(**changed):
    """A plan of three arms in two frameworks of two executions each, on two devices."""
    executions = dict.fromkeys(("inductor", "inductor-batched"), execution(loop="scan"))
    study = Study(
        **{
            "threads": [1, 2, "all"],
            "precisions": ["fp32", "fp64"],
            "recurrences": ["scan"],
            "projections": ["none", "in_loop", "batched"],
            "workloads": [SMALL],
            **changed,
        }
    )
    frameworks = [
        Framework(name, executions=executions, devices={"cpu": None, "gpu": None}) for name in ("torch", "jax")
    ]
    return matrix.make_plan(study, frameworks, matrix.thread_counts(study, 4))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"threads": [1]},
        {"workloads": [SMALL, OTHER]},
        {"threads": [2], "workloads": [SMALL, OTHER, NAMED["book"]]},
        {"sweep": NAMED["book"]},
        {"threads": [1], "sweep": SMALL, "workloads": [NAMED["book"]]},
    ],
)
def test_no_two_cells_share_a_file(changed, tmp_path):
    cells = planned(**changed).cells
    files = verify.output_files(tmp_path, planned(**changed))
    assert set(files) == set(cells)
    paths = [str(path).lower() for path in files.values()]
    assert len(set(paths)) == len(set(cells)) == len(cells) > 8


def test_names_tell_only_what_there_is_several_of(tmp_path):
    names = {path.relative_to(tmp_path) for path in verify.output_files(tmp_path, planned(threads=[2])).values()}
    assert {str(name) for name in names if "jax-cpu-inductor-fp32-scan-in_loop" in str(name)} == {
        "jax-cpu-inductor-fp32-scan-in_loop-forward.safetensors",
        "jax-cpu-inductor-fp32-scan-in_loop-train.safetensors",
    }
    names = {path.name for path in verify.output_files(tmp_path, planned(threads=[1, 2])).values()}
    assert "jax-cpu-2threads-inductor-fp32-scan-in_loop-train.safetensors" in names


def test_points_of_a_sweep_have_a_folder_each(tmp_path):
    folders = {path.parent.name for path in verify.output_files(tmp_path, planned(sweep=NAMED["book"])).values()}
    assert folders == {"small", *(point.name for point in points_around(NAMED["book"]))}


@pytest.fixture
def two_cores(monkeypatch, numpy_backend):
    monkeypatch.setattr(environment, "cores", lambda: 2)


def verified(folder, **changed):
    given = {"frameworks": ["numpy"], "threads": [1, 2], "workloads": [SMALL], "precisions": ["fp32", "fp64"]}
    return verify.verify(Study(**(given | changed)), folder)


def test_every_thread_count_precision_and_pass_keeps_its_outputs(tmp_path, two_cores, capsys):
    assert verified(tmp_path / "new" / "deep") == 0
    files = sorted((tmp_path / "new" / "deep").iterdir())
    (framework,) = matrix.select_frameworks(
        Study(frameworks=["numpy"]), verify.session.probe(Study(frameworks=["numpy"]), [1, 2])
    )
    study = Study(frameworks=["numpy"], threads=[1, 2], workloads=[SMALL], precisions=["fp32", "fp64"])
    assert len(files) == len(matrix.make_plan(study, [framework], [1, 2]).cells)
    for threads, precision in itertools.product((1, 2), ("fp32", "fp64")):
        arrays = load_file(
            tmp_path
            / "new"
            / "deep"
            / f"numpy-cpu-{threads}threads-eager-{precision}-unrolled-batched-forward.safetensors"
        )
        assert arrays["y"].dtype == {"fp32": np.float32, "fp64": np.float64}[precision]


def test_what_is_there_already_is_kept(tmp_path, two_cores, capsys):
    """Another verification's outputs have the same names, whatever its sizes were."""
    (tmp_path / "mine.txt").write_text("mine")
    assert verified(tmp_path, threads=[1], passes=["forward"]) == 0
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="is there already and would be lost: give another --save-outputs"):
        verified(tmp_path, threads=[1], passes=["forward"], workloads=[OTHER])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert verified(tmp_path, threads=[1], passes=["train"]) == 0
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("place", ["file", "file/outputs"])
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(place, tmp_path, two_cores):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written into"):
        verified(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_sample_is_said_to_be_one(tmp_path, two_cores, capsys, monkeypatch):
    monkeypatch.setattr(tolerance, "SAMPLED_BYTES", 1)
    assert verified(tmp_path, threads=[1], precisions=["fp32"]) == 0
    said = capsys.readouterr().out
    assert "checked on a sample drawn afterwards: small forward: 1 of 3 sequences" in said
    assert "small train" not in said


def test_files_and_a_seed_that_are_given_are_those_of_the_study(monkeypatch):
    studies = []
    monkeypatch.setattr(verify, "verify", lambda study, *others: studies.append(study) or 0)
    monkeypatch.setattr("sys.argv", ["harness", "verify", "--weights", "a", "--inputs", "b", "--seed", "3"])
    with pytest.raises(SystemExit):
        cli.main()
    assert [(study.weights, study.inputs, study.seed) for study in studies] == [("a", "b", 3)]
