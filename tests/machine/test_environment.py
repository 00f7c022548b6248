"""What a number depends on besides the study: the code, of which no file may be forgotten."""

import shutil

import pytest

import impls
from harness.machine import environment

PACKAGES = ("harness", "impls")
FILES = sorted(file for package in PACKAGES for file in (environment.ROOT / package).rglob("*.py"))


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the code, which `environment.code` then hashes."""
    for package in PACKAGES:
        shutil.copytree(environment.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(impls, "__path__", [str(tmp_path / "impls")])
    monkeypatch.setattr(environment, "_commit", lambda: "")
    return tmp_path


def hashed() -> str:
    return environment.code_version()["hash"]


def test_a_change_of_any_one_file_changes_the_hash(copy):
    before, unchanged = hashed(), []
    files = sorted(copy.rglob("*.py"))
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        unchanged += [file.relative_to(copy).as_posix()] if hashed() == before else []
        file.write_bytes(content)
    assert unchanged == []
    assert len(files) == len(FILES)
    assert hashed() == before


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "moved to the next file"])
def test_a_change_of_the_tree_changes_the_hash(change, copy):
    before, file = hashed(), copy / "harness" / "analysis" / "roofline.py"
    if change == "added":
        (copy / "impls" / "new.py").touch()
    elif change == "removed":
        file.unlink()
    elif change == "renamed":
        file.rename(file.with_name("ceiling.py"))
    else:
        content, after = file.read_bytes(), min(other for other in file.parent.glob("*.py") if other > file)
        file.write_bytes(content[:-10])
        after.write_bytes(content[-10:] + after.read_bytes())
    assert hashed() != before


def test_a_framework_that_lies_elsewhere_is_hashed_too(copy, tmp_path, monkeypatch):
    before, backend = hashed(), tmp_path / "elsewhere" / "impls" / "mine" / "backend.py"
    backend.parent.mkdir(parents=True)
    backend.touch()
    monkeypatch.setattr(impls, "__path__", [*impls.__path__, str(backend.parents[1])])
    added = hashed()
    backend.write_text("Backend = None\n")
    assert len({before, added, hashed()}) == 3


CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse2 fma avx f16c avx2 avx512f amx_tile svm

processor\t: 1
model name\t: another
"""


def test_a_processor_is_told_by_its_model_its_instruction_sets_and_its_caches(tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "32K"), ("3", "Unified", "8M")]
    ):
        (tmp_path / f"index{index}").mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / f"index{index}" / name).write_text(value)
    assert environment.processor_facts(tmp_path / "cpuinfo", tmp_path) == {
        "cpu": "AMD EPYC",
        "cpu_model": "AuthenticAMD, family 25, model 1, stepping 1",
        "instruction_sets": "amx_tile avx avx2 avx512f f16c fma",
        "caches": "L1 32K, L3 8M",
    }
    hidden = environment.processor_facts(tmp_path / "none", tmp_path / "none")
    assert hidden["cpu"]
    assert {hidden[name] for name in ("cpu_model", "instruction_sets", "caches")} == {"not readable"}
