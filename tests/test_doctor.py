"""The doctor: each finding on a machine that has it and on one that has not."""

import importlib.metadata
import subprocess
import sys

import pytest

from harness import doctor

GPU = {"reasons": [], "processes": [], "temperature_c": 90}
pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("numpy_backend")]


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return folder


def test_governor_and_turbo(tmp_path):
    slow = write(tmp_path / "a", cpu0__cpufreq__scaling_governor="powersave", intel_pstate__no_turbo="0")
    assert "cpupower" in doctor.governor(slow).advice
    assert doctor.turbo(slow).advice
    steady = write(tmp_path / "b", cpu0__cpufreq__scaling_governor="performance", cpufreq__boost="0")
    assert not doctor.governor(steady).advice
    assert not doctor.turbo(steady).advice
    assert "not readable" in doctor.governor(tmp_path).found
    assert "not readable" in doctor.turbo(tmp_path).found


def test_a_busy_process_is_named():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        finding = doctor.others(0.5)
    finally:
        busy.kill()
        busy.wait()
    assert f"({busy.pid})" in finding.found
    assert finding.advice


def test_cores_memory_and_compiler():
    assert doctor.threads(2, 2).advice
    assert not doctor.threads(2, 4).advice
    assert doctor.memory(1.0).advice
    assert not doctor.memory(8.0).advice
    assert "g++" in doctor.compiler(lambda name: None).advice
    assert not doctor.compiler(lambda name: "/usr/bin/g++").advice


def test_versions_that_clash_are_named():
    installed = {"tensorflow": "2.21.0", "tf-keras": "2.19.0", "jax": "0.10.2", "jaxlib": "0.10.1"}
    finding = doctor.versions(installed.__getitem__)
    assert finding.found == "tensorflow 2.21.0 with tf-keras 2.19.0"
    assert finding.advice

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    assert not doctor.versions(absent).advice


def test_foreign_processes_on_the_gpu():
    assert "4711" in doctor.graphics(GPU | {"processes": [4711]}).found
    assert doctor.graphics(GPU | {"processes": [4711]}).advice
    assert "heat" in doctor.graphics(GPU | {"reasons": ["heat (hardware)"]}).found
    assert not doctor.graphics(GPU | {"reasons": ["power limit"]}).advice
    for quiet in (GPU, GPU | {"processes": None}, None):
        assert not doctor.graphics(quiet).advice


def test_the_noise_floor_is_measured(monkeypatch):
    everything = doctor.run.probe
    monkeypatch.setattr(
        doctor.run,
        "probe",
        lambda study, threads: [f for f in everything(study, threads) if f.name == "numpy"],
    )
    monkeypatch.setattr(doctor, "CONTROL", doctor.CONTROL | {"block_s": 0.05})
    assert "numpy eager, 4 processes" in doctor.floor()
    monkeypatch.setattr(doctor.run, "probe", lambda study, threads: [])
    assert "no framework is installed" in doctor.floor()
