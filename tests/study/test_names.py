"""Names: one rule for what they may be, no two things of one name, and no name that says what is not so."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.errors import UsageError
from harness.records.store import FILE, PACKED, read_run
from harness.report import markdown, several
from harness.run import session
from harness.study.study import KNOWN, LONGEST_NAME, NAMED, NAMES, Workload, load_study, points_around, slugify
from tests.made import lines as contents
from tests.records.test_malformed import written

REPORTS = Path(__file__).parents[2] / "reports"
SIZES = {"B": 2, "T": 3, "I": 2, "H": 4, "O": 5}
STRANGE = [
    "../../escaped", "/tmp/escaped", "a/b", "..", ".", ".hidden", "-dash", "_under", "", " ", "a b", "a\nb", "a\n",
    "a\x00b", "a|b", "a`b", "```", "a*b", "a<b>", "a.b", "x.weights", "name\u00e9", "\uff11", "\u202etxt",
    "x" * 65, "x" * 300,
]  # fmt: skip


def toml(*tables):
    """A study file's text with these tables as workloads."""
    inline = ("{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}" for table in tables)
    return f"workloads = [{', '.join(inline)}]\n"


def loaded(text, tmp_path):
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    return load_study(tmp_path / "study.toml", None, {})


@pytest.mark.parametrize("key", ["workloads", "sweep"])
@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_is_none_is_refused_with_the_rule(name, key, tmp_path):
    text = toml({"name": name} | SIZES)
    text = text if key == "workloads" else text.replace("workloads = [", "sweep = ").replace("]\n", "\n")
    with pytest.raises(UsageError) as refused:
        loaded(text, tmp_path)
    assert NAMES in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["a", "7", "mine", "my_workload-2", "NaN", "x" * LONGEST_NAME, "figures", "twin"])
def test_a_name_that_is_one_is_taken(name, tmp_path):
    (chosen,) = loaded(toml({"name": name} | SIZES), tmp_path).workloads
    assert chosen.name == name


def test_known_names_and_those_made_of_sizes_keep_the_rule():
    largest = Workload(name="w", B=65536, T=1, I=1, H=1, O=1)
    points = [point for centre in (*NAMED.values(), largest) for point in points_around(centre)]
    assert all(Workload(**point.model_dump()) == point for point in [*KNOWN.values(), *points])


def test_points_of_a_sweep_around_the_longest_name_are_all_there_and_keep_the_rule():
    long = NAMED["book"].model_copy(update={"name": "x" * LONGEST_NAME})
    assert len(points_around(long)) == len(points_around(NAMED["book"]))
    assert all(Workload(**point.model_dump()) for point in points_around(long))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=LONGEST_NAME))
def test_any_text_becomes_a_name_or_nothing(text):
    made = slugify(text)
    assert not made or Workload(name=made, **SIZES).name == made


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([{"name": "a"} | SIZES, {"name": "a"} | SIZES | {"B": 3}], "two have the name a"),
        ([{"name": "a"} | SIZES, {"name": "A"} | SIZES | {"B": 3}], "two have the name a"),
        ([NAMED["book"].model_dump(), NAMED["book"].model_dump() | {"B": 3}], "two have the name book"),
        ([{"name": "book"} | SIZES], "the name book is kept for B=50,T=20,I=1,H=100,O=1,cell=rnn_relu"),
        ([NAMED["book"].model_dump() | {"I": 3}], "the name book is kept"),
        ([NAMED["book"].model_dump() | {"T": 400}], "the name book is kept"),
        ([NAMED["book"].model_dump() | {"name": "Book"}], "the name Book is kept"),
        ([{"name": "deepbench-lstm-512-16"} | SIZES], "is kept for"),
        ([{"name": "B8-T40-I16-H128-O500-rnn_tanh"} | SIZES], "says other sizes than the workload's"),
        ([{"name": "B2-T3-I2-H4-O5-lstm"} | SIZES], "says other sizes than the workload's"),
        ([{"name": "b2-t3-i2-h4-o5-rnn_tanh"} | SIZES], "says other sizes than the workload's"),
    ],
)
def test_no_two_workloads_of_one_name_and_no_name_of_other_sizes(tables, why, tmp_path):
    with pytest.raises(UsageError, match=why):
        loaded(toml(*tables), tmp_path)


def test_a_known_name_with_its_own_sizes_is_that_workload(tmp_path):
    named = {"name": "B2-T3-I2-H4-O5-rnn_tanh"} | SIZES
    assert loaded(toml(NAMED["book"].model_dump(), named), tmp_path).workloads[0] == NAMED["book"]


@pytest.mark.parametrize("name", ["book-T5", "BOOK-t5", "book-centre"])
def test_a_workload_has_no_name_of_a_point_of_the_sweep(name, tmp_path):
    with pytest.raises(UsageError, match="has the name of a point of the sweep"):
        loaded('sweep = "book"\n' + toml({"name": name} | SIZES), tmp_path)


def test_a_centre_of_the_sweep_has_no_name_of_other_sizes_either(tmp_path):
    with pytest.raises(UsageError, match="the name book is kept"):
        loaded('sweep = {name = "book", B = 1, T = 1, I = 1, H = 1, O = 1}', tmp_path)


def test_sizes_given_twice_in_another_order_are_one_workload_twice():
    with pytest.raises(UsageError, match="twice"):
        load_study(None, None, {"workloads": ["B=1,T=2,I=3,H=4,O=5", "T=2,B=1,I=3,H=4,O=5,cell=rnn_tanh"]})


@pytest.mark.parametrize(
    "given",
    [
        {"frameworks": ["torch", "torch"]},
        {"executions": ["eager", "eager"]},
        {"devices": ["cpu", "cpu"]},
        {"threads": [1, 1]},
        {"threads": ["all", "all"]},
        {"precisions": ["fp32", "fp32"]},
        {"projections": ["in_loop", "in_loop"]},
        {"recurrences": ["scan", "scan"]},
        {"workloads": ["book", "book"]},
    ],
)
def test_nothing_is_asked_for_twice(given):
    with pytest.raises(UsageError, match="twice"):
        load_study(None, None, given)


@pytest.fixture(scope="module")
def lines():
    """The first record of committed ones, and a block."""
    first, *records = contents(max(REPORTS.glob(f"*-2-cores/{PACKED}")).parent)
    block = next(r for r in records if r["kind"] == "block" and r["workload"]["name"] == "book")
    return [first | {name: first[name][:40] for name in ("cells", "absent")}, block]


def put(lines, folder):
    (folder / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def in_block(lines, name):
    lines[1]["workload"]["name"] = name


def in_study(lines, name):
    lines[0]["study"]["workloads"][0]["name"] = name


def in_cell(lines, name):
    lines[0]["cells"][0]["workload"] = name


def in_file(lines, name):
    lines[0]["weights"][f"{name}.weights.safetensors"] = "0"


@pytest.mark.parametrize("change", [in_block, in_study, in_cell, in_file])
@pytest.mark.parametrize("name", ["../../escaped", "a|b", "a\nb", "a`", "x" * 300, ""])
def test_records_with_a_name_that_is_none_are_refused(lines, change, name, tmp_path):
    changed = json.loads(json.dumps(lines))
    change(changed, name)
    with pytest.raises(UsageError, match=r"is no name|is no file") as refused:
        written(put(changed, tmp_path))
    assert len(str(refused.value).splitlines()) == 1


def test_records_with_one_name_for_two_workloads_are_refused(lines, tmp_path):
    changed = json.loads(json.dumps(lines))
    changed[1]["workload"] |= {"H": 7}
    with pytest.raises(UsageError, match=f"line 2: workload {lines[1]['workload']['name']} had other sizes before it"):
        read_run(put(changed, tmp_path))
    changed = json.loads(json.dumps(lines))
    changed[0]["study"]["workloads"] = [{"name": "a"} | SIZES, {"name": "a"} | SIZES | {"B": 3}]
    with pytest.raises(UsageError, match="two have the name a"):
        read_run(put(changed, tmp_path))


def test_records_of_a_known_name_with_sizes_that_it_no_longer_has_are_read(lines, tmp_path):
    """A report makes no inputs: an older version may have meant other sizes by it."""
    changed = json.loads(json.dumps(lines))
    for workload in (changed[0]["study"]["workloads"][0], changed[1]["workload"]):
        workload |= {"name": "book", "B": 7}
    changed[0]["study"]["workloads"] = changed[0]["study"]["workloads"][:1]
    assert len(read_run(put(changed, tmp_path))) == 2


def test_a_worker_refuses_such_a_name_too():
    with pytest.raises(ValidationError, match="is no name"):
        Workload(name="../../escaped", **SIZES)


def test_a_run_of_two_workloads_of_one_name_leaves_no_folder(tmp_path, numpy_backend):
    with pytest.raises(UsageError, match="two have the name"):
        session.run(
            loaded(toml({"name": "a"} | SIZES, {"name": "a"} | SIZES | {"B": 3}), tmp_path), tmp_path / "run", False, ""
        )
    assert os.listdir(tmp_path) == ["study.toml"]


def named_runs(*folders):
    """Runs in these folders, all measured on one machine and day."""
    header = SimpleNamespace(basis=SimpleNamespace(machine={"cpu": "EPYC", "cores": 2}))
    tables = SimpleNamespace(header=header, blocks=[SimpleNamespace(began="2026-11-24T10:00:00+00:00")])
    return [several.MeasuredRun(Path(folder), tables) for folder in folders]


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["/x/a`b|c", "/x/b"], ["a-b-c", "b"]),
        (["/x/.hidden", "/x/-dash"], ["dash", "hidden"]),
        (["/x/A", "/y/a"], ["2026-11-24-epyc-2-cores", "2026-11-24-epyc-2-cores-2"]),
        (["/x/Figures", "/y/b"], ["2026-11-24-epyc-2-cores", "b"]),
        (["/x/\u00e9", "/y/b"], ["2026-11-24-epyc-2-cores", "b"]),
        (["/x/report.md", "/y/b"], ["b", "report-md"]),
        (["/x/" + "n" * 250, "/y/b"], ["b", "n" * LONGEST_NAME]),
        (
            ["/x/run", "/y/run", "/z/2026-11-24-EPYC-2-cores-2"],
            ["2026-11-24-EPYC-2-cores-2", "2026-11-24-epyc-2-cores", "2026-11-24-epyc-2-cores-3"],
        ),
    ],
)
def test_labels_of_runs_keep_the_rule_and_no_two_are_one(folders, labels):
    assert sorted(several.label_runs(named_runs(*folders))) == labels


def test_a_reason_of_several_lines_breaks_no_table_and_no_list(lines, tmp_path):
    assert markdown.table(["a"], [["one\ntwo|three"]]).splitlines()[-1] == "| one two\\|three |"
    changed = json.loads(json.dumps(lines))
    arm = next(iter(changed[1]["arms"].values()))
    arm |= {
        "status": "failed",
        "reason": "it ended:\n# not a title",
        "samples_ns": [],
        "faults": [],
        "first_call_ns": None,
    }
    text = written(put(changed, tmp_path))
    assert "it ended: # not a title" in text
    assert "\n# not a title" not in text
