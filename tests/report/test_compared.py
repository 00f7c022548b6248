"""Two runs compared: nothing changes of itself, a slowed arm is found, other versions and cells are named."""

import json
import random
import shutil

import pytest

from harness.cli.options import parse_percent
from harness.errors import UsageError
from harness.records.store import FILE
from harness.report import compared
from harness.run import session
from tests.run.test_session import study
from tests.run.test_shards import rewritten

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder for what is measured once."""
    return tmp_path_factory.mktemp("once")


@pytest.fixture
def runs(once, tmp_path):
    """Two folders of one run of six processes, whose times are drawn and not measured: 1 ms, give or take 0.3%."""
    if not (once / "run").exists():
        session.run(study(processes=6, rounds=12, passes=["forward"]), once / "run", False, "")
        draw = random.Random(1)

        def drawn(line):
            for arm in line.get("arms", {}).values():
                arm["calls"] = 1
                arm["samples_ns"] = [round(1e6 * draw.lognormvariate(0, 0.003)) for _ in arm["samples_ns"]]

        rewritten(once / "run", drawn)
    return [shutil.copytree(once / "run", tmp_path / name) for name in "ab"]


def slowed(factor):
    def change(line):
        for name, arm in line.get("arms", {}).items():
            if name == "unrolled_in_loop":
                arm["samples_ns"] = [round(factor * ns) for ns in arm["samples_ns"]]

    return change


def as_json(runs, limit=0.05, repeated=False):
    text, failed = compared.compare(tuple(runs), limit, True, repeated)
    return json.loads(text), failed


def test_a_run_is_itself(runs):
    found, failed = as_json(runs, 0.0, True)
    assert not failed
    assert found["changes"]
    assert {row["kind"] for row in found["changes"]} == {"gap", "time"}
    assert not any(row["changed"] for row in found["changes"])
    assert found["appeared"] == found["gone"] == []
    assert found["environment"] == {}
    assert found["agreement"]["share"] == 1.0
    text, _ = compared.compare(tuple(runs), 0.05, False, True)
    assert "The runs agree on" in text
    assert "No change is past 5%." in text


def test_an_arm_that_takes_5_percent_longer_is_found_and_the_limit_decides(runs):
    rewritten(runs[1], slowed(1.05))
    found, failed = as_json(runs, 0.03)
    assert failed
    changed = [row for row in found["changes"] if row["changed"]]
    assert changed
    assert all(row["contender"] == "in_loop" or row["baseline"] == "in_loop" for row in changed)
    assert not as_json(runs, 0.1)[1]
    text, _ = compared.compare(tuple(runs), 0.05, False, False)
    assert "## Gaps that changed" in text
    assert "## Times that changed" in text


def test_other_machines_versions_and_cells_are_named(runs):
    def elsewhere(line):
        if line["kind"] == "study":
            line["basis"]["machine"]["cpu"] = "Another CPU"
            line["basis"]["versions"]["numpy"]["numpy"] = "0.1"
        line.get("arms", {}).pop("unrolled_per_step", None)

    rewritten(runs[1], elsewhere)
    found, _ = as_json(runs)
    assert found["environment"]["machine: cpu"]["b"] == "Another CPU"
    assert found["environment"]["numpy: numpy"]["b"] == "0.1"
    assert any(cell.endswith("unrolled per_step") for cell in found["gone"])
    assert found["no_times"] == "the machines differ, and times mean nothing across machines"
    assert {row["kind"] for row in found["changes"]} == {"gap"}
    with pytest.raises(UsageError, match=r"is no repetition of .*: they differ in machine: cpu"):
        as_json(runs, None, True)


def test_workloads_of_one_name_and_other_sizes_are_not_compared(runs):
    (runs[1] / FILE).write_text((runs[1] / FILE).read_text().replace('"H": 16', '"H": 17'))
    found, failed = as_json(runs)
    assert not failed
    assert found["changes"] == []


@pytest.mark.parametrize(("text", "fraction"), [("5%", 0.05), ("2.5 %", 0.025), ("0", 0.0), ("100%", 1.0)])
def test_a_percentage_is_a_fraction(text, fraction):
    assert parse_percent("--fail-on", text) == pytest.approx(fraction)


@pytest.mark.parametrize("text", ["five", "-5%", "5%%", "1e3", ""])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(UsageError, match="--fail-on takes a percentage such as 5%, not"):
        parse_percent("--fail-on", text)
