"""JAX programs compiled ahead for a GPU that this machine does not have: what it would launch, and nothing about time.

It needs the extra `gpu-aot`. XLA compiles for a card that a text describes (its GpuTargetConfigProto). Autotuning,
which runs kernels, is absent: where it would choose between Triton and cuBLASLt, `triton` fixes the choice.
"""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from impls import hlo, thunks
from impls.evidence import Evidence
from impls.interface import Arm, Weights

PRECISION = "highest"  # fp32 products as IEEE fp32, as impls.jax.backend sets it
CARDS = Path(__file__).parent / "cards"
PLUGINS = ("jax-cuda13-pjrt", "jax-cuda12-pjrt")
PASSED = "sm_*_gpu_after_optimizations.txt"


def open_card(name: str) -> tuple[str, Any]:
    """Return the version of the CUDA plugin that compiles, and the device of a card whose text is in `cards/`.

    Raises RuntimeError if no plugin is installed.
    """
    from jax.experimental import topologies

    text = (CARDS / f"{name}.textproto").read_text()
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=text, topology="1x1x1")
    except NotImplementedError as error:
        raise RuntimeError("JAX's CUDA plugin is not installed") from error
    return version(), topology.devices[0]


def version() -> str:
    """Return the name and version of the installed package that holds XLA for GPUs."""
    for name in PLUGINS:
        with suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    raise RuntimeError("JAX's CUDA plugin is not installed")


def compiled(
    shapes: Mapping[str, tuple[int, ...]], cell: str, arm: Arm, pass_: str, card: Any, triton: bool
) -> tuple[thunks.Launches, Evidence, dict[str, str]]:
    """Return what one call of an arm launches on a card, its evidence, and the texts: file name -> content."""
    import jax
    import jax.numpy as jnp

    from impls.jax import model

    sharding = jax.sharding.SingleDeviceSharding(card)
    arrays = {name: jax.ShapeDtypeStruct(size, jnp.float32, sharding=sharding) for name, size in shapes.items()}
    weights = Weights(*(arrays[name] for name in Weights._fields))
    run = _function(model, model.arm(arm.recurrence, arm.projection), model.CELLS[cell], arm.projection, pass_)
    target = arrays["target"]
    if arm.projection == "none":
        steps, batch, _ = shapes["x"]
        target = jax.ShapeDtypeStruct((steps, batch, shapes["w_rec"][0]), jnp.float32, sharding=sharding)
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision(PRECISION):
        options = {"xla_gpu_enable_triton_gemm": triton, "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        program = jax.jit(run).lower(weights, arrays["x"], target).compile(compiler_options=options)
        texts = _dumped(Path(folder))
    found = thunks.launches(texts["thunk_sequence"], texts["thunk_metadata"], texts["optimised.hlo"])
    result = hlo.evidence(texts["optimised.hlo"])
    result.temp_bytes = int(program.memory_analysis().temp_size_in_bytes)
    return found, result, texts


def _function(model: Any, arm: Any, cell: Any, projection: str, pass_: str) -> Any:
    """Return a pass of an arm as a function of weights, x and target, as impls.jax.backend runs it."""
    import jax

    def forward(w: Weights, x: Any, target: Any) -> Any:
        return arm(w, cell, x)

    def train(w: Weights, x: Any, target: Any) -> Any:
        return model.loss(arm(w, cell, x), target)

    def backward(w: Weights, x: Any, d_h: Any) -> Any:
        def hidden(w_in: Any, w_rec: Any, b_rec: Any) -> Any:
            return arm(w._replace(w_in=w_in, w_rec=w_rec, b_rec=b_rec), cell, x)

        return jax.vjp(hidden, *w.recurrent)[1](d_h)

    if pass_ == "forward":
        return forward
    return backward if projection == "none" else jax.value_and_grad(train)


def _dumped(folder: Path) -> dict[str, str]:
    """Return the texts of the one program in a folder of dumps."""
    (optimised,) = folder.glob(f"*.{PASSED}")
    (metadata,) = folder.glob("*.thunk_metadata.txt")
    sequences = sorted(folder.glob("*.thunk_sequence*.txt"), key=lambda file: len(file.name))
    return {
        "optimised.hlo": optimised.read_text(),
        "thunk_metadata": metadata.read_text(),
        "thunk_sequence": sequences[-1].read_text(),
    }
