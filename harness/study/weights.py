"""Weights and inputs: made from a seed or read from the user's files, stored as safetensors, hashed.

The weights are Glorot-uniform (Glorot and Bengio 2010), the recurrent ones orthogonal (Saxe et al.
2014). The biases are small and not zero, so that a dropped bias shows. All are float32, which every
precision of the study holds exactly.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from harness.errors import UsageError
from harness.machine.folders import add_path_to_errors
from harness.study.study import NAMED, Workload
from impls.interface import Data, Weights

WEIGHTS = Weights._fields
LAYER_SEEDS = 1 << 32  # between the seeds of two layers: above all that a study may have
INPUTS = ("x", "target")
Arrays = dict[str, np.ndarray]
Files = dict[str, bytes]


def make_weights(workload: Workload, seed: int) -> Arrays:
    """Make w_in [I, G*H], w_rec [H, G*H], b_rec [G*H], w_out [H, O] and b_out [O], float32; [L, ...] of L layers."""
    if workload.layers > 1:
        one = workload.model_copy(update={"layers": 1})
        made = [make_weights(one, seed + LAYER_SEEDS * layer) for layer in range(workload.layers)]
        return {name: np.stack([arrays[name] for arrays in made]) for name in WEIGHTS}
    rng = np.random.default_rng([seed, 1])
    shapes = workload.shapes
    arrays = {
        "w_in": _glorot(rng, shapes["w_in"]),
        "w_rec": _orthogonal(rng, shapes["w_rec"]),
        "b_rec": rng.uniform(-0.1, 0.1, shapes["b_rec"]),
        "w_out": _glorot(rng, shapes["w_out"]),
        "b_out": rng.uniform(-0.1, 0.1, shapes["b_out"]),
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def make_inputs(workload: Workload, seed: int) -> Arrays:
    """Make x [T, B, I], float32, and the target: [T, B, O], float32, or for cross-entropy classes [T, B], int32.

    `book`, of its own sizes, is the chapter's series t*sin(t)/3 + 2*sin(5t) on [0, 30] at resolution
    0.1: each member of the batch starts at a random t0, and the target is the series one step ahead.
    Any other workload has standard normal inputs and targets, and classes that are all as likely.
    """
    rng = np.random.default_rng([seed, 2])
    shapes = workload.shapes
    if workload == NAMED["book"]:
        return _series(rng, workload.T, workload.B)
    x = rng.standard_normal(shapes["x"]).astype(np.float32)
    if workload.loss == "cross_entropy":
        return {"x": x, "target": rng.integers(0, workload.O, shapes["target"], np.int32)}
    return {"x": x, "target": rng.standard_normal(shapes["target"]).astype(np.float32)}


def make_initial_weights(workload: Workload, seed: int) -> Arrays:
    """Make the weights that the chapter's training starts from, float32: TF1's defaults.

    Inputs and hidden states share one kernel [I + H, G*H], which is Glorot-uniform as a whole. The biases are zero.
    """
    rng = np.random.default_rng([seed, 3])
    shapes = workload.shapes
    inputs, width = shapes["w_in"]
    kernel = _glorot(rng, (inputs + workload.H, width))
    arrays = {
        "w_in": kernel[:inputs],
        "w_rec": kernel[inputs:],
        "b_rec": np.zeros(shapes["b_rec"]),
        "w_out": _glorot(rng, shapes["w_out"]),
        "b_out": np.zeros(shapes["b_out"]),
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def make_batches(workload: Workload, count: int, seed: int) -> Arrays:
    """Make x [N, T, B, I] and target [N, T, B, O], float32: N batches of the chapter's series (see make_inputs)."""
    rng = np.random.default_rng([seed, 4])
    batches = [_series(rng, workload.T, workload.B) for _ in range(count)]
    return {name: np.stack([batch[name] for batch in batches]) for name in INPUTS}


def read_arrays(path: Path, names: tuple[str, ...], workload: Workload) -> Arrays:
    """Read arrays from a file that must hold exactly `names` in the workload's shapes, float32 and finite.

    The target of cross-entropy must be int32, and below the number of classes. Raises UsageError with one sentence.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, not a safetensors file")
    with _open_safetensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
        if set(slices) != set(names):
            raise UsageError(f"{path} {_name_difference(set(slices), names)}, but must hold {', '.join(names)}")
        for name, entry in slices.items():
            shape = workload.shapes[name]
            dtype = "I32" if name == "target" and workload.loss == "cross_entropy" else "F32"
            if entry.get_dtype() != dtype:
                dtypes = map(_numpy_dtype_name, (entry.get_dtype(), dtype))
                raise UsageError(f"{path}: {name} is {', but must be '.join(dtypes)}")
            if tuple(entry.get_shape()) != shape:
                raise UsageError(
                    f"{path}: {name} has shape {tuple(entry.get_shape())}, but workload {workload.name} needs {shape}"
                )
        arrays = {name: file.get_tensor(name) for name in names}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} holds a number that is not finite")
        if array.dtype.kind == "i" and not (array.min() >= 0 and array.max() < workload.O):
            raise UsageError(f"{path}: {name} holds a class that is not one of 0 to {workload.O - 1}")
    return arrays


def _name_difference(file_names: set[str], names: tuple[str, ...]) -> str:
    """Return how the array names in a file differ from the required names.

    Of the names that are not required, at most three are listed.
    """
    missing, extra = [name for name in names if name not in file_names], sorted(file_names - set(names))
    examples = ", ".join(repr(name)[:40] for name in extra[:3]) + (", ..." if len(extra) > 3 else "")
    clauses = [f"lacks {', '.join(missing)}"] if missing else []
    return " and ".join([*clauses, f"also holds {examples}"] if extra else clauses)


def _numpy_dtype_name(name: str) -> str:
    """Return NumPy's name for a safetensors dtype, or `name` itself where NumPy has no such type."""
    letters = {"F": "float", "I": "int", "U": "uint", "BF": "bfloat"}
    kind, bits = name.rstrip("0123456789"), name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return f"{letters[kind]}{bits}" if kind in letters else name


def load_data(folder: Path, workload: Workload) -> Data:
    """Load the weights and inputs stored for a workload in a run's folder, float32."""
    weights = _load_arrays(folder / f"{workload.name}.weights.safetensors")
    inputs = _load_arrays(folder / f"{workload.name}.inputs.safetensors")
    return Data(Weights(**weights), inputs["x"], inputs["target"])


def workload_files(workload: Workload, seed: int, weights: str | None, inputs: str | None) -> Files:
    """Return a workload's weights and inputs as the contents of the files they are stored in.

    `weights` and `inputs` are paths to read from; where one is None, its arrays are made from the seed.
    Raises UsageError when a given file cannot be used.
    """
    weight_arrays = read_arrays(Path(weights), WEIGHTS, workload) if weights else make_weights(workload, seed)
    input_arrays = read_arrays(Path(inputs), INPUTS, workload) if inputs else make_inputs(workload, seed)
    return {
        f"{workload.name}.weights.safetensors": save(weight_arrays),
        f"{workload.name}.inputs.safetensors": save(input_arrays),
    }


def data_from_files(contents: Files, workload: Workload) -> Data:
    """Return a workload's weights and inputs from the contents of its files, float32."""
    weights, inputs = (load(contents[f"{workload.name}.{kind}.safetensors"]) for kind in ("weights", "inputs"))
    return Data(Weights(**weights), inputs["x"], inputs["target"])


def training_files(workload: Workload, steps: int, seed: int) -> Files:
    """Return a training's initial weights and its batches as the contents of the files they are stored in."""
    start, batches = make_initial_weights(workload, seed), make_batches(workload, steps, seed)
    return {f"{workload.name}.weights.safetensors": save(start), f"{workload.name}.batches.safetensors": save(batches)}


def load_training_data(folder: Path, workload: Workload) -> Data:
    """Load what `training_files` stored: weights, and x [N, T, B, I] and target [N, T, B, O] of the batches."""
    weights = _load_arrays(folder / f"{workload.name}.weights.safetensors")
    batches = _load_arrays(folder / f"{workload.name}.batches.safetensors")
    return Data(Weights(**weights), batches["x"], batches["target"])


def write_files(folder: Path, contents: Files) -> None:
    """Write files into a folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with add_path_to_errors(folder / name):
            (folder / name).write_bytes(content)


def file_hashes(contents: Files) -> dict[str, str]:
    """Return the SHA-256 of each file, by file name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _load_arrays(path: Path) -> Arrays:
    """Return all arrays of a safetensors file, by name."""
    with _open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises UsageError when the file cannot be read, or when NumPy cannot hold what is read from it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise UsageError(f"{path} cannot be read: there is no such file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a safetensors file that NumPy can hold: {error}") from None


def _glorot(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    limit = np.sqrt(6 / (shape[0] + shape[1]))
    return rng.uniform(-limit, limit, shape)


def _orthogonal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = shape
    blocks = [np.linalg.qr(rng.standard_normal((rows, rows)))[0] for _ in range(columns // rows)]
    return np.concatenate(blocks, axis=1)


def _series(rng: np.random.Generator, steps: int, batch: int) -> Arrays:
    start = rng.uniform(0, 30 - steps * 0.1, (1, batch))
    t = start + 0.1 * np.arange(steps + 1)[:, None]  # [T + 1, B]
    y = (t * np.sin(t) / 3 + 2 * np.sin(5 * t))[..., None].astype(np.float32)  # [T + 1, B, 1]
    return {"x": np.ascontiguousarray(y[:-1]), "target": np.ascontiguousarray(y[1:])}
