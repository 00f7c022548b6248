"""The tables of a run."""

import numpy as np

from harness.analysis import loading, stats
from tests.report.test_report import REPORTS


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
    for write in loading.read_tables(folder).files(tmp_path):
        write()
    tables = list(tmp_path.glob("*.csv"))
    assert len(tables) == 6
    for table in tables:
        assert table.read_bytes() == (folder / table.name).read_bytes(), table.name
