"""TensorFlow behind the contract. It is imported late, in the worker, so that no one else needs it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from impls.interface import Data, Execution, Facts, Outputs, Program, Run, Settings, Weights, named


class Backend:
    """See impls.interface.Backend."""

    def __init__(self) -> None:
        self.functions: list[Any] = []

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        cache = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={settings.cache}"} if settings.cache else {}
        return {
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "PJRT_NPROC": threads,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "CUDA_VISIBLE_DEVICES": {"cpu": "-1", "gpu": "0"}[settings.device],
        } | cache

    def facts(self) -> Facts:
        import tensorflow as tf

        executions = {
            "eager": Execution(traced=False),
            "graph": Execution(traced=True),
            "xla": Execution(traced=True),
        }
        gpu = None if tf.config.list_physical_devices("GPU") else "TensorFlow sees no GPU (its build needs CUDA 12)"
        return Facts({"tensorflow": tf.__version__}, executions, {"cpu": None, "gpu": gpu})

    def open(self, settings: Settings) -> None:
        import tensorflow as tf

        from impls.tf import model

        self.tf, self.model = tf, model
        tf.get_logger().setLevel("ERROR")  # it warns of retracing when many functions share a name, as here
        self.device = {"cpu": "/CPU:0", "gpu": "/GPU:0"}[settings.device]
        tf.config.experimental.enable_tensor_float_32_execution(False)  # fp32 is IEEE fp32, on GPUs too

    def prepare(self, program: Program, w: Weights) -> Run:
        tf = self.tf
        arm = getattr(self.model, program.arm.name)
        act, loss = self.model.ACTIVATIONS[program.cell], self.model.loss

        def forward(x: Any) -> Any:
            return arm(w, act, x)

        def train(x: Any, target: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(w)
                out = loss(arm(w, act, x), target)
            # Projection none leaves w_out and b_out unused: their gradients are zeros.
            return out, *tape.gradient(out, w, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        run: Any = forward if program.pass_ == "forward" else train
        if program.execution != "eager":
            run = tf.function(run, jit_compile=program.execution == "xla", autograph=False)
            self.functions.append(run)
        # A traced function pays for every argument, used or not: as much as 5% of book's forward pass.
        return run if program.pass_ == "train" else lambda x, target: run(x)

    def put(self, data: Data) -> Data:
        with self.tf.device(self.device):
            return Data(Weights(*map(self.tf.constant, data.weights)), *map(self.tf.constant, data[1:]))

    def wait(self, outputs: Any) -> None:
        if self.device == "/GPU:0":
            self.tf.test.experimental.sync_devices()
            return
        for leaf in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            memoryview(leaf)  # waits for the buffer and copies nothing

    def get(self, outputs: Any) -> Outputs:
        leaves = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        return named([np.array(leaf) for leaf in leaves])

    def compilations(self) -> int:
        return sum(function.experimental_get_tracing_count() for function in self.functions)

    def product(self, size: int) -> Callable[[], None]:
        a = self.tf.ones((size, size))
        return lambda: self.wait(self.tf.matmul(a, a))
