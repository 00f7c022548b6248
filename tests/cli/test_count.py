"""The commands `count` and `score`: what they refuse, and what they print."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.cli import app, count
from harness.errors import UsageError

REPORTS = Path(__file__).parents[2] / "reports"
PREDICTIONS = REPORTS / "2026-11-26-gpu-predictions" / "predictions.csv"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
    return app._run_command()


@pytest.fixture
def measured(monkeypatch):
    """A run on a GPU in which every predicted form takes what was predicted in the middle, the first one ten times."""
    frame = pd.read_csv(PREDICTIONS)
    frame = frame[frame.counted_by.fillna("").str.endswith(("0.10.2", "evidence"))].reset_index(drop=True)
    place = frame[["framework", "execution", "precision", "workload", "pass", "recurrence", "projection"]]
    times = place.assign(device="gpu", threads=1, status="ok", median_s=frame.call_mid_us / 1e6)
    times.loc[0, "median_s"] *= 10
    gaps = place.rename(columns={"projection": "contender"}).assign(device="gpu", threads=1, baseline="batched")
    gaps = gaps.assign(ratio=frame.ratio_mid, ci_low=frame.ratio_mid, ci_high=frame.ratio_mid)
    run = SimpleNamespace(times=times, gaps=gaps[gaps.ratio.notna()], versions={"jax": {"jax": "0.10.2"}})
    monkeypatch.setattr(count, "load", lambda folder: run)
    return run


def test_an_unknown_card_is_named_with_the_nearest(monkeypatch):
    with pytest.raises(UsageError, match="unknown card 'h101': did you mean h100"):
        run(monkeypatch, "count", "--card", "h101")


def test_a_score_counts_hits(monkeypatch, measured, capsys, tmp_path):
    run(monkeypatch, "score", PREDICTIONS, "run", "--out", tmp_path / "scored.csv")
    total = next(line for line in capsys.readouterr().out.splitlines() if "all" in line)
    rows = pd.read_csv(tmp_path / "scored.csv")
    assert f"{rows.error.notna().sum()} of {rows.error.notna().sum()}" in total
    assert f"{len(rows) - 1} of {len(rows)}" in total
    assert (~rows.call_inside).sum() == 1


def test_a_run_without_a_gpu_and_a_file_without_predictions_are_refused(monkeypatch, measured, tmp_path):
    measured.times["device"] = "cpu"
    with pytest.raises(UsageError, match="no times of a GPU"):
        run(monkeypatch, "score", PREDICTIONS, "run")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="holds no predictions"):
        run(monkeypatch, "score", tmp_path / "other.csv", "run")
    with pytest.raises(UsageError, match="cannot be read"):
        run(monkeypatch, "score", tmp_path / "nowhere.csv", "run")


def test_counts_are_compared_with_the_card_s_own(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "score", PREDICTIONS.parent, REPORTS / "2026-11-26-h100", "--out", tmp_path / "checked.csv")
    said = capsys.readouterr().out
    assert "11 of 11 programs launch on the card what was counted without one" in said
    assert pd.read_csv(tmp_path / "checked.csv").agrees.all()


def test_counts_for_another_card_and_of_nothing_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"has counts for h100, and the GPU of .* is none"):
        run(monkeypatch, "score", PREDICTIONS.parent, REPORTS / "2026-11-26-amd-epyc-2-cores")
    with pytest.raises(UsageError, match="has no profile of a program"):
        run(monkeypatch, "score", PREDICTIONS.parent, REPORTS / "2026-11-26-h100-unrolled")
    with pytest.raises(UsageError, match="holds no counts"):
        run(monkeypatch, "score", tmp_path, REPORTS / "2026-11-26-h100")
