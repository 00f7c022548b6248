"""Figures are drawn in our style: nothing that a user has configured for matplotlib changes a byte of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.store import FILE
from tests.made import lines

ROOT = Path(__file__).parents[2]
DARK = """\
text.usetex: true
font.size: 40
font.family: serif
axes.facecolor: black
figure.facecolor: black
savefig.facecolor: red
savefig.dpi: 17
savefig.bbox: tight
lines.linewidth: 9
axes.titlesize: 50
svg.fonttype: none
axes.spines.top: false
figure.autolayout: true
"""
BROKEN = "this is : no : configuration\nfont.size: enormous\nbackend: nonsense\n"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of a committed run, of one execution, and their figures as they are drawn where nothing is configured."""
    folder = tmp_path_factory.mktemp("style")
    (folder / "run").mkdir()
    heading, *others = lines(ROOT / "reports" / "2026-11-25-amd-epyc-2-cores")
    kept = [
        r for r in others if (r.get("framework"), r.get("execution"), r.get("pass")) == ("torch", "eager", "forward")
    ]
    kept = [r for r in kept if r["kind"] == "block" and r["workload"]["name"] == "book"]
    (folder / "run" / FILE).write_text("".join(json.dumps(record) + "\n" for record in [heading, *kept]))
    plain = drawn(folder / "run", folder / "plain", folder)
    assert len(plain) >= 4
    return folder / "run", plain


def drawn(records, out, cwd, **environment):
    """The bytes of a report's figures, by name. Nothing is said, and nothing but the report is written."""
    (cwd / "home").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB", "XDG"))}
    kept |= {"PYTHONPATH": str(ROOT), "HOME": str(cwd / "home"), "TMPDIR": str(cwd)} | environment
    before = listing(cwd)
    command = [sys.executable, "-m", "harness", "report", str(records), "--out", str(out), "--no-html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=kept)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path for path in listing(cwd) if out not in path.parents} - {out} == before
    return {path.name: path.read_bytes() for path in (out / "figures").iterdir()}


def listing(folder):
    return set(folder.rglob("*"))


def in_folder(text, tmp_path):
    (tmp_path / "matplotlibrc").write_text(text)
    return {}


def by_variable(text, tmp_path):
    (tmp_path / "mine").write_text(text)
    return {"MATPLOTLIBRC": str(tmp_path / "mine")}


def in_home(text, tmp_path):
    place = tmp_path / "home" / ".config" / "matplotlib"
    place.mkdir(parents=True)
    (place / "matplotlibrc").write_text(text)
    return {}


def by_folder(text, tmp_path):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "matplotlibrc").write_text(text)
    return {"MPLCONFIGDIR": str(tmp_path / "settings")}


@pytest.mark.parametrize("where", [in_folder, by_variable, in_home, by_folder])
def test_a_user_s_configuration_changes_no_byte_of_a_figure(where, records, tmp_path):
    """Each place by itself: matplotlib reads the first that it finds, so that one would hide another."""
    folder, plain = records
    assert drawn(folder, tmp_path / "out", tmp_path, **where(DARK, tmp_path)) == plain


def test_configurations_that_are_none_change_no_byte_of_a_figure(records, tmp_path):
    folder, plain = records
    environment = by_variable(BROKEN, tmp_path) | in_home(BROKEN, tmp_path) | by_folder(BROKEN, tmp_path)
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\x00figure.facecolor: black")
    assert drawn(folder, tmp_path / "out", tmp_path, MPLBACKEND="nonsense", **environment) == plain


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://not.there", "MATPLOTLIBRC": sys.executable},
        {"MPLBACKEND": "qtagg", "MPLCONFIGDIR": "/proc/1/nowhere"},
        {"HOME": "/nowhere", "MATPLOTLIBRC": "/nowhere"},
        {"HOME": "/dev/null", "TMPDIR": "/nowhere"},
    ],
    ids=str,
)
def test_a_user_s_environment_changes_no_byte_of_a_figure(environment, records, tmp_path):
    folder, plain = records
    assert drawn(folder, tmp_path / "out", tmp_path, **environment) == plain


def test_drawing_leaves_the_settings_of_who_has_matplotlib_already():
    from harness.report.style import mpl, project_style

    with mpl.rc_context({"font.size": 31.0, "text.usetex": True}):
        with project_style():
            assert (mpl.rcParams["font.size"], mpl.rcParams["text.usetex"]) == (9, False)
        assert (mpl.rcParams["font.size"], mpl.rcParams["text.usetex"]) == (31.0, True)
