"""The JAX backend. JAX is imported late, inside the worker, so that no other process needs it.

The execution `eager` runs op by op, without jit. The loop of `lax.scan` is always compiled, so eager has no scan.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from impls import hlo, libraries, trace
from impls.evidence import Evidence
from impls.interface import (
    CHUNKED,
    Data,
    Execution,
    Facts,
    Outputs,
    Program,
    Run,
    Settings,
    Trained,
    Weights,
    named,
    prove_counting,
    require_layer,
)
from impls.jax import private

MATMUL = "jax_default_matmul_precision"
MATMULS = {"tf32": "tensorfloat32", "bf16": "default", "fp32": "highest", "fp64": "highest"}
NOT_EAGER = {
    "scan": "lax.scan compiles its loop even outside jit: it has no op-by-op form",
    "layer": "nnx.RNN is a lax.scan, which compiles its loop even outside jit: it has no op-by-op form",
    "modules": "nnx's modules are put together at every call, and lax.scan compiles its loop, even outside jit",
    "hoisted": "hoist traces its program at every call, which jit does once",
    "in_loop_loss": "jax.checkpoint traces its function at every call, which jit does once",
    "chunked_loss_k": "lax.map compiles its loop even outside jit: it has no op-by-op form",
    "library": "nnx.Linear as a function of its weights is put together at every call, which jit does once",
}
NO_LOOP = "an unrolled program has no loop to take anything out of"
NO_TIME_DISTRIBUTED = "TimeDistributed is a layer of Keras"


class Backend:
    """The contract of impls.interface.Backend, fulfilled with JAX."""

    def __init__(self) -> None:
        self.compiled = 0

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = {private.THREADS: str(settings.threads)} | ({"TMPDIR": settings.cache} if settings.cache else {})
        if settings.device == "cpu":
            return threads | {"JAX_PLATFORMS": "cpu"} | (private.PLAIN if settings.library == "plain" else {})
        # Workers that verify run side by side: none may reserve most of the GPU's memory in advance.
        return threads | {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def facts(self) -> Facts:
        import flax
        import jax
        import jaxlib

        versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__}
        without = {"time_distributed": NO_TIME_DISTRIBUTED, "unrolled_hoisted": NO_LOOP}
        executions = {
            "eager": Execution(False, without=without | NOT_EAGER, trains=False, usual_passes=("forward", "loss")),
            "xla": Execution(traced=True, without=without, loop="scan", chunks_unrolled=(CHUNKED,)),
        }
        return Facts(versions, executions, {"cpu": None, "gpu": _why_no_gpu()})

    def open(self, settings: Settings) -> dict[str, str]:
        import jax
        import jax.numpy as jnp

        from impls.jax import model, passes

        self.jax, self.jnp, self.model, self.passes = jax, jnp, model, passes
        self.gpu = settings.device == "gpu"
        jax.config.update("jax_enable_x64", settings.precision == "fp64")
        self.dtype = jnp.bfloat16 if settings.precision == "bf16" else None
        if settings.precision != "as_shipped":
            jax.config.update(MATMUL, MATMULS[settings.precision])
        if settings.cache:
            jax.config.update("jax_compilation_cache_dir", settings.cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.monitoring.register_event_duration_secs_listener(self._count)
        prove_counting(self.compilations, lambda: self.wait(jax.jit(lambda: jnp.zeros(()))()), "JAX's compile events")
        return {"default_matmul_precision": str(getattr(jax.config, MATMUL))}

    def prepare(self, program: Program, w: Weights) -> Run:
        require_layer(program, self.model.CELLS[program.cell].own)
        arm = program.arm
        kind = (program.cell, program.pass_, program.loss, program.layers)
        run = self.passes.function(arm.recurrence, arm.projection, *kind)
        return functools.partial(self.jax.jit(run) if program.execution == "xla" else run, w)

    def trainer(self, program: Program, w: Weights) -> Run:
        objective = self.model.objective(program.arm.recurrence, program.arm.projection, program.loss)
        cell, adam = self.model.CELLS[program.cell], self.model.adam
        state = self.model.untrained(w)

        def value(w: Weights, x: Any, target: Any) -> Any:
            return objective(w, cell, x, target)

        def update(state: Trained, x: Any, target: Any) -> Any:
            out, d = self.jax.value_and_grad(value)(state.w, x, target)
            return out, adam(state, d)

        if program.execution == "xla":
            update = self.jax.jit(update, donate_argnums=0)

        def step(x: Any, target: Any) -> Any:
            nonlocal state
            out, state = update(state, x, target)
            return out, *state.leaves

        return step

    def put(self, data: Data) -> Data:
        # The copies keep JAX from aliasing NumPy's memory, which other arms' data may share.

        def put(a: np.ndarray) -> Any:
            return self.jnp.array(a, self.dtype if a.dtype.kind == "f" else None, copy=True)

        return self.jax.tree.map(put, data)

    def wait(self, outputs: Any) -> None:
        self.jax.block_until_ready(outputs)

    def get(self, program: Program, outputs: Any) -> Outputs:
        leaves = self.jax.tree.leaves(outputs)
        arrays = [np.array(leaf, "float32" if leaf.dtype == "bfloat16" else None) for leaf in leaves]
        return named(arrays, program.pass_)

    def evidence(self, program: Program, run: Any, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """Count by the means of each execution.

        xla is counted in the optimised HLO, eager in the operations that are dispatched one by one. On a GPU the
        profiler is read too.
        """
        from impls.jax import evidence

        result, texts = self._counted(program, run, inputs)
        libraries.close(result)
        if self.gpu:
            libraries.on_gpu(result)
            trace.profile(result, lambda: evidence.profiled(lambda: self.wait(run(*inputs))))
        return result, texts

    def _counted(self, program: Program, run: Any, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        from impls.jax import evidence

        arguments = (*run.args, *inputs)
        if program.execution == "eager":
            result = self.jax.make_jaxpr(run.func)(*arguments)
            return evidence.of_jaxpr(result.jaxpr), {"program.jaxpr": str(result)}
        traced = run.func.trace(*arguments)
        compiled = traced.lower().compile()
        text = compiled.as_text()
        result = hlo.evidence(text)
        result.written = evidence.products_of(traced.jaxpr.jaxpr)
        result.temp_bytes = int(compiled.memory_analysis().temp_size_in_bytes)
        texts = {"optimised.hlo": text}
        if program.arm.projection == "hoisted":
            texts["hoist.txt"] = self._hoist_log(program, *arguments[:2])
        return result, texts

    def _hoist_log(self, program: Program, w: Weights, x: Any) -> str:
        """Return what hoist decided of a program's loop: a line for each group of operations."""
        log: list[Any] = []
        self.jax.make_jaxpr(lambda w, x: self.model.scan_hoisted(w, self.model.CELLS[program.cell], x, log))(w, x)
        return "".join(f"{record}\n" for record in log)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return None. On a GPU JAX's allocator tells the peak of the whole process, and not that of a call."""
        return None

    def compilations(self) -> int:
        return self.compiled

    def product(self, rows: int, inner: int, columns: int, execution: str = "") -> Callable[[], None]:
        """Return a product; compiled, in eager too, where JAX would compile the same and then first calls find it."""
        a, b = self.jnp.ones((rows, inner), "float32"), self.jnp.ones((inner, columns), "float32")
        multiply = self.jax.jit(lambda a, b: a @ b)
        return lambda: self.wait(multiply(a, b))

    def scale(self, count: int) -> Callable[[], None]:
        a = self.jnp.ones(count, "float32")
        double = self.jax.jit(lambda a: 2 * a)
        return lambda: self.wait(double(a))

    def _count(self, event: str, duration_s: float, **_: Any) -> None:
        self.compiled += event.startswith(private.COMPILE_EVENTS)


def _why_no_gpu() -> str | None:
    import jax

    try:
        jax.devices("gpu")
    except RuntimeError:
        return "JAX sees no GPU"
    return None
