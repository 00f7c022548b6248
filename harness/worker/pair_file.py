"""A user's file of functions: import it, and take from it what the protocol names. Runs in the worker alone.

The protocol is in docs/pair.md. Whatever does not follow it, or raises, is a UsageError of one sentence.
"""

import hashlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from harness.errors import UsageError
from harness.records.pair import InputRecord
from harness.worker.timing import first_line
from impls.functions import Functions
from impls.interface import Unavailable

MODULE = "fusegap_pair"  # name of the imported file, whatever its own
FLOATS = {"fp32": "float32", "fp64": "float64"}
KINDS = "fiub"  # of numbers that inputs and outputs may hold: floating-point, whole, truth values
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Pair:
    """What a user's file holds.

    `functions`: by name, the baseline first. `orders`: function -> the names of its inputs, as it takes them.
    `gradients`: names of the inputs whose gradients are taken. `log`: what was moved in the hoisted function, and what
    was not and why; it is filled when that function is called.
    """

    path: Path
    functions: dict[str, Callable[..., Any]]
    inputs: dict[str, np.ndarray]
    orders: dict[str, tuple[str, ...]]
    gradients: tuple[str, ...]
    log: list[str]

    @property
    def baseline(self) -> str:
        """Return the name of the baseline."""
        return next(iter(self.functions))

    def differentiated(self, name: str) -> tuple[int, ...]:
        """Return the positions of the inputs of a function whose gradients are taken, in the order of `gradients`."""
        return tuple(self.orders[name].index(gradient) for gradient in self.gradients)

    def input_records(self) -> list[InputRecord]:
        """Return the records of the inputs."""
        return [
            InputRecord(
                name=name,
                shape=list(array.shape),
                dtype=str(array.dtype),
                sha256=hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
            )
            for name, array in self.inputs.items()
        ]


@dataclass(frozen=True)
class Loading:
    """How a file is loaded: the precision of its inputs, and the seed that they are made from.

    `exact`: the inputs are rounded to the precision and then cast to float64, in which all else is made too.
    `hoist`: whether the baseline joins the functions a second time, with the work taken out of its loops.
    """

    precision: str
    seed: int
    exact: bool = False
    hoist: bool = False

    @property
    def dtype(self) -> str:
        """Return the name of the type of floating-point inputs."""
        return FLOATS[self.precision]


def load(path: Path, adapter: Functions, loading: Loading) -> Pair:
    """Import a file and return what it holds. Raises UsageError.

    The random numbers of Python, NumPy and the framework are seeded before, so that a layer whose weights are drawn
    where the file is imported has the same ones in every process.
    """
    adapter.set_defaults("fp64" if loading.exact else loading.precision, loading.seed)
    random.seed(loading.seed)
    np.random.seed(loading.seed)
    module = _import(path)
    functions = _candidates(path, module)
    log: list[str] = []
    if loading.hoist:
        functions |= _hoisted(path, functions, adapter, log)
    arrays = _inputs(path, module, adapter, loading)
    baseline = next(iter(functions.values()))
    if isinstance(arrays, dict):
        inputs, is_named = arrays, True
    else:
        inputs, is_named = dict(zip(_positions(path, baseline, len(arrays)), arrays, strict=True)), False
    orders = {name: _order(path, name, function, inputs, is_named) for name, function in functions.items()}
    return Pair(path, functions, inputs, orders, _gradients(path, module, inputs), log)


def sources(path: Path) -> dict[str, str]:
    """Return the SHA-256 of a file and of all modules that were imported from its folder, by their paths in it."""
    folder, packages = path.parent, Path(sys.prefix).resolve()
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    imported = {Path(name).resolve() for name in names if isinstance(name, str) and Path(name).is_absolute()}
    beside = {
        file
        for file in imported
        if file.is_relative_to(folder) and not file.is_relative_to(packages) and file.suffix == ".py" and file.is_file()
    }
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted({path} | beside)
    }


def run_users_code(path: Path, what: str, call: Callable[[], Any]) -> Any:
    """Return what a call of a user's code returns. Raises UsageError when it raises, with the line of the file."""
    try:
        return call()
    except SystemExit as error:
        raise UsageError(f"{path.name}: {what} ends the process (SystemExit: {error})") from None
    except Exception as error:  # whatever a user's code raises
        raise UsageError(f"{path.name}: {what} raises {describe(path, error)}") from None


def describe(path: Path, error: BaseException) -> str:
    """Return an error's type and message, and the line of the user's file where it was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def _import(path: Path) -> ModuleType:
    """Import a file under the name MODULE, with its folder first on the import path, as Python runs a script.

    No bytecode is written: Python takes what it wrote for a file of the same size and second for the file itself.
    """
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    loader = spec.loader
    run_users_code(path, "importing it", lambda: loader.exec_module(module))
    return module


def _candidates(path: Path, module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the functions that a file names in CANDIDATES."""
    if not hasattr(module, "CANDIDATES"):
        raise UsageError(f"{path.name} has no CANDIDATES, a list of two or more functions, the baseline first")
    candidates = module.CANDIDATES
    if not isinstance(candidates, (list, tuple)) or len(candidates) < 2:
        raise UsageError(f"{path.name}: CANDIDATES must be a list of two or more functions, the baseline first")
    functions: dict[str, Callable[..., Any]] = {}
    for index, candidate in enumerate(candidates):
        if not inspect.isfunction(candidate):
            kind = type(candidate).__name__
            raise UsageError(
                f"{path.name}: CANDIDATES[{index}] is a {kind}, and not a function written with def, which is what the "
                "harness compiles by itself"
            )
        if candidate.__name__ in functions:
            raise UsageError(f"{path.name}: two of CANDIDATES are named {candidate.__name__}")
        functions[candidate.__name__] = candidate
    return functions


def _hoisted(
    path: Path, functions: dict[str, Callable[..., Any]], adapter: Functions, log: list[str]
) -> dict[str, Callable[..., Any]]:
    """Return the baseline with the work taken out of its loops, by its name."""
    baseline = next(iter(functions))
    name = f"{baseline}_hoisted"
    if name in functions:
        raise UsageError(f"{path.name}: {name} is the name of the hoisted {baseline}: give your function another")
    try:
        return {name: adapter.hoisted(functions[baseline], log)}
    except Unavailable as error:
        raise UsageError(f"{path.name}: {error}") from None


def _inputs(
    path: Path, module: ModuleType, adapter: Functions, loading: Loading
) -> dict[str, np.ndarray] | list[np.ndarray]:
    """Return what inputs(seed) returns as NumPy arrays, by name where it is a dictionary. Raises UsageError."""
    make = getattr(module, "inputs", None)
    if not callable(make):
        raise UsageError(f"{path.name} has no function inputs(seed), which makes the arguments of the candidates")

    def array(name: object, value: Any) -> np.ndarray:
        return _array(f"{path.name}: input {name}", value, adapter, loading)

    values, again = (run_users_code(path, "inputs(seed)", lambda: make(loading.seed)) for _ in range(2))
    if isinstance(values, dict) and values and all(isinstance(name, str) for name in values):
        named = {name: array(name, value) for name, value in values.items()}
        _require_same(path, named.values(), [array(name, value) for name, value in again.items()])
        return named
    if not isinstance(values, (tuple, list)) or not values:
        kind = "nothing" if values is None else f"a {type(values).__name__}"
        raise UsageError(f"{path.name}: inputs(seed) returns {kind}, and not a tuple or a dictionary of arrays")
    arrays = [array(index, value) for index, value in enumerate(values)]
    _require_same(path, arrays, [array(index, value) for index, value in enumerate(again)])
    return arrays


def _array(name: str, value: Any, adapter: Functions, loading: Loading) -> np.ndarray:
    """Return an input as a NumPy array. NumPy's floating-point numbers take the precision of the run."""
    if isinstance(value, np.ndarray):
        array, dtype = np.array(value), str(value.dtype)
        if array.dtype.kind == "f":
            array, dtype = array.astype(loading.dtype), loading.dtype
    elif adapter.is_array(value):
        dtype = adapter.dtype(value)
        try:
            array = adapter.get(value)
        except Exception as error:  # whatever a framework raises of an array that holds no numbers
            raise UsageError(f"{name} of type {dtype} cannot be read as numbers: {first_line(error)}") from None
    else:
        raise UsageError(f"{name} is a {type(value).__name__}, and not an array")
    if array.dtype.kind not in KINDS:
        raise UsageError(f"{name} is of type {dtype}, which is neither real numbers nor truth values")
    if array.dtype.kind == "f":
        if dtype not in {loading.dtype, "float64" if loading.exact else loading.dtype}:
            raise UsageError(f"{name} is {dtype}, and the run is in {loading.precision} (see --precision)")
        if not np.isfinite(array).all():
            raise UsageError(f"{name} holds numbers that are not finite")
        array = array.astype(loading.dtype)  # which rounds what was made in float64
        array = array.astype("float64") if loading.exact else array
    try:
        adapter.put(array, False)
    except Exception as error:  # whatever a framework raises of a type that it does not have
        raise UsageError(f"{name} of type {dtype} is nothing that the framework takes: {first_line(error)}") from None
    return array


def _require_same(path: Path, arrays: Iterable[np.ndarray], again: Sequence[np.ndarray]) -> None:
    """Raise UsageError unless a second call of inputs(seed) made the same numbers."""
    arrays = list(arrays)
    if len(arrays) != len(again) or not all(map(np.array_equal, arrays, again)):
        raise UsageError(f"{path.name}: inputs(seed) makes other numbers at a second call with the same seed")


def _positions(path: Path, baseline: Callable[..., Any], count: int) -> list[str]:
    """Return the names that the baseline gives its first arguments, which are those of the inputs."""
    names = [name for name, parameter in inspect.signature(baseline).parameters.items() if parameter.kind in POSITIONAL]
    if len(names) < count:
        raise UsageError(
            f"{path.name}: {baseline.__name__} takes {len(names)} arguments, and inputs(seed) makes {count}"
        )
    return names[:count]


def _order(
    path: Path, name: str, function: Callable[..., Any], inputs: Mapping[str, np.ndarray], is_named: bool
) -> tuple[str, ...]:
    """Return the inputs of a function in the order in which it takes them: its own where inputs have names."""
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.kind in POSITIONAL]
    own = [parameter.name for parameter in parameters if parameter.name in inputs]
    if is_named and (missing := [input_ for input_ in inputs if input_ not in own]):
        raise UsageError(f"{path.name}: {name} has no argument {missing[0]}, which inputs(seed) makes")
    order = tuple(own) if is_named else tuple(inputs)
    try:
        signature.bind(*order)
    except TypeError as error:
        raise UsageError(f"{path.name}: {name} cannot be called with {', '.join(order)}: {error}") from None
    if is_named and own != [parameter.name for parameter in parameters[: len(own)]]:
        raise UsageError(f"{path.name}: {name} has an argument before {own[-1]} that inputs(seed) does not make")
    return order


def _gradients(path: Path, module: ModuleType, inputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return the inputs whose gradients are taken, as a file names them in GRADIENTS; none without it."""
    names = getattr(module, "GRADIENTS", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path.name}: GRADIENTS must be a list of names of arguments")
    for name in names:
        if name not in inputs:
            raise UsageError(f"{path.name}: GRADIENTS names {name!r}, but the arguments are {', '.join(inputs)}")
        if inputs[name].dtype.kind != "f":
            raise UsageError(f"{path.name}: {name} has no gradient: it holds {inputs[name].dtype}")
    if len(set(names)) != len(names):
        raise UsageError(f"{path.name}: GRADIENTS names an argument twice")
    return tuple(names)
