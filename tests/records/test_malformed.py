"""Malformed input on every surface: it is taken as valid or refused in one sentence, and nothing is touched."""

import json
import string
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from harness import report
from harness.analysis import loading
from harness.cli import app as cli
from harness.cli import verify
from harness.errors import UsageError
from harness.records.store import FILE, PACKED, SCHEMA
from harness.report import figures, sweeps
from harness.run import session
from harness.study import weights
from harness.study.study import Study, load_study
from tests.conftest import SMALL
from tests.made import lines as contents

REPORTS = Path(__file__).parents[2] / "reports"
many = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = """
run verify report list selftest doctor --all --quick --rigorous --resume --real --framework --threads
--execution --recurrence --projection --pass --precision --workload --processes --rounds --budget --seed
--timeout --unroll-limit --weights --inputs --out torch tf,jax xla 1 0 -1 1e9 nan inf book B=1
B=1,T=2,I=3,H=4,O=5 = --
""".split()  # noqa: SIM905
words = st.sampled_from(["", *WORDS])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts, lambda v: st.lists(v) | st.dictionaries(texts, v)
)


def refused(made):
    """Whether what was made was refused, with a sentence; anything else it raises is a failure."""
    try:
        made()
    except UsageError as error:
        said = str(error)
    else:
        return False
    assert said.strip()
    assert "\n" not in said
    return True


@many
@given(arguments=st.lists(words | texts, max_size=7))
def test_command_lines(arguments, tmp_path, monkeypatch, capfd):
    """Whatever parses would be carried out: that part is replaced, so that nothing is measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    for place, name in ((cli, "_run"), (verify, "verify"), (verify, "listing"), (report, "write")):
        monkeypatch.setattr(place, name, lambda *given, **options: 0)
    for name in ("harness.selftest.coverage.say", "harness.cli.doctor.say"):
        monkeypatch.setattr(name, lambda *given, **options: 0)
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capfd.readouterr().err
    assert left.value.code in (0, 2)
    assert len(said.strip().splitlines()) == (left.value.code == 2), said
    assert not list(tmp_path.iterdir())


@many
@given(given=st.dictionaries(st.sampled_from(list(Study.model_fields)) | texts, values, min_size=1, max_size=3))
def test_study_files(given, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in given.items()))
    if not refused(lambda: load_study(path, None, {})):
        assert set(given) <= set(Study.model_fields)


@many
@given(data=st.data())
def test_weights(data, tmp_path):
    """A valid file with a few bytes changed, cut or added; a change inside the numbers may well be valid."""
    whole = bytearray(save(weights.make_weights(SMALL, 1)))
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for at in data.draw(st.lists(st.integers(0, header + 40), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), len(whole) - 1, header, header - 1, 8, 7, 0]))
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes(whole[:cut]) + data.draw(st.sampled_from([b"", b"x"])))
    if not refused(lambda: weights.read_arrays(path, weights.WEIGHTS, SMALL)):
        found = weights.read_arrays(path, weights.WEIGHTS, SMALL)
        assert all(found[name].shape == SMALL.shapes[name] and np.isfinite(found[name]).all() for name in found)


@pytest.fixture(scope="module")
def lines():
    """Of committed records, the first of every kind, and a block with rates and one with evidence."""
    records = contents(max(REPORTS.glob(f"*-2-cores/{PACKED}")).parent)
    blocks = [record for record in records if record["kind"] == "block"]
    counted = (block for block in blocks if any(arm.get("evidence") for arm in block["arms"].values()))
    rated = (block for block in blocks if block.get("rates"))
    others = [next(r for r in records if r["kind"] == kind) for kind in ("check", "forecast")]
    resumed = {"schema": SCHEMA, "key": "0-0", "kind": "resumed", "status": "ok", "reason": "", "command": "run"}
    heading = records[0] | {name: records[0][name][:40] for name in ("cells", "absent")}
    return [heading, next(counted), next(rated), blocks[-1], *others, resumed | {"budget_s": 60.0}]


@many
@given(data=st.data())
def test_records(lines, data, tmp_path):
    """Committed records with values exchanged for others, keys dropped and lines cut."""
    lines = [json.dumps(line) for line in lines]
    at = data.draw(st.integers(0, len(lines) - 1))
    found = json.loads(lines[at])
    where = found
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [value for value in where.values() if isinstance(value, dict) and value]
        where = data.draw(st.sampled_from(inner)) if inner else where
    key = data.draw(st.sampled_from(sorted(where)))
    if data.draw(st.booleans()):
        del where[key]
    else:
        where[key] = data.draw(values)
    lines[at] = json.dumps(found)
    if data.draw(st.integers(0, 9)) == 0:
        lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))]
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    refused(lambda: written(tmp_path))


def written(folder):
    """What a report of a folder says; its figures are not drawn."""
    tables = loading.read_tables(folder)
    pages = report.make_pages(tables, folder, figures.forest_plots(tables)[0], list(sweeps.drawings(tables)), None)
    return "\n".join(pages.values())


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_an_output_folder_that_can_not_be_made(place, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError), session.run_folder(tmp_path / place, False):
        raise AssertionError("it was opened")
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_that_can_not_be_used_leave_no_folder_behind(tmp_path, numpy_backend):
    (tmp_path / "w").write_text(string.ascii_letters)
    study = Study(frameworks=["numpy"], threads=[1], workloads=[SMALL], weights=str(tmp_path / "w"))
    with pytest.raises(UsageError, match="not a safetensors file"):
        session.run(study, tmp_path / "run", False, "")
    assert not (tmp_path / "run").exists()


def without_a_round(block):
    next(arm for arm in block["arms"].values() if arm["samples_ns"])["samples_ns"].pop()


def without_an_error(block):
    next(arm for arm in block["arms"].values() if arm["quantities"])["quantities"]["y"] = [None, 0.0, None, None]


def counted_beyond_measure(block):
    next(arm for arm in block["arms"].values() if arm.get("evidence"))["evidence"]["fusions"] = 10**30


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without_a_round, "one a round"),
        (counted_beyond_measure, "more of something than a table can hold"),
        (lambda block: block.update(precision="fp23"), "no precision 'fp23'"),
        (lambda block: block.update(rates={"flops_s": 1e9, "scale_ns": {}}), "at least 1 item"),
        (lambda block: block.pop("timer_ns"), "timer_ns"),
        (without_an_error, "quantities"),
    ],
)
def test_a_block_that_no_report_could_be_made_of_is_refused(lines, change, why, tmp_path):
    block = json.loads(json.dumps(lines[1]))
    change(block)
    (tmp_path / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in (lines[0], block)))
    with pytest.raises(UsageError, match=why):
        written(tmp_path)


def test_a_block_of_a_workload_that_the_study_has_not_is_reported(lines, tmp_path):
    block = json.loads(json.dumps(lines[1]))
    block["workload"]["name"] = "other"
    for arm in block["arms"].values():
        (arm["evidence"] or {}).pop("loops", None)
    (tmp_path / FILE).write_text("".join(f"{json.dumps(line)}\n" for line in (lines[0], block)))
    assert "other" in written(tmp_path)
