"""The study of a user's own functions: its settings, and what is read of the user's file without running it."""

import ast
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

import impls
from harness.errors import UsageError
from harness.study.study import LARGEST_FILE, Study, Workload, error_message, validate_choice
from impls.interface import USUAL_PASSES

BUDGET_S = 300.0
PROCESSES = 5
PRECISIONS = ("fp32", "fp64")  # of the inputs
NAME = "FRAMEWORK"


class PairStudy(Study):
    """The settings of a comparison of a user's functions. It has no workloads, and nothing that depends on them."""

    MAY_BE_EMPTY: ClassVar[frozenset[str]] = frozenset({"workloads"})

    workloads: list[Workload] = Field(default_factory=list)
    hoist: bool = False  # whether the baseline is compared with itself, with the work taken out of its loops


class PairFile(NamedTuple):
    """A user's file: where it is, its text, and the framework that it names."""

    path: Path
    text: str
    framework: str


def make_study(framework: str, flags: dict[str, Any]) -> PairStudy:
    """Return the study that flags define; a flag of None is one that was not given. Raises UsageError."""
    defaults: dict[str, Any] = {"frameworks": [framework], "threads": [1], "processes": PROCESSES, "budget_s": BUDGET_S}
    try:
        study = PairStudy.model_validate(defaults | {name: value for name, value in flags.items() if value is not None})
        validate_choice("precision of a pair", study.precisions[0], PRECISIONS)
        for pass_ in study.passes:
            validate_choice("pass of a pair", pass_, USUAL_PASSES)
    except ValueError as error:
        raise UsageError(error_message(error)) from None
    for name, values in (("--threads", study.threads), ("--precision", study.precisions)):
        if len(values) > 1:
            raise UsageError(f"{name} takes one value here, not {len(values)}: compare again for another")
    return study


def read_file(path: Path) -> PairFile:
    """Return a user's file, which is read and not run. Raises UsageError.

    The framework decides which process the file is run in, so it must be written as a text.
    """
    try:
        content = path.read_bytes()
        if len(content) > LARGEST_FILE:
            raise UsageError(f"{path} is too large for a file of functions: it has more than {LARGEST_FILE:,} bytes")
        tree, text = ast.parse(content), content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        place = f"{path}, line {error.lineno}," if error.lineno else f"{path}"
        raise UsageError(f"{place} is not Python: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a null byte, or nested too deeply
        raise UsageError(f"{path} is not Python: {error}") from None
    names = list(impls.names())
    framework = _framework(tree)
    if framework is None:
        raise UsageError(f"{path} names no framework: give it a line such as {NAME} = {names[-1]!r}")
    try:
        return PairFile(path, text, validate_choice("framework", framework, names))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _framework(tree: ast.Module) -> str | None:
    """Return the text that a module assigns to FRAMEWORK, or None."""
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not isinstance(statement.value, ast.Constant):
            continue
        if any(isinstance(target, ast.Name) and target.id == NAME for target in targets):
            value = statement.value.value
            return value if isinstance(value, str) else None
    return None
