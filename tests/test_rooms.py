"""Rooms of harness/ import only what stands before them, so that data goes one way; each says what belongs in it."""

import ast
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "harness"
ORDER = (
    *("errors", "machine", "study", "verify", "records", "analysis", "worker", "run", "selftest", "report", "cli"),
    "__main__",
)
NEVER = {  # besides what stands after a room
    "worker": {"run", "analysis"},
    "analysis": {"worker", "machine"},
    "report": {"worker", "run", "selftest"},
}
FRAMEWORKS = {"tensorflow", "tf_keras", "keras", "torch", "jax", "flax"}


def room_of(path):
    return path.relative_to(HARNESS).parts[0].removesuffix(".py")


def imported(source):
    """The modules that a source imports, by their dotted names, with what is taken from a package itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def broken(room, source):
    """The imports of a room's source that its place does not allow."""
    found = [name.split(".") for name in imported(source)]
    rooms = {name[1] for name in found if name[0] == "harness" and len(name) > 1}
    later = {other for other in rooms - {room} if ORDER.index(other) > ORDER.index(room)}
    frameworks = {name[0] for name in found} & FRAMEWORKS
    return later | (rooms & NEVER.get(room, set())) | frameworks


SOURCES = sorted(path for path in HARNESS.rglob("*.py") if room_of(path) != "__init__")


def test_every_folder_is_a_room():
    assert {room_of(path) for path in SOURCES} == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(HARNESS)))
def test_a_room_imports_what_stands_before_it(path):
    assert broken(room_of(path), path.read_text()) == set()


def test_an_import_that_runs_back_up_is_seen():
    assert broken("analysis", "from harness.report import summary") == {"report"}
    assert broken("report", "def late():\n    from harness.worker.timing import time_calls") == {"worker"}
    assert broken("worker", "import harness.run.jobs") == {"run"}
    assert broken("study", "import jax.numpy as jnp") == {"jax"}
    assert broken("cli", "from harness.study.study import Study") == set()


@pytest.mark.parametrize("room", [room for room in ORDER if room not in ("errors", "__main__")])
def test_a_room_says_what_belongs_in_it(room):
    assert ast.get_docstring(ast.parse((HARNESS / room / "__init__.py").read_text()))


def test_implementations_know_nothing_of_the_harness():
    for path in (HARNESS.parent / "impls").rglob("*.py"):
        assert not [name for name in imported(path.read_text()) if name.split(".")[0] == "harness"], path
