"""Names that a framework's authors keep for themselves: each is still there, and none is used anywhere else."""

import ast
import importlib
from pathlib import Path

import pytest

IMPLS = Path(__file__).parents[2] / "impls"


def test_every_private_name_is_still_there_and_one_that_never_was_is_found_to_be_gone(framework, inside):
    assert inside(framework, "names") == ["json.gone.away: module 'json' has no attribute 'gone'"]


def private_names(source):
    """The framework's private modules and attributes that a source uses: those that begin with one underscore."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names = [node.attr]
        yield from (name for name in names if name.startswith("_") and name not in OWN)


OWN = {"_replace", "_asdict", "_fields"}  # of a named tuple, which are documented
SOURCES = [path for path in IMPLS.rglob("*.py") if path.name != "private.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(IMPLS)))
def test_private_names_are_used_in_one_file_alone(path):
    assert [name for name in private_names(path.read_text()) if not name.startswith("__")] == []


def test_a_private_name_elsewhere_is_found():
    assert list(private_names("import torch._dynamo\ntorch._C.f()\nfrom a._b import c")) == ["_dynamo", "_b", "_C"]
    assert list(private_names("self._run(w._replace(x=1))")) == []


@pytest.mark.parametrize("framework", ["tf", "torch", "jax"])
def test_the_list_is_of_names_in_modules(framework):
    names = importlib.import_module(f"impls.{framework}.private").NAMES
    assert names
    assert len(set(names)) == len(names)
