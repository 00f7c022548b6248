"""What the report says of costs, sweeps and predictions."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from harness.report import prediction
from harness.study import study
from harness.study.data import NONE_IN_TRAINING
from tests.made import whole
from tests.run.test_session import command


@pytest.mark.parametrize(("forecasts", "said"), [((1.44, 0.9), "1.00"), ((1, 1), "0.00"), ((1 / 1.44, 0.9), "-2.69")])
def test_how_much_better_than_no_gap_a_forecast_is_is_called_a_skill_score(forecasts, said):
    """Of gaps 1.44 and 0.9, whose mean is not 1: no share of a variance."""
    frame = pd.DataFrame({"forecast": forecasts, "ratio": (1.44, 0.9), "verdict": "slower"})
    frame = frame.assign(error=np.log(frame.forecast / frame.ratio), ci_low=frame.ratio, ci_high=frame.ratio)
    score = prediction.score_summary(SimpleNamespace(scores=frame))
    assert "a ratio of 1 everywhere, has a median error of 23.5% (90% within 33.9%)" in score
    assert f"the forecast's skill score against it is {said} (" in score
    assert "explains" not in score


def test_a_report_has_the_sweep(numpy_backend, tmp_path):
    flags = ["--framework", "numpy", "--threads", "1", "--sweep", "B=2,T=4,I=2,H=4,O=1", "--processes", "2"]
    flags += ["--workload", "B=2,T=4,I=2,H=8,O=3", "--rounds", "3", "--out", str(tmp_path / "run")]
    done = command("run", *flags)
    assert done.returncode == 0, done.stderr
    text = whole(tmp_path / "run")
    for heading in ("## What projecting costs", "## How the gap follows the sizes", "## How well were gaps predicted?"):
        assert heading in text
    for name in ("costs", "swept", "slopes", "scores"):
        assert len(pd.read_csv(tmp_path / "run" / f"{name}.csv"))
    assert (tmp_path / "run" / "figures" / "sweep-forward.png").exists()


@pytest.mark.parametrize(
    ("none", "said"),
    [
        (NONE_IN_TRAINING, "from a given gradient of h: the loss is part of what the forms add"),
        ("", "has a loss of its own in this run, over [T, B, H]"),
    ],
)
def test_a_report_says_what_none_was_in_training(none, said):
    tables = SimpleNamespace(header=SimpleNamespace(none_in_training=none), study=study.Study())
    assert said in prediction._none_in_training(tables)
    tables.study = study.Study(passes=["forward"])
    assert prediction._none_in_training(tables) == ""
