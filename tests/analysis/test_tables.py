"""The tables of a run."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from harness import report
from harness.analysis import stats
from harness.analysis.gaps import GAPS
from harness.records.schema import RunHeaderRecord
from tests.report.test_report import REPORTS

CONFIG = ("torch", "cpu", 1, "eager", "fp32", "book", "forward", "unrolled")


def header(budget_s):
    """The header of a run with this budget."""
    own = {"key": "k-0", "kind": "study", "status": "ok", "reason": "", "command": "c", "weights": {}, "missing": []}
    basis = {"machine": {}, "versions": {}, "code": {"commit": "c", "hash": "h"}}
    own |= {"study": {"budget_s": budget_s}, "basis": basis, "environments": {}, "cells": [], "absent": []}
    return RunHeaderRecord.model_validate(own)


def tables(*rows, label="default"):
    """Rows of contender, ratio, low, high, verdict, trusted."""
    made = []
    for contender, ratio_, low, high, verdict, trusted in rows:
        direction = stats.Gap(ratio_, low, high, 3, verdict, 1.0).direction
        gap = (ratio_, low, high, 3, 40, verdict, trusted, 7.0, direction)
        made.append((*CONFIG, contender, "batched", *gap))
    return SimpleNamespace(
        gaps=pd.DataFrame(made, columns=GAPS),
        study=SimpleNamespace(label=label, margin=0.02),
        blocks=[],
        sessions=[header(1.0)],
        prototypes=pd.DataFrame(columns=GAPS),
    )


class OtherProcessor:
    """NumPy with a logarithm whose last digit is another, as that of other vector instructions is."""

    def __getattr__(self, name):
        return getattr(np, name)

    def log(self, a):
        found = np.log(a)
        return np.where(found == 0, found, np.nextafter(found, np.inf))


def test_tables_do_not_depend_on_the_processors_last_digits(tmp_path, monkeypatch):
    folder = REPORTS / "2026-11-24-amd-epyc-2-cores-selftest"
    monkeypatch.setattr(stats, "np", OtherProcessor())
    for write in report.read_tables(folder).files(tmp_path):
        write()
    tables = list(tmp_path.glob("*.csv"))
    assert len(tables) == 5
    for table in tables:
        assert table.read_bytes() == (folder / table.name).read_bytes(), table.name
