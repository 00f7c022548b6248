"""One report of several runs: labelled, side by side, and nothing in it that is not in a run's own report.

The runs are a few blocks of committed records. The GPU's are doctored copies of a CPU's, for the logic only: no GPU
measured anything here.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from harness import report
from harness.analysis.gaps import GAPS
from harness.cli import app as cli
from harness.errors import UsageError
from harness.records.store import FILE
from harness.report import comparison, several
from harness.report.markdown import ratio
from harness.study.study import NAMED
from tests.made import lines

REPORTS = Path(__file__).parents[2] / "reports"
CPU, GPU, BOTH, SELFTEST = "cpu-machine", "gpu-machine", "both-devices", "selftest"


def block(record):
    kept = ("jax", "xla"), ("torch", "eager")
    mine = (record.get("framework"), record.get("execution")) in kept
    return mine and record["kind"] == "block" and (record["workload"]["name"], record["pass"]) == ("book", "forward")


def twins(record):
    """A few processes of the self-test."""
    name = record.get("workload", {}).get("name")
    return record["kind"] == "block" and record["framework"] == "jax" and name == "B1-T3-I8-H64-O16-rnn_tanh"


def doctored(record):
    """A CPU's block called a GPU's, with half the time for in_loop and twice for per_step: not measured."""
    arms = {}
    for name, arm in record["arms"].items():
        projection = name.partition("_")[2]
        factor = {"in_loop": 0.5, "per_step": 2}.get(projection, 1)
        arms[name] = arm | {"samples_ns": [int(ns * factor) for ns in arm["samples_ns"]]}
    return record | {"device": "gpu", "arms": arms, "key": f"gpu{record['key']}"}


def put(folder, heading, blocks):
    """A run's folder with these records. The heading's cells are cut: they are most of its bytes."""
    folder.mkdir(parents=True)
    records = [heading | {"cells": [], "absent": []}, *blocks]
    (folder / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Label -> folder: a CPU's run, a doctored GPU's, one with both devices, and a piece of the self-test."""
    place = tmp_path_factory.mktemp("runs")
    heading, *records = lines(REPORTS / "2026-11-24-amd-epyc-2-cores")
    blocks = list(filter(block, records))
    on_gpu = [doctored(record) for record in blocks if record["threads"] == 2]
    machine = heading["basis"]["machine"] | {"gpu": "none, doctored"}
    other = heading | {"basis": heading["basis"] | {"machine": machine}}
    tests, *others = lines(REPORTS / "2026-11-24-amd-epyc-2-cores-selftest")
    return {
        CPU: put(place / CPU, heading, blocks),
        GPU: put(place / GPU, other, on_gpu),
        BOTH: put(place / BOTH, other, blocks + on_gpu),
        SELFTEST: put(place / SELFTEST, tests, list(filter(twins, others))),
    }


@pytest.fixture(scope="module")
def out(runs, tmp_path_factory):
    """The combined report of three runs."""
    folder = tmp_path_factory.mktemp("made") / "out"
    several.write([runs[CPU], runs[GPU], runs[SELFTEST]], folder)
    return folder


@pytest.fixture(scope="module")
def text(out):
    return (out / "report.md").read_text()


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cells(text):
    """Of the side-by-side tables: what is compared, the column and the cell."""
    for part in re.findall(r"^##+ Side by side: (.*?)(?=^#|\Z)", text, re.M | re.S):
        workload, pass_ = re.match(r"(\w+), (\w+) ", part).groups()
        columns, _, *rows = (line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|"))
        for program, contender, *ratios in rows:
            gap = (workload, pass_, *program.split(), contender)
            yield from ((gap, column, cell) for column, cell in zip(columns[-len(ratios) :], ratios, strict=True))


def own(out, gap, column):
    """The same gap in the run's own gaps.csv, as a report writes it."""
    label, device, threads = re.fullmatch(r"(?:(\S+) )?(cpu|gpu)(?:×(\d))?", column).groups()
    frame = pd.read_csv(out / (label or ".") / "gaps.csv")
    keys = ("workload", "pass", "framework", "execution", "recurrence", "contender")
    for key, value in zip((*keys, "device"), (*gap, device), strict=True):
        frame = frame[frame[key] == value]
    (row,) = frame[frame.threads == int(threads)].to_dict("records") if threads else frame.to_dict("records")
    return ratio(row)


def strange(text, out):
    """Cells that are not what the run's own table has."""
    return [found for found in cells(text) if found[2].removesuffix(" ⚠") != own(out, *found[:2])]


def test_every_ratio_is_that_of_the_runs_own_table(text, out):
    found = list(cells(text))
    assert Counter(column for _, column, _ in found) == dict.fromkeys(
        (f"{CPU} cpu×1", f"{CPU} cpu×2", f"{GPU} gpu"), len(found) // 3
    )
    assert len({gap for gap, _, _ in found}) == len(found) / 3 >= 6
    assert not strange(text, out)
    gap, column, cell = found[0]
    assert strange(text.replace(cell, "1.000 [1.000, 1.000] equivalent", 1), out) == [
        (gap, column, "1.000 [1.000, 1.000] equivalent")
    ]


def test_each_runs_own_report_is_linked_and_what_it_is_alone(runs, text, out, tmp_path):
    for label in (CPU, GPU, SELFTEST):
        assert f"**[{label}]({label}/report.md)**: " in text
        report.write(runs[label], tmp_path / label)
        alone = "".join(page.read_text() for page in (tmp_path / label).rglob("*.md"))
        assert "CPU and GPU" not in alone
        assert "Side by side" not in alone
        assert files(out / label) == files(tmp_path / label)


def test_neither_the_folders_order_nor_an_earlier_report_changes_anything(runs, out, tmp_path):
    before = {label: files(folder) for label, folder in runs.items()}
    shutil.copytree(out, tmp_path / "again")
    (tmp_path / "again" / CPU / "gaps.csv").write_text("stale")
    several.write([runs[SELFTEST], runs[GPU], runs[CPU]], tmp_path / "again")
    assert files(tmp_path / "again") == files(out)
    assert {label: files(folder) for label, folder in runs.items()} == before


def test_links_lead_to_what_is_there(out):
    """In the report of all, the runs' own and their appendices."""
    pages = sorted(out.rglob("*.md"))
    assert {str(page.relative_to(out)) for page in pages} >= {
        "report.md",
        f"{CPU}/report.md",
        f"{CPU}/appendix/gaps.md",
        f"{SELFTEST}/appendix/settings.md",
    }
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
            assert (page.parent / link).stat().st_size, (page, link)
            if link.endswith(".png"):
                assert (page.parent / link).with_suffix(".svg").stat().st_size


def test_the_one_file_of_all_leads_to_that_of_each(out):
    links = re.findall(r'<a href="([^"#]+)"', (out / "report.html").read_text())
    assert links == [f"{label}/report.html" for label in (CPU, GPU, SELFTEST)]
    for link in links:
        assert (out / link).stat().st_size


def test_the_one_files_are_left_out_where_that_is_asked(runs, out, tmp_path, without_figures):
    """Also where an earlier report had them."""
    again = shutil.copytree(out, tmp_path / "out")
    assert sum(1 for _ in again.rglob("*.html")) == 1 + 3
    several.write([runs[CPU], runs[GPU], runs[SELFTEST]], again, html=False)
    assert not list(again.rglob("*.html"))


def test_the_report_of_all_has_a_page_of_its_own(text):
    headings = [line for line in text.splitlines() if re.match("#+ ", line)]
    assert [h for h in headings if h.startswith("# ")] == ["# Projecting per step against projecting once: 3 runs"]
    assert [h for h in headings if h.startswith("## ")] == ["## The machines", "## CPU and GPU"]


def test_each_machine_is_answered_for_and_described(text):
    assert f"- **[{CPU}]({CPU}/report.md)**: On this machine **" in text
    assert f"- **[{SELFTEST}]({SELFTEST}/report.md)**: This run measured the batched form against itself" in text
    assert f"|  | {CPU} | {GPU} | {SELFTEST} |" in text
    assert "| gpu | – | none, doctored | – |" in text
    assert "| devices | cpu | gpu | cpu |" in text


@pytest.fixture
def without_bodies(monkeypatch):
    """Nothing is drawn or told of a run by itself."""
    monkeypatch.setattr(several, "write_report", lambda *given: None)


def test_other_code_is_said_and_the_same_study_too(runs, text, tmp_path, without_bodies):
    assert "**They are not the same study**; they differ in:\n\n- the code that measured (its hash): " in text
    made = several.write([runs[CPU], runs[GPU]], tmp_path / "out").read_text()
    assert "The same code measured all of them" in made
    assert "**They are not" not in made


def test_runs_without_a_gap_in_common_are_still_reported(runs, tmp_path, without_bodies):
    made = several.write([runs[CPU], runs[SELFTEST]], tmp_path / "out").read_text()
    assert "No gap of the same workload and program was measured in two runs or on two devices." in made
    assert not (tmp_path / "out" / "figures").exists()


def test_one_run_has_the_section_where_it_has_both_devices(runs, tmp_path):
    made = report.write(runs[BOTH], tmp_path / BOTH).read_text()
    assert "\n## CPU and GPU\n" in made
    assert {column for _, column, _ in cells(made)} == {"cpu×1", "cpu×2", "gpu"}
    assert not strange(made, tmp_path / BOTH)
    assert "](figures/compared-1-book-forward.png)" in made
    assert (tmp_path / BOTH / "figures" / "compared-1-book-forward.png").exists()


def gap(made, device="cpu", threads=1, contender="in_loop", trusted=True, workload="book"):
    """A row of a gaps table; `made` is its ratio and verdict."""
    place = ("torch", device, threads, "eager", "fp32", workload, "forward", "unrolled", contender, "batched")
    direction = "longer" if made[0] > 1.01 else "shorter" if made[0] < 0.99 else "unknown"
    return (*place, made[0], made[0] * 0.99, made[0] * 1.01, 3, 40, made[1], trusted, 7.0, direction)


def tables(*rows, workload=NAMED["book"], **changed):
    """What the comparison and the labels want of a run's tables."""
    code = SimpleNamespace(commit="c", hash=changed.get("code", "h"))
    basis = SimpleNamespace(machine={"cpu": "AMD EPYC", "cores": 2}, code=code)
    weights = {"book.weights.safetensors": changed.get("weights", "0" * 64)}
    return SimpleNamespace(
        gaps=pd.DataFrame(rows, columns=GAPS),
        study=SimpleNamespace(
            workloads=[workload], margin=changed.get("margin", 0.02), memory=changed.get("memory", "held")
        ),
        header=SimpleNamespace(basis=basis, weights=weights),
        blocks=[SimpleNamespace(began=changed.get("began", "2026-11-24T10:00:00+00:00"))],
    )


SLOWER, FASTER, SAME, UNSURE = (1.5, "slower"), (0.5, "faster"), (1.0, "equivalent"), (1.1, "inconclusive")


@pytest.mark.parametrize(
    ("one", "other", "trusted", "said"),
    [
        (SLOWER, SLOWER, True, "agree"),
        (SAME, SAME, True, "agree"),
        (SLOWER, FASTER, True, "opposite"),
        (FASTER, SAME, True, "differ"),
        (SLOWER, UNSURE, True, "undecided"),
        (UNSURE, UNSURE, True, "undecided"),
        (SLOWER, FASTER, False, "left out ⚠"),
    ],
)
def test_verdicts_agree_or_not(one, other, trusted, said):
    found = comparison.shared_gaps({"a": tables(gap(one)), "b": tables(gap(other, "gpu", trusted=trusted))})
    counts = [int(name == said) for name in comparison.RELATIONS]
    apart = f"{other[0] / one[0]:.2f}" if trusted else ""
    seen = f"{apart} to {apart}" if apart else "–"
    assert f"| a cpu×1 | b gpu | 1 | {' | '.join(map(str, counts))} | {seen} |" in comparison.agreement_table(found)
    assert f"**In {int(said == 'opposite')} of them the sign changes**" in comparison.summary(found)
    assert bool(comparison.sign_change_table(found)) == (said == "opposite")
    assert ("⚠" in comparison.ratio_table(found)) != trusted


def test_where_the_sign_changes_both_sides_are_named():
    found = comparison.shared_gaps({"a": tables(gap(SLOWER), gap(UNSURE, threads=2)), "b": tables(gap(FASTER, "gpu"))})
    assert comparison.sign_change_table(found).splitlines()[2:] == [
        "| book, forward | torch eager unrolled | in_loop "
        "| a cpu×1: 1.500 [1.485, 1.515] | b gpu: 0.500 [0.495, 0.505] |"
    ]


def test_a_gap_of_one_run_and_device_is_not_compared():
    threads = tables(gap(SLOWER), gap(FASTER, threads=2))
    assert not comparison.shared_gaps({"a": threads, "b": tables(gap(SLOWER, contender="per_step"))})
    assert not comparison.shared_gaps(
        {"a": tables(gap(SLOWER, contender="twin")), "b": tables(gap(SLOWER, contender="twin"))}
    )


def test_workloads_of_one_name_and_other_sizes_are_not_compared_and_named():
    larger = NAMED["book"].model_copy(update={"B": 51})
    made = {"a": tables(gap(SLOWER)), "b": tables(gap(SLOWER), workload=larger)}
    assert not comparison.shared_gaps(made)
    (line,) = several.differences(measured(made))
    assert line.startswith("workload book: B=50, T=20, I=1, H=100, O=1, rnn_relu in a; B=51, ")


def test_one_thread_stands_beside_one_thread():
    every = tables(*(gap(SLOWER, threads=threads) for threads in (1, 2)))
    more = tables(*(gap(SLOWER, threads=threads) for threads in (1, 16)), gap(SLOWER, "gpu", 16))
    rows = comparison.agreement_table(comparison.shared_gaps({"a": every, "b": more})).splitlines()[2:]
    assert [row.strip("| ").split(" | ")[:2] for row in rows] == [
        ["a cpu×1", "b cpu×1"],
        ["a cpu×1", "b gpu"],
        ["a cpu×2", "b cpu×16"],
        ["a cpu×2", "b gpu"],
        ["b cpu×1", "b gpu"],
        ["b cpu×16", "b gpu"],
    ]


def measured(made):
    return {label: several.MeasuredRun(Path(label), one) for label, one in made.items()}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"code": "other"}, ["the code that measured (its hash): h in a; other in b"]),
        ({"margin": 0.03}, ["the margin: 2.00% in a; 3.00% in b"]),
        ({"memory": "default"}, ["how workers take memory: default in b; held in a"]),
        ({"weights": "f" * 64}, [f"`book.weights.safetensors` (its SHA-256): {'0' * 12} in a; {'f' * 12} in b"]),
    ],
)
def test_what_makes_it_another_study_is_named(changed, said):
    assert several.differences(measured({"a": tables(), "b": tables(**changed)})) == said


LATER = "2026-11-25T10:00:00+00:00"


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["x/a", "x/b"], ["a", "b"]),
        (["x/an a (1)", "x/b"], ["an-a-1", "b"]),
        (["x/a", "y/a"], ["2026-11-24-amd-epyc-2-cores", "2026-11-25-amd-epyc-2-cores"]),
        (["x/latest", "x/b"], ["2026-11-24-amd-epyc-2-cores", "b"]),
        (["x/2026-11-24-amd-epyc-2-cores", "x/a", "y/a"], ["2026-11-24-amd-epyc-2-cores", "-2", "2026-11-25"]),
    ],
)
def test_labels_tell_runs_apart_in_any_order(folders, labels):
    began = [None, *[LATER] * (len(folders) - 1)] if len(folders) < 3 else [None, None, LATER]
    made = [
        several.MeasuredRun(Path(folder), tables(**({"began": at} if at else {})))
        for folder, at in zip(folders, began, strict=True)
    ]
    found, again = several.label_runs(made), several.label_runs(made[::-1])
    assert found == again
    assert list(found) == list(again) == sorted(found)
    assert all(wanted in label for wanted, label in zip(labels, found, strict=True))


@pytest.fixture
def some(runs, tmp_path):
    """Two runs, a folder with another run's records, and a file; read by their names."""
    heading = {"basis": {}}
    put(tmp_path / "in" / "third", heading, [])
    put(tmp_path / "holds" / CPU, heading, [])
    (tmp_path / "file").write_text("mine")
    for label in (CPU, GPU):
        (tmp_path / label).symlink_to(runs[label])
    (tmp_path / "again").symlink_to(runs[CPU])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([CPU, GPU], "give --out"),
        ([CPU, CPU, "--out", "out"], "is given twice"),
        ([CPU, GPU, "again", "--out", "out"], "is given twice"),
        ([CPU, GPU, "--out", CPU], "must lie apart from the runs"),
        ([CPU, GPU, "--out", f"{GPU}/out"], "must lie apart from the runs"),
        (["in/third", CPU, "--out", "in"], "must lie apart from the runs"),
        ([CPU, GPU, "--out", "in/third"], "holds a run's records"),
        ([CPU, GPU, "--out", "holds"], "holds a run's records"),
        ([CPU, "--out", "in/third"], "holds a run's records"),
        ([CPU, GPU, "--out", "file"], "cannot be written into"),
        ([CPU, "--out", "file/out"], "cannot be written into"),
        ([CPU, "absent", "--out", "out"], "cannot be read"),
    ],
)
def test_what_can_not_be_had_is_refused_in_a_sentence(some, arguments, why, capsys, monkeypatch):
    before = files(some)
    monkeypatch.chdir(some)
    monkeypatch.setattr("sys.argv", ["harness", "report", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    (said,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert why in said
    assert files(some) == before
    assert not (some / "out").exists()


def test_the_command_line_takes_one_folder_or_several(monkeypatch, capsys):
    monkeypatch.setattr(report, "write", lambda *given: ("one", *map(str, given)))
    monkeypatch.setattr(several, "write", lambda folders, *given: ("several", *map(str, [*folders, *given])))
    for arguments, said in [
        (["a"], ("one", "a", "None", "True")),
        (["a", "--out", "o", "--no-html"], ("one", "a", "o", "False")),
        (["a", "b", "--out", "o"], ("several", "a", "b", "o", "True")),
        (["a", "b", "--out", "o", "--no-html"], ("several", "a", "b", "o", "False")),
    ]:
        monkeypatch.setattr("sys.argv", ["harness", "report", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        assert capsys.readouterr().out.strip() == str(said)


def test_a_folder_with_records_is_no_place_for_another_report(runs, tmp_path):
    put(tmp_path / "other", {"basis": {}}, [])
    with pytest.raises(UsageError, match="holds a run's records"):
        report.make_folders([tmp_path / "new", tmp_path / "other"])
    assert not (tmp_path / "new").exists()
