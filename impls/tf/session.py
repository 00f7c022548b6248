"""TF1's way to run a program: a graph, and a session that takes and returns NumPy arrays.

A session's callable is TF1's means for calling one program repeatedly, and costs less than `Session.run`. On a CPU
neither feeding nor fetching copies: TensorFlow's arrays are aligned, so a fed one is used in place, and a fetched one
is the memory that the program wrote. `wrap_function` would run the same graph without a session, but in TF2's runtime
and without reference variables. It would no longer be the original.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow.compat.v1 as v1

from impls.evidence import Variable
from impls.interface import Program, Weights
from impls.tf import original


class Session:
    """One program. Its first run makes its graph and session, and gives its variables their values."""

    def __init__(self, program: Program, w: Weights, threads: int) -> None:
        w_in, w_rec, *rest = map(np.array, w)
        self.program, self.threads = program, threads
        self.values = [np.concatenate([w_in, w_rec]), *rest]  # kernel [I+H, H], bias [H], kernel [H, O], bias [O]
        self.graph = tf.Graph()
        self.call: Any = None

    def run(self, *inputs: Any) -> Any:
        """Run the program on x, and in training the target. Return y, or the loss and the gradients of `values`.

        For projection none, see Backend in impls.interface.
        """
        arrays = [np.asarray(memoryview(tensor)) for tensor in inputs]  # the same memory
        if self.call is None:
            self._open(arrays)
        return self.call(*arrays)

    def traced(self, *inputs: Any) -> Any:
        """Return the RunMetadata of a run: every operation that ran, how often, and its memory."""
        options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE, output_partition_graphs=True)
        metadata = v1.RunMetadata()
        fed = dict(zip(self.fed, map(np.array, inputs), strict=True))
        self.session.run(self.outputs, fed, options=options, run_metadata=metadata)
        return metadata

    def variables(self) -> list[Variable]:
        """Return every variable of the graph, in the order of their creation."""
        variables = self.graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
        return [Variable(variable.op.name, tuple(variable.shape.as_list())) for variable in variables]

    def _open(self, arrays: list[np.ndarray]) -> None:
        with original.tf1(self.graph):
            self.fed = [v1.placeholder(array.dtype, (array.shape[0], None, array.shape[2])) for array in arrays]
            self.outputs = self._outputs(*self.fed)
            start, weights = v1.global_variables_initializer(), v1.trainable_variables()
        self.graph.finalize()
        count = self.threads
        config = v1.ConfigProto(intra_op_parallelism_threads=count, inter_op_parallelism_threads=count)
        self.session = v1.Session(graph=self.graph, config=config)
        # Each variable starts as its weight, not as drawn. Projection none has no second layer.
        self.session.run(
            start, {weight.initial_value: value for weight, value in zip(weights, self.values, strict=False)}
        )
        self.call = self.session.make_callable(self.outputs, self.fed)

    def _outputs(self, x: Any, target: Any = None) -> Any:
        """Return the tensors to fetch."""
        y = original.forward(self.program.arm.name, self.program.cell, x, *self.values[2].shape)
        if target is None:
            return y
        return original.backward(y, target) if self.program.arm.projection == "none" else original.train(y, target)
