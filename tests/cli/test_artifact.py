"""ARTIFACT.md and the Dockerfile: commands exist, numbers are those of committed tables, what is copied is there."""

import fnmatch
import json
import math
import re
import shlex
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from harness.cli import app as cli
from harness.report.claims import CLAIMS
from harness.report.markdown import amount
from harness.study.study import LOOPS, SCALES, Study
from tests.cli.test_docs import README
from tests.made import lines

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "reports"
COMMITTED = REPORTS / "2026-11-26-amd-epyc-2-cores"
DEFAULT, AGAIN = (REPORTS / f"2026-11-26-amd-epyc-2-cores-{name}" for name in ("default", "again"))
PAGE = (ROOT / "ARTIFACT.md").read_text()
PLACE = ["framework", "device", "threads", "execution", "precision", "workload", "pass", "recurrence"]
TABLE_ROW = "page one's table"
CLAIM_NAMES = [claim.name for claim in CLAIMS]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
README_COMMANDS = re.search(r"## Two commands.*?```\n(.*?)```", README, re.S).group(1).splitlines()
COPIED = "COPY --chown=fusegap:fusegap . ."


def csv(name, folder=COMMITTED):
    return pd.read_csv(folder / f"{name}.csv", low_memory=False)


def experiments(page):
    """Name -> the cells of each row of the table of experiments."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.match(r"\| (C\d|page one)", line)]
    return {name: cells for name, *cells in rows}


def included(frame):
    return frame[frame.trusted | frame.ci_low.isna()]


def interval(row):
    return f"{row.ratio:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"


def counts(frame):
    """The facts of a claim about many gaps: how many have each verdict, and the range of their ratios."""
    found = frame.verdict.value_counts()
    facts = [f"{name} in {found.get(name, 0)}" for name in ("slower", "faster", "inconclusive")]
    return [*facts, f"from {frame.ratio.min():.2f} to {frame.ratio.max():.2f}"]


def facts_of_c1():
    gaps = csv("gaps").query("execution == 'v1' and workload == 'book' and contender == 'in_loop'")
    by_place = {(row.threads, row["pass"]): interval(row) for _, row in included(gaps).iterrows()}
    one, two = ([by_place[threads, pass_] for pass_ in ("forward", "train")] for threads in (1, 2))
    return [f"{one[0]} forward, {one[1]} train with 1 thread; {two[0]} forward, {two[1]} train with 2"]


def facts_of_c2():
    times = csv("times").drop_duplicates("workload").set_index("workload")["T"]
    products = by_form("products", ["none", "in_loop", "batched"]).query("`pass` == 'forward'")
    right = (products.in_loop - products.none == products.workload.map(times)) & (products.batched - products.none == 1)
    return [f"in_loop adds T products, and batched one, in {right.sum()} of {len(right)} pairs"]


def facts_of_c3():
    operations = by_form("flops", ["in_loop", "batched"]).drop_duplicates([key for key in PLACE if key != "threads"])
    same = operations.in_loop == operations.batched
    return [f"equal operations in {same.sum()} of {len(same)} pairs"]


def facts_of_c4():
    variables = csv("variables").query("workload == 'book' and `pass` == 'train' and threads == 1")
    forms = {
        name: list(zip(part.variable, part["shape"], strict=True)) for name, part in variables.groupby("projection")
    }
    assert sorted(shape for _, shape in forms["in_loop"]) == sorted(shape for _, shape in forms["batched"])
    memory = by_form("temp_bytes", ["in_loop", "batched"])
    memory = memory.query("execution == 'v1' and workload == 'book' and threads == 1").set_index("pass")
    peaks = {pass_: [amount(row[form], "B") for form in ("in_loop", "batched")] for pass_, row in memory.iterrows()}
    forward, train = peaks["forward"], peaks["train"]
    return [
        f"the same {len(forms['in_loop'])} variables",
        f"{forward[0]} in the loop, {forward[1]} at once (forward), {train[0]} and {train[1]} (train)",
    ]


def facts_of_c5():
    contrasts = included(csv("contrasts"))
    return counts(contrasts[(contrasts.baseline == "in_loop") & contrasts.recurrence.isin(LOOPS)])


def facts_of_c6():
    gaps = included(csv("gaps").query("recurrence == 'given' and contender == 'per_step' and `pass` == 'forward'"))
    return counts(gaps)


def facts_of_the_table():
    """README's table of the CPU is compared with the gaps in test_docs; here are its cells' number and extremes."""
    cells = re.findall(r"(\d\.\d\d) (\[[\d., ]+\])", README.partition("**On a GPU")[0])
    ranked = sorted(cells, key=lambda cell: float(cell[0]))
    return [f"in {len(cells)} cells, from {' '.join(ranked[0])} to {' '.join(ranked[-1])}"]


def by_form(column, forms):
    """A count of each program with a loop of ours, a column for each form; programs that lack one are left out."""
    evidence = csv("evidence")
    evidence = evidence[evidence.recurrence.isin(LOOPS)]
    return evidence.pivot(index=PLACE, columns="projection", values=column).dropna(subset=forms).reset_index()


FACTS = {
    TABLE_ROW: facts_of_the_table,
    "C1": facts_of_c1,
    "C2": facts_of_c2,
    "C3": facts_of_c3,
    "C4": facts_of_c4,
    "C5": facts_of_c5,
    "C6": facts_of_c6,
    "C7": lambda: ["as C1"],
    "C8": list,
}


def differences(expected, facts):
    """Facts that an expectation lacks, and the numbers in it that are no fact."""
    missing = [fact for fact in facts if fact not in expected]
    for fact in sorted(facts, key=len, reverse=True):
        expected = expected.replace(fact, "")
    return missing + re.findall(r"\d[\d.]*", expected)


def test_every_claim_and_the_table_have_one_experiment():
    assert list(experiments(PAGE)) == [TABLE_ROW, *CLAIM_NAMES]


@pytest.mark.parametrize("name", FACTS)
def test_what_is_expected_is_what_was_committed(name):
    assert differences(experiments(PAGE)[name][2], FACTS[name]()) == []


def test_another_number_would_be_seen():
    expected = experiments(PAGE)["C5"][2]
    facts = facts_of_c5()
    assert differences(expected.replace("in 75", "in 74"), facts)
    assert differences(expected + " and 3 more", facts)
    assert differences(expected, [*facts, "equivalent in 0"])


@pytest.mark.parametrize("claim", CLAIMS, ids=CLAIM_NAMES)
def test_an_experiment_is_the_claim_s_and_its_verdict_the_report_s(claim, monkeypatch):
    experiment, _, expected, _ = experiments(PAGE)[claim.name]
    assert experiment == f"`python -m harness run {claim.experiment}`"
    (row,) = re.findall(rf"^\| {claim.name} \| .*$", (COMMITTED / "report.md").read_text(), re.M)
    assert re.search(r"\*\*.*?\*\*", expected).group() in row
    monkeypatch.setattr(cli, "_run", lambda study, out, resume, **options: None)
    app = typer.main.get_command(cli.app).commands["run"]
    app.invoke(app.make_context("run", shlex.split(claim.experiment)))


def test_the_minutes_are_those_of_the_records():
    """Of the question's blocks in the first process, with the run's time besides its blocks added in proportion."""
    records = [line for line in lines(COMMITTED) if line["kind"] == "block"]
    began = [datetime.fromisoformat(record["began"]) for record in records]
    share = (max(began) - min(began)).total_seconds() / sum(record["seconds"] for record in records)
    blocks = pd.DataFrame(
        {
            "seconds": [record["seconds"] * share for record in records],
            "first": [record["replicate"] == 0 and record["part"] in LOOPS for record in records],
            "swept": ["-" in record["workload"]["name"] for record in records],
            "forward": [record["pass"] == "forward" for record in records],
            "book": [record["execution"] == "v1" and record["workload"]["name"] == "book" for record in records],
        }
    )
    blocks = blocks[blocks["first"] & ~blocks.swept]
    minutes = {"C2": blocks[blocks.forward], "C3": blocks, "C4": blocks[blocks.book]}
    for name, rows in minutes.items():
        assert experiments(PAGE)[name][1] == str(math.ceil(rows.seconds.sum() / 60)), name


def test_the_budgets_are_the_studies():
    budget = Study().budget_s / 60
    assert f"no further block after {budget:g} minutes" in PAGE
    assert {cells[1].removeprefix("at most ") for cells in experiments(PAGE).values()} <= {f"{budget:g}", "6", "1"}
    assert f"no further block after {SCALES['quick']['budget_s']:g} seconds" in " ".join(PAGE.split())


def test_a_repetition_may_differ_as_the_committed_one_did():
    text = " ".join(PAGE.split())
    groups = json.loads((AGAIN / "repeat.json").read_text())["groups"]
    gaps = groups["in_loop, per_step"]
    keys = [*PLACE, "contender", "baseline"]
    pairs = included(csv("gaps", DEFAULT)).merge(included(csv("gaps", AGAIN)), on=keys, suffixes=("", "_again"))
    pairs = pairs[pairs.contender.isin(["in_loop", "per_step"]) & pairs.ci_low.notna() & pairs.ci_low_again.notna()]
    assert len(pairs) == gaps["gaps"]
    factors = np.exp(np.abs(np.log(pairs.ratio / pairs.ratio_again))) - 1
    controls = csv("gaps").query("contender == 'twin' and ci_low == ci_low")
    for sentence in (
        f"Of {gaps['gaps']} gaps of in_loop and per_step, {gaps['apart']} have intervals that do not overlap, "
        f"{gaps['beyond']} differ at 95% (one in twenty would by chance), "
        f"{gaps['same_verdict']} have the same verdict, and {gaps['opposite']} are slower in one run and faster in the "
        "other.",
        f"differ by {factors.median():.1%} at the median, and by {factors.max():.1%} at most.",
        f"misses 1 in {(~controls.trusted).sum()} of {len(controls)} blocks",
    ):
        assert sentence in text, sentence


def test_counts_and_memory_differ_between_runs_as_the_page_says():
    keys, ours = [*PLACE, "projection"], csv("evidence")
    largest = 0.0
    for folder in (DEFAULT, AGAIN):
        pairs = ours.merge(csv("evidence", folder), on=keys, suffixes=("", "_again"))
        assert len(pairs) > 200
        assert (pairs.products == pairs.products_again).all()
        assert (pairs.flops == pairs.flops_again).all()
        book = pairs.query("execution == 'v1' and workload == 'book'")
        largest = max(largest, np.exp(np.abs(np.log(book.temp_bytes / book.temp_bytes_again))).max() - 1)
    assert f"by {largest:.1%} at most." in PAGE
    assert largest < 0.1


def test_a_remade_report_lacks_what_the_page_names():
    """That `report` gives the same bytes is tested beside it; these are the files that it does not make."""
    made = ("*.csv", "*.md", "*.png", "*.svg", "*.html", "environment.json")
    files = [path.relative_to(COMMITTED) for path in COMMITTED.rglob("*") if path.is_file()]
    others = {path.parts[0] for path in files if not any(fnmatch.fnmatch(path.name, name) for name in made)}
    assert "`apart.json`, `records.jsonl.gz` and `weights`" in PAGE
    assert others == {"apart.json", "records.jsonl.gz", "weights"}


def instructions(text):
    """The Dockerfile's instructions as (name, argument), each on one line."""
    joined = re.sub(r"\\\n", " ", text)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line and not line.startswith("#")]


def faults_of_the_image(text):
    """What is wrong with a Dockerfile, as far as can be told without building it."""
    made = instructions(text)
    found = [] if made[0] == ("FROM", "python:3.11-slim-bookworm") else ["not from a plain Python 3.11"]
    users = [argument for name, argument in made if name == "USER"]
    found += [] if users and users[-1] not in ("root", "0") else ["runs as root"]
    installed = " ".join(argument for name, argument in made if name == "RUN" and "apt-get install" in argument)
    found += [f"no {package}" for package in ("gcc", "g++", "make") if package not in installed.split()]
    for name, argument in made:
        if name in ("COPY", "ADD"):
            sources = [word for word in argument.split()[:-1] if not word.startswith("--")]
            found += [f"{source} is not there" for source in sources if not (ROOT / source).exists()]
    (default,) = [argument for name, argument in made if name == "CMD"]
    found += [] if " ".join(json.loads(default)) in README_COMMANDS else ["its command is not the README's"]
    targets = re.findall(r"^([\w./$()]+):", (ROOT / "Makefile").read_text(), re.M)
    known = {target.replace("$(VENV)", ".venv") for target in targets}
    run = [word for name, argument in made if name == "RUN" for word in re.findall(r"^make (\S+)", argument)]
    return found + [f"make {target}" for target in run if target not in known]


def test_the_image_is_made_of_what_is_there_and_runs_the_readme_s_commands():
    assert faults_of_the_image(DOCKERFILE) == []
    runs = re.findall(r"docker run --rm .*fusegap *(.*)$", PAGE, re.M)
    assert [command or "make report" for command in runs] == README_COMMANDS


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("python:3.11-slim-bookworm", "python:3.9"),
        ("USER fusegap", "USER root"),
        ("USER fusegap\n", ""),
        ("gcc g++ make", "gcc make"),
        (COPIED, COPIED.replace(". .", "missing .")),
        ('"report"]', '"reports"]'),
        (".venv/ready", ".venv/done"),
    ],
)
def test_a_fault_of_the_image_is_seen(text, instead):
    assert text in DOCKERFILE
    assert faults_of_the_image(DOCKERFILE.replace(text, instead))


def test_the_run_folder_is_the_one_that_is_mounted():
    workdir = dict(instructions(DOCKERFILE))["WORKDIR"]
    assert f'--volume "$PWD/runs:{workdir}/runs"' in PAGE
    done = subprocess.run(["make", "-n", "report"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"--out runs/", done.stdout)


def test_nothing_that_is_needed_is_kept_out_of_the_image():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for path in ("harness", "impls", "tests", "docs", "scripts", "reports", "Makefile", "pyproject.toml", "README.md"):
        assert not any(fnmatch.fnmatch(path, pattern.removeprefix("**/")) for pattern in ignored), path
    assert {".git", ".venv", "runs"} <= set(ignored)
