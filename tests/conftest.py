"""Shared: which frameworks are here, small data, and a worker-side backend made of NumPy."""

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

import impls
from harness.study import weights
from harness.study.data import cast
from harness.study.study import Workload
from impls.interface import Data, Weights

collect_ignore = ["in_jax"]  # they import JAX, whose process others cannot fork; `make test` runs them by themselves
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


@pytest.fixture(scope="session", autouse=True)
def _matplotlib():
    """What is imported here, the processes that draw need not import again for every report."""
    from harness.report import style  # noqa: F401  before all else of matplotlib, for its settings

    for module in ("figure", "backends.backend_agg", "backends.backend_svg"):
        importlib.import_module(f"matplotlib.{module}")


class TablesAlone:
    """Instead of drawing: it takes longer than all the rest of a report."""

    def draw(self, figures):
        pass

    def run(self, tasks):
        for task in tasks:
            task()


@pytest.fixture
def undrawn(monkeypatch, without_figures):
    """Reports are made without their figures and without report.html, which are looked at elsewhere."""
    from harness import report

    monkeypatch.setattr(report, "write_html", lambda pages, out, run_tables: None)


@pytest.fixture
def without_figures(monkeypatch):
    """Reports are made without their figures; a report.html is made of figures that are there."""
    from harness import report

    monkeypatch.setattr(report.figures, "drawers_started", nullcontext)
    monkeypatch.setattr(report.figures, "in_background", lambda folder, svg, started=None: nullcontext(TablesAlone()))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all of pytest's processes have in common."""
    place = tmp_path_factory.getbasetemp()
    return place.parent if "PYTEST_XDIST_WORKER" in os.environ else place


FACTS = {}  # of each framework that was asked


@pytest.fixture
def asked_once(monkeypatch, shared):
    """Every framework is asked for its facts once, by whichever of pytest's processes, and not for every study."""
    from harness.machine import environment
    from harness.run import session

    ask = session._probe_framework

    def of_all(key, name, study, wanted):
        file = shared / f"facts-{'-'.join(map(str, key))}"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_bytes(pickle.dumps(ask(name, study, wanted)))
        return pickle.loads(file.read_bytes())

    def known(name, study, threads):
        wanted = sorted({1, environment.cores(), *threads})
        key = (name, study.library, *wanted)
        if key not in FACTS:
            FACTS[key] = of_all(key, name, study, wanted) if name in MODULES else ask(name, study, wanted)
        return FACTS[key]

    monkeypatch.setattr(session, "_probe_framework", known)


@pytest.fixture
def faulty(monkeypatch, tmp_path, asked_once):
    """Add a framework of tests.faults, by its backend's class there and the real framework; it returns its name.

    Its facts are the real one's, but for its executions.
    """
    from harness.run import session
    from tests import faults

    def add(kind, framework):
        name = f"{kind}_{framework}"
        place = tmp_path / "more" / "impls" / name
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
        (place / "backend.py").write_text(f"from tests.faults import {kind}\n\nBackend = {kind}({framework!r})\n")
        add_frameworks(monkeypatch, tmp_path / "more")
        ask = session._probe_framework

        def probe(asked, study, threads):
            if asked != name:
                return ask(asked, study, threads)
            real = ask(framework, study, threads)
            return replace(real, name=name, executions=faults.EXECUTIONS[kind](real.executions))

        monkeypatch.setattr(session, "_probe_framework", probe)
        return name

    return add


@pytest.fixture(scope="session")
def inside(shared):
    """What tests.inside finds out in a process that has imported a framework: lines, by the framework and the part."""

    def lines(framework, part):
        file = shared / f"inside-{framework}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                subprocess.run([sys.executable, "-m", "tests.inside", framework, str(file)], check=True)
        found = json.loads(file.read_text())[part]
        assert not found["error"], found["error"]
        return found["lines"]

    return lines


COMPILED = """
import torch
torch.compile(lambda a: a.tanh() + 1)(torch.ones(8, 8))
"""
HEADERS = "precompiled_headers"
NOT_KEPT = ("fxgraph", "aotautograd", "locks")  # Inductor's folders of what it has compiled, and of its locks


@pytest.fixture(scope="session")
def compiler_facts(shared):
    """Make, when called, the folder with what Inductor finds out about the C++ compiler, and its headers compiled.

    Every worker would find it out again, which takes it longer than to compile a program.
    """

    def folder():
        made = shared / "compiler"
        with FileLock(shared / "compiler.lock"):
            if not made.exists():
                made.mkdir()
                variables = {"TORCHINDUCTOR_CACHE_DIR": str(made), "TMPDIR": str(made), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, "-c", COMPILED]
                subprocess.run(command, check=True, capture_output=True, env=os.environ | variables)
        return made

    return folder


@pytest.fixture
def compiler_known(monkeypatch, compiler_facts):
    """Workers that compile with Inductor start with what it finds out about the C++ compiler."""
    from harness.run.launch import Worker

    start = Worker.__init__

    def start_with_facts(self, framework, variables, timeout_s):
        cache = Path(variables.get("TORCHINDUCTOR_CACHE_DIR", ""))
        if "inductor" in cache.name:
            known = compiler_facts()
            shutil.copytree(known, cache, ignore=shutil.ignore_patterns(*NOT_KEPT, HEADERS), dirs_exist_ok=True)
            (headers,) = known.rglob(HEADERS)  # large, and never changed
            (cache / headers.relative_to(known)).symlink_to(headers)
        start(self, framework, variables, timeout_s)

    monkeypatch.setattr(Worker, "__init__", start_with_facts)


@pytest.fixture
def harness(monkeypatch, capsys, asked_once, compiler_known):
    """Call the command line in this process; it returns the exit status and what was said."""
    from harness.cli import app

    def call(*arguments):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as left:
            app.main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=left.value.code or 0, stdout=said.out, stderr=said.err)

    return call
