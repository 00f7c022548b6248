"""JAX programs compiled ahead for a GPU that this machine does not have: what it would launch, and nothing about time.

It needs the extra `gpu-aot`. XLA compiles for a card that a text describes (its GpuTargetConfigProto). Autotuning,
which runs kernels, is absent: where it would choose between Triton and cuBLASLt, `triton` fixes the choice.
"""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from impls import hlo, thunks
from impls.evidence import Evidence
from impls.interface import Arm, Weights
from impls.jax import private

PRECISION = "highest"  # fp32 products as IEEE fp32, as impls.jax.backend sets it
CARDS = Path(__file__).parent / "cards"
NO_PLUGIN = "what compiles JAX's programs for a GPU is not installed: it is the extra gpu-aot, in the version of jaxlib"


class Missing(Exception):  # noqa: N818  it reports a finding, not an error of the harness
    """No program can be compiled for a card here. The message is a sentence that gives the reason."""


@cache
def open_card(name: str) -> tuple[str, Any]:
    """Return what compiles, a package and its version, and the device of a card whose text is in `cards/`.

    Raises Missing if no package that compiles for GPUs is installed.
    """
    from jax.experimental import topologies

    text = (CARDS / f"{name}.textproto").read_text()
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=text, topology="1x1x1")
    except NotImplementedError:
        raise Missing(NO_PLUGIN) from None
    return version(), topology.devices[0]


def version() -> str:
    """Return the name and version of the installed package that holds XLA for GPUs. Raises Missing without one."""
    for name in private.PLUGINS:
        with suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    raise Missing(NO_PLUGIN)


def compile_arm(
    shapes: Mapping[str, tuple[int, ...]], cell: str, arm: Arm, pass_: str, card: Any, triton: bool
) -> tuple[thunks.Launches, Evidence, dict[str, str]]:
    """Return what one call of an arm launches on a card, its evidence, and the texts: file name -> content.

    `shapes`: those of a workload's weights and inputs. `card`: a device from `open_card`. `triton`: whether Triton may
    multiply matrices; where not, cuBLASLt does.
    """
    import jax
    import jax.numpy as jnp

    from impls.jax import passes

    steps, batch, _ = shapes["x"]
    hidden = (steps, batch, shapes["w_rec"][0])
    inputs = {
        "x": hidden if arm.recurrence == "given" else shapes["x"],
        "target": hidden if arm.projection == "none" else shapes["target"],
    }
    sharding = jax.sharding.SingleDeviceSharding(card)
    arrays = {
        name: jax.ShapeDtypeStruct(size, jnp.float32, sharding=sharding) for name, size in {**shapes, **inputs}.items()
    }
    weights = Weights(*(arrays[name] for name in Weights._fields))
    run = passes.function(arm.recurrence, arm.projection, cell, pass_)
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision(PRECISION):
        options = private.AHEAD | {private.DUMP: folder, private.TRITON: triton}
        program = jax.jit(run).lower(weights, arrays["x"], arrays["target"]).compile(compiler_options=options)
        texts = _read_dumps(Path(folder))
    launches = thunks.launches(texts["thunk_sequence"], texts["thunk_metadata"], texts["optimised.hlo"])
    evidence = hlo.evidence(texts["optimised.hlo"])
    evidence.temp_bytes = int(program.memory_analysis().temp_size_in_bytes)
    return launches, evidence, texts


def _read_dumps(folder: Path) -> dict[str, str]:
    """Return the texts of the one program in a folder of dumps."""
    (optimised,) = folder.glob(f"*.{private.DUMPED}")
    (metadata,) = folder.glob("*.thunk_metadata.txt")
    sequences = sorted(folder.glob("*.thunk_sequence*.txt"), key=lambda file: len(file.name))
    return {
        "optimised.hlo": optimised.read_text(),
        "thunk_metadata": metadata.read_text(),
        "thunk_sequence": sequences[-1].read_text(),
    }
