"""Measuring where little is installed, and on a device that calls itself a GPU: logic, no number of any GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from harness import report
from harness.machine import gpu
from harness.records.store import FILE
from harness.run import session
from harness.study.study import load_study
from tests.conftest import FOURTH, add_frameworks
from tests.machine.test_gpu import NVML
from tests.made import lines, whole

ROOT = Path(__file__).parents[2]
HEAVY = ("pandas", "scipy", "matplotlib", "jinja2", "pynvml")
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)
sys.meta_path.insert(0, Missing())
from harness.cli.app import main
main()
"""
WORKLOAD = ["B=2,T=3,I=2,H=4,O=3"]


def bare(*arguments):
    """The command line in a process where nothing heavy can be imported; workers are not touched."""
    command = [sys.executable, "-c", BARE.format(heavy=HEAVY), *arguments]
    environment = {"PYTHONPATH": f"{FOURTH}:{ROOT}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


def test_records_are_measured_without_what_reports_need(tmp_path, undrawn):
    flags = ["--framework", "numpy", "--threads", "1", "--workload", *WORKLOAD, "--rounds", "3"]
    done = bare("run", *flags, "--processes", "1", "--no-report", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(FILE)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {FILE, "weights"}
    report.write(tmp_path / "run", tmp_path / "report")
    assert (tmp_path / "report" / "report.md").exists()


def test_without_them_a_pilot_is_refused_before_any_work(tmp_path):
    done = bare("run", "--framework", "numpy", "--no-report", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr == "error: planning how many processes a gap needs takes pandas and scipy: give --processes\n"
    assert not (tmp_path / "run").exists()


def calm(**more):
    told = {"nvmlDeviceGetHandleByIndex": 0, "nvmlDeviceGetClockInfo": 1980, "nvmlDeviceGetTemperature": 40}
    memory = type("Memory", (), {"total": 80 * 2**30})
    told |= {"nvmlDeviceGetMemoryInfo": memory, "nvmlDeviceGetName": "Made Up", "nvmlSystemGetDriverVersion": "1"}
    return NVML(**told, nvmlDeviceGetCurrentClocksThrottleReasons=0, **more)


def on_a_made_up_gpu(monkeypatch, folder, driver):
    (folder / "mischief").write_text("gpu")
    monkeypatch.setenv("TMPDIR", str(folder))
    add_frameworks(monkeypatch, FOURTH)
    monkeypatch.setattr(gpu, "nvml", lambda: driver)
    study = {"frameworks": ["numpy"], "devices": ["gpu"], "recurrences": ["unrolled"], "workloads": WORKLOAD}
    study |= {"rounds": 3, "processes": 2}
    return session.run(load_study(None, None, study), folder / "run", False, "a command")


def test_a_gpus_facts_and_state_are_in_records_and_report(monkeypatch, tmp_path, undrawn):
    records = on_a_made_up_gpu(monkeypatch, tmp_path, calm())
    assert records[0].basis.machine["gpu"] == "Made Up, 80 GiB"
    blocks = [record for record in records if record.kind == "block"]
    assert {(block.configuration.device, block.threads_used) for block in blocks} == {("gpu", None)}
    assert all(block.gpu["after"].sm_mhz == 1980 and block.throttled == [] for block in blocks)
    report.write(tmp_path / "run")
    text = whole(tmp_path / "run")
    assert "| numpy eager on gpu | 1980 to 1980 | 1980 to 1980 | 40 to 40 | not reported | 0 of 4 |" in text
    assert "throttled:" not in text


def test_a_block_that_stays_throttled_is_marked_and_named(monkeypatch, tmp_path, undrawn):
    driver = calm()
    driver.told["nvmlDeviceGetCurrentClocksThrottleReasons"] = 0x40
    records = on_a_made_up_gpu(monkeypatch, tmp_path, driver)
    blocks = [record for record in records if record.kind == "block"]
    assert all(block.throttled == ["heat (hardware)"] for block in blocks)
    marks = [(block.replicate, block.first_try, block.redone) for block in blocks]
    assert marks == [(0, False, False)] * 2 + [(1, True, False), (1, False, True)] * 2
    report.write(tmp_path / "run")
    text = whole(tmp_path / "run")
    place = "throttled: numpy eager on gpu, B2-T3-I2-H4-O3-rnn_tanh train, process 1: heat (hardware)"
    assert f"{place}; its times are not counted\n" in text
    assert f"{place}; it was done again, and the second try counts\n" in text
    times = pd.read_csv(tmp_path / "run" / "times.csv")
    assert set(times.process.dropna()) == {0, 1}
    assert set(times.status.dropna()) == {"refused", "unavailable"}
    assert times.median_s.isna().all()


def test_settings_that_a_worker_reads_back_are_shown(tmp_path, undrawn):
    """Doctored: committed records whose blocks are made to say a setting."""
    folder = next(path.parent for path in sorted((ROOT / "reports").glob(f"*/{FILE}")))
    records = lines(folder)[:8]
    for record in records[1:]:
        record["numerics"] = {"tf32": "False"}
    (tmp_path / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    report.write(tmp_path)
    assert "| jax | cpu | fp64 | tf32 | False |" in whole(tmp_path)
