"""The doctor: each finding on a machine that has it and on one that has not."""

import importlib.metadata
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.cli import doctor
from harness.machine import environment
from harness.machine.gpu import State
from harness.run.launch import INHERITED
from harness.study.study import Study
from impls.torch import backend

GPU = State(None, None, temperature_c=90, power_w=None, reasons=[], processes=[], limited_ns={})
pytestmark = pytest.mark.usefixtures("numpy_backend")


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return folder


def test_governor_and_turbo(tmp_path):
    slow = write(tmp_path / "a", cpu0__cpufreq__scaling_governor="powersave", intel_pstate__no_turbo="0")
    assert "cpupower" in doctor.check_governor(slow).advice
    assert doctor.check_turbo(slow).advice
    steady = write(tmp_path / "b", cpu0__cpufreq__scaling_governor="performance", cpufreq__boost="0")
    assert not doctor.check_governor(steady).advice
    assert not doctor.check_turbo(steady).advice
    assert "not readable" in doctor.check_governor(tmp_path).found
    assert "not readable" in doctor.check_turbo(tmp_path).found


@pytest.mark.alone
def test_a_busy_process_is_named():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        finding = doctor.check_other_processes(0.5)
    finally:
        busy.kill()
        busy.wait()
    assert f"({busy.pid})" in finding.found
    assert finding.advice


def test_cores_memory_and_compiler():
    assert doctor.check_cores(2, 2).advice
    assert not doctor.check_cores(2, 4).advice
    assert doctor.check_memory(1.0).advice
    assert not doctor.check_memory(8.0).advice
    assert "g++" in doctor.check_compiler(lambda name: None).advice
    assert not doctor.check_compiler(lambda name: "/usr/bin/g++").advice


@pytest.mark.parametrize(("cxx", "noted"), [(None, False), ("clang++", True), ("/no/g++", True), ("g++", False)])
def test_the_compiler_is_the_one_that_workers_call(cxx, noted, monkeypatch):
    """CXX does not reach a worker: what it names is neither found nor missed."""
    monkeypatch.setenv("CXX", cxx) if cxx else monkeypatch.delenv("CXX", raising=False)
    there = {"g++": "/usr/bin/g++", "clang++": "/usr/bin/clang++"}
    found = doctor.check_compiler(there.get)
    assert found.found.startswith("/usr/bin/g++")
    assert ("CXX" in found.found) == noted
    assert not found.advice
    assert "install g++" in doctor.check_compiler({"clang++": "/usr/bin/clang++"}.get).advice
    assert "CXX" not in INHERITED
    assert (backend.COMPILER, doctor.COMPILER) == ("g++", "g++")


def groups(monkeypatch, **files):
    """A machine with these control groups; `own` is what /proc says of this process."""
    known = {"/proc/self/cgroup": files.pop("own", "0::/")}
    known |= {f"/sys/fs/cgroup/{path}": content for path, content in files.pop("files", {}).items()}
    monkeypatch.setattr(environment, "read_text", lambda path: known.get(str(path)))


V1 = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "cpu.max": "800000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1),
        ("0::/../x", {"x/cpu.max": "50000 100000"}, 0.5),
        ("4:cpu,cpuacct:/", {f"cpu/{name}": text for name, text in V1.items()}, 2.5),
        ("4:cpuacct,cpu:/d", {f"cpu,cpuacct/d/{name}": text for name, text in V1.items()}, 2.5),
        ("4:cpu:/host/path", {f"cpu/{name}": text for name, text in V1.items()}, 2.5),
        ("4:cpu:/d", {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"}, None),
        ("4:cpu:/d", {"cpu/d/cpu.cfs_quota_us": "x", "cpu/d/cpu.cfs_period_us": "0"}, None),
        ("3:cpuset:/d\n0::/e", {"unified/e/cpu.max": "300000 100000"}, 3),
        ("no group", {"cpu.max": "what is this"}, None),
    ],
)
def test_the_quota_is_the_least_of_all_groups(own, files, cores, monkeypatch):
    groups(monkeypatch, own=own, files=files)
    assert environment.cpu_quota() == cores


def test_cores_are_limited_by_either_kind_of_quota(monkeypatch):
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: range(8))
    groups(monkeypatch)
    assert environment.cores() == 8
    for quota, cores in (("250000", 2), ("50000", 1)):
        groups(monkeypatch, own="4:cpu:/", files={"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"})
        assert environment.cores() == cores
    assert "refused" in doctor.check_quota(0.5).advice
    assert not doctor.check_quota(1.0).advice
    assert not doctor.check_quota(None).advice


def test_a_pip_that_does_not_answer_is_a_finding(monkeypatch):
    def run(*given, **more):
        raise subprocess.TimeoutExpired("pip", 120)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    assert "did not answer" in doctor.check_requirements().found


def test_versions_that_clash_are_named():
    installed = {"tensorflow": "2.21.0", "tf-keras": "2.19.0", "jax": "0.10.2", "jaxlib": "0.10.1"}
    finding = doctor.check_versions(installed.__getitem__)
    assert finding.found == "tensorflow 2.21.0 with tf-keras 2.19.0"
    assert finding.advice

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    assert not doctor.check_versions(absent).advice


def test_foreign_processes_on_the_gpu():
    assert "4711" in doctor.check_gpu(replace(GPU, processes=[4711])).found
    assert doctor.check_gpu(replace(GPU, processes=[4711])).advice
    assert "heat" in doctor.check_gpu(replace(GPU, reasons=["heat (hardware)"])).found
    assert not doctor.check_gpu(replace(GPU, reasons=["power limit"])).advice
    for quiet in (GPU, replace(GPU, processes=None), None):
        assert not doctor.check_gpu(quiet).advice


def test_the_noise_floor_is_measured(monkeypatch):
    probe = doctor.session.probe
    monkeypatch.setattr(doctor.session, "probe", lambda study, threads: probe(Study(frameworks=["numpy"]), threads))
    monkeypatch.setattr(doctor, "CONTROL", doctor.CONTROL | {"block_s": 0.05})
    assert "numpy eager, 4 processes" in doctor.measure_noise_floor()
    monkeypatch.setattr(doctor.session, "probe", lambda study, threads: [])
    assert "no framework is installed" in doctor.measure_noise_floor()
