"""A run loaded as frames: every column is documented once, and what cannot be loaded gets one sentence."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

import harness
from harness.analysis.loading import FRAMES, Run
from harness.errors import UsageError
from harness.records.store import FILE

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "reports" / "2026-11-26-amd-epyc-2-cores"
PAGE = (ROOT / "docs" / "data.md").read_text()
SHARED = "Columns of several tables"
UNITS = {
    "–",
    "s",
    "ns",
    "ratio",
    "count",
    "number",
    "bytes",
    "operations",
    "probability",
    "logarithm",
    "ULP",
    "GFLOP/s",
}
UNITS |= {"true or false"}


@pytest.fixture(scope="module")
def run():
    return harness.load(COMMITTED)


def sections(page):
    """Heading -> text of each of a page's sections."""
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in page.split("\n## ")[1:]}


def explained(text):
    """The columns that the rows of a section's table explain, each with its unit and its meaning."""
    return [re.findall(r"^`(\w+)` \| (.+?) \| (.+)$", line[2:-2])[0] for line in text.splitlines() if line[:3] == "| `"]


def differences(page, frames):
    """Where a page and the frames differ: what a reader would look for in vain, on either side."""
    by_heading = sections(page)
    shared = [column for column, *_ in explained(by_heading.pop(SHARED))]
    users = Counter()
    found = []
    documented = [name for heading in by_heading for name in heading.split(", ")]
    if sorted(documented) != sorted(frames):
        found.append(f"frames: {sorted(set(documented) ^ set(frames))}")
    for heading, text in by_heading.items():
        listed = re.findall(r"`(\w+)`", re.search(r"^Columns: (.*?)\n\n", text, re.S | re.M).group(1))
        own = [column for column, *_ in explained(text)]
        users.update(set(listed) & set(shared))
        if sorted(listed) != sorted([*own, *(column for column in listed if column in shared)]):
            found.append(f"{heading}: {sorted(set(listed) ^ set(own) - set(shared))} explained never or twice")
        wrong = [name for name in heading.split(", ") if name in frames and listed != list(frames[name])]
        found += [f"{name}: {sorted(set(listed) ^ set(frames[name]))} or the order" for name in wrong]
    found += [f"{column} is not shared" for column in shared if users[column] < 2]
    return found


def frames_of(run):
    return {name: list(getattr(run, name).columns) for name in FRAMES}


def test_every_column_is_documented_once_and_nothing_else_is(run):
    assert differences(PAGE, frames_of(run)) == []


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("| `effect` |", "| `effects` |"),  # explained, and not there
        ("`p`, `effect`", "`p`, `effect`, `more`"),  # listed, and not there
        ("| `max_ulp` | ULP |", "max_ulp, ULP"),  # there, and not explained
        ("| `share` | ratio | part", "| `process` | number | again |\n| `share` | ratio | part"),  # explained twice
        ("`low_s`, `high_s`,\n`roof_s`", "`high_s`, `low_s`,\n`roof_s`"),  # another order
        ("## scores", "## results"),  # a frame that is not there, and one not documented
        ("## Columns of several tables\n", "## Columns of several tables\n\n| `alone` | – | in none |\n"),
    ],
)
def test_a_fault_of_the_page_is_seen(run, text, instead):
    assert PAGE.count(text) == 1
    assert differences(PAGE.replace(text, instead), frames_of(run))


def test_a_new_column_of_a_frame_is_seen(run):
    frames = frames_of(run)
    assert differences(PAGE, frames | {"gaps": [*frames["gaps"], "new"]})
    assert differences(PAGE, frames | {"more": []})


def test_every_column_has_a_unit_and_a_meaning():
    for text in sections(PAGE).values():
        for column, unit, meaning in explained(text):
            assert unit in UNITS, column
            assert meaning, column


def test_the_frames_are_the_committed_tables(run):
    for name in FRAMES:
        file = COMMITTED / f"{name}.csv"
        frame = getattr(run, name)
        assert file.exists() == (len(frame) > 0), name
        if file.exists():
            committed = pd.read_csv(file)
            assert list(committed) == list(frame), name
            assert len(committed) == len(frame), name


def test_the_page_s_own_lines_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})


def test_a_run_has_every_frame_and_what_it_was_measured_with(run):
    assert {field.name for field in fields(Run)} == {*FRAMES, "folder", "study", "machine", "versions"}
    assert [workload.name for workload in run.study.workloads] == ["book", "vocab", "stream"]
    assert run.machine["cores"] == 2
    assert set(run.versions) == {"jax", "tf", "torch", "libraries"}
    assert "gaps 450" in repr(run)
    assert len(repr(run)) < 500


def test_a_folder_that_is_no_run_gets_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=rf"^{tmp_path}/none/{FILE} cannot be read: No such file or directory$"):
        harness.load(str(tmp_path / "none"))
    (tmp_path / FILE).touch()
    with pytest.raises(UsageError, match=rf"^{tmp_path}/{FILE} is empty$"):
        harness.load(tmp_path)


def test_importing_the_harness_imports_nothing_heavy():
    code = "import sys, harness; print({'pandas', 'numpy', 'pydantic', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"
