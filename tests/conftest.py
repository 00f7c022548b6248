"""Shared: which frameworks are here, small data, and a worker-side backend made of NumPy."""

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import impls
from harness.study import weights
from harness.study.data import cast
from harness.study.study import Workload
from impls.interface import Data, Weights

MODULES = {"tf": "tensorflow", "torch": "torch", "jax": "jax"}
HERE = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
SMALL = Workload(name="small", B=3, T=5, I=2, H=7, O=4, cell="rnn_tanh")


def pytest_report_header():
    """Name the frameworks under test. FUSEGAP_FRAMEWORKS says which must be here."""
    wanted = os.environ.get("FUSEGAP_FRAMEWORKS", "tf,torch,jax").split(",")
    if missing := [name for name in wanted if name and name not in HERE]:
        raise pytest.UsageError(f"frameworks asked for and missing: {', '.join(missing)} (see FUSEGAP_FRAMEWORKS)")
    return f"frameworks: {', '.join(HERE)}"


def pytest_terminal_summary(terminalreporter):
    """Say at the end which frameworks, in which versions, were tested."""
    versions = [f"{MODULES[name]} {version(MODULES[name])}" for name in HERE]
    terminalreporter.write_line(f"frameworks tested: {', '.join(versions) or 'none'}")


@pytest.fixture(params=HERE)
def framework(request):
    return request.param


def data_of(workload: Workload, dtype: str = "float32", seed: int = 1) -> Data:
    inputs = weights.make_inputs(workload, seed)
    made = Data(Weights(**weights.make_weights(workload, seed)), inputs["x"], inputs["target"])
    return cast(made, dtype)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with the small workload's weights and inputs."""
    weights.write_files(tmp_path / "weights", weights.workload_files(SMALL, 1, None, None))
    return tmp_path / "weights"


def close(a, b) -> bool:
    return bool(np.max(np.abs(np.asarray(a, np.float64) - b)) <= 1e-9 * max(1.0, float(np.max(np.abs(b)))))


FOURTH = Path(__file__).parent / "fourth"


@pytest.fixture
def numpy_backend(monkeypatch):
    """A fourth framework, numpy, from the one directory tests/fourth/impls/numpy."""
    add_frameworks(monkeypatch, FOURTH)


def add_frameworks(monkeypatch, folder: Path) -> None:
    """Put a folder that holds impls/<name>/ on the import path, here and in the workers."""
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(impls, "__path__", [*impls.__path__, str(folder / "impls")])
