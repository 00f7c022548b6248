"""Every name of JAX that its authors do not promise to keep, in one place.

A new version may rename or change each of them. tests/impls/test_private.py looks for each, and pyproject.toml bounds
the version. The worker proves that the events are still sent, before it measures anything.
"""

from itertools import product
from typing import Any

JAXPRS = ("ClosedJaxpr", "Jaxpr.replace", "JaxprEqn.replace", "Literal", "Var")  # in jax.extend.core
NAMES = (  # module, and the name in it
    ("jax.experimental.topologies", "get_topology_desc"),
    ("jax.monitoring", "register_event_duration_secs_listener"),
    ("jax.profiler", "ProfileData.from_file"),
    *product(["jax.extend.core"], (*JAXPRS, "jaxpr_as_fun", "jaxprs_in_params", "unmapped_aval")),
    *product(["jax.extend.core.primitives"], ("dot_general_p", "remat_p", "scan_p")),
    ("jax._src.source_info_util", "summarize"),
)
COMPILE_EVENTS = "/jax/core/compile/"  # start of the names of the events that JAX sends when it traces or compiles
PLAIN = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}  # hands nothing to YNNPACK
AHEAD = {"xla_dump_hlo_as_text": True}  # options of XLA's compiler: what it writes into DUMP
DUMP, TRITON = "xla_dump_to", "xla_gpu_enable_triton_gemm"  # options: a folder; whether Triton may multiply
PLUGINS = ("jax-cuda13-pjrt", "jax-cuda12-pjrt")  # packages, one of which holds XLA for GPUs
DUMPED = "sm_*_gpu_after_optimizations.txt"  # end of the name of the file with the optimised program
THREADS = "PJRT_NPROC"  # environment variable: threads of XLA's CPU client
OF_A_SCAN = {"jaxpr", "length", "reverse", "unroll"}  # parameters, beside those that group its inputs and results
COUNTED, GROUPED = {"num_carry", "num_consts"}, {"ft_in", "ft_out"}  # how they are grouped: to JAX 0.10, from 0.11


def source_line(equation: Any) -> str:
    """Return where the user's program made an equation of a jaxpr: file, line and function, or "unknown"."""
    from jax._src import source_info_util

    return source_info_util.summarize(equation.source_info) or "unknown"


def scan_counts(scan: Any) -> tuple[int, int] | None:
    """Return how many of a scan's inputs are constants, and how many carries; None if its parameters are not known."""
    grouping = set(scan.params) - OF_A_SCAN
    if not set(scan.params) >= OF_A_SCAN or grouping not in (COUNTED, GROUPED):
        return None
    if grouping == COUNTED:
        return scan.params["num_consts"], scan.params["num_carry"]
    consts, carries, _ = scan.params["ft_in"].unpack()
    return len(consts), len(carries)


def scan_parameters(scan: Any, closed: Any, num_consts: int, num_carry: int) -> dict[str, Any]:
    """Return the parameters of a scan that has another body, with so many constants, and carries as before."""
    params = scan.params | {"jaxpr": closed}
    if set(scan.params) >= COUNTED:
        return params | {"num_consts": num_consts}
    from jax._src import flattree

    def grouped(*counts: int) -> Any:
        return flattree.pack(tuple(flattree.nones(count) for count in counts))

    num_xs, num_ys = len(closed.jaxpr.invars) - num_consts - num_carry, len(closed.jaxpr.outvars) - num_carry
    return params | {"ft_in": grouped(num_consts, num_carry, num_xs), "ft_out": grouped(num_carry, num_ys)}
