"""The script for a GPU that is there for minutes: its parts keep their shares, and outcomes are those expected."""

import argparse
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from scripts import on_gpu
from scripts.on_gpu import Part


def test_the_shares_leave_no_time_over_and_none_twice():
    assert sum(part.share for part in on_gpu.PARTS) == pytest.approx(1.0, abs=0.05)
    assert [part.name for part in on_gpu.PARTS][:3] == ["verify", "planted", "main"]


@pytest.mark.slow
def test_the_planted_fault_is_found_in_every_framework(tmp_path):
    on_card = next(part for part in on_gpu.PARTS if part.name == "planted")
    planted = replace(on_card, command=on_card.command.replace("vocab", "B=8,T=4,I=8,H=64,O=32"))
    assert planted != on_card
    arguments = argparse.Namespace(device="cpu", out=tmp_path)
    assert on_gpu.run_part(planted, arguments, time.monotonic() + 300), on_gpu.read_log(planted, tmp_path)
    found = [line for line in on_gpu.read_log(planted, tmp_path).splitlines() if line.startswith("wrong: ")]
    assert {tuple(line.split()[1:3]) for line in found} == {("torch", "eager"), ("jax", "eager"), ("jax", "xla")}


@pytest.mark.parametrize(
    ("statuses", "says", "expected"),
    [((0,), ("verify",), True), ((0,), ("verify", "what it never says"), False), ((1,), (), False)],
)
def test_a_part_is_as_expected_by_its_status_and_by_what_it_says(tmp_path, statuses, says, expected):
    part = Part("help", "--help", 1.0, False, statuses, says)
    arguments = argparse.Namespace(device="cpu", out=tmp_path)
    assert on_gpu.run_part(part, arguments, time.monotonic() + 60) == expected


def test_a_part_that_does_not_end_is_interrupted_and_then_killed(monkeypatch):
    monkeypatch.setattr(on_gpu, "GRACE_S", 0.2)
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    for code in ("import time; print('there', flush=True); time.sleep(60)", deaf):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()
        assert on_gpu._wait(process, 0.1) == "time is up"
        assert process.poll() is not None
        process.stdout.close()
