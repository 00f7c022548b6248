"""The RNN under study in TensorFlow: ways to run the recurrence and ways to project, read from top to bottom."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow import Tensor, TensorArray

from impls.interface import (
    BETA_1,
    BETA_2,
    CHUNKED_LOSS,
    EPSILON,
    LOG_BETA_1,
    LOG_BETA_2,
    RATE,
    Trained,
    Weights,
    chunk_sizes,
    family_of,
    weights_of,
)

State = tuple[Tensor, ...]  # h [B, H], and for lstm c [B, H]
Step = Callable[[Weights, State, Tensor], State]
Emit = Callable[..., Tensor]  # of the weights, h [B, H], and a step of each further array
Loss = Callable[..., Tensor]  # of y, the target, and how it is reduced


class Held(NamedTuple):
    """The weights as a user's program holds them: variables, and any built-in layers that hold some of them."""

    w_in: Any
    w_rec: Any
    b_rec: Any
    w_out: Any
    b_out: Any
    rnn: Any  # the layer that holds the first three, or None
    dense: Any  # the layer that holds the last two, or None

    @property
    def recurrent(self) -> tuple[Any, Any, Any]:
        """The weights that an arm with projection `none` has."""
        return self.w_in, self.w_rec, self.b_rec


class Cell(NamedTuple):
    """A cell's step, the number of arrays in its state, and the framework's built-in layer and cell."""

    step: Step
    states: int
    own: Any
    module: Any


def rnn(act: Callable[[Tensor], Tensor], w: Weights, state: State, x: Tensor) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]."""
    (h,) = state
    return (act(tf.nn.bias_add(x @ w.w_in + h @ w.w_rec, w.b_rec)),)


def rnn_relu(w: Weights, state: State, x: Tensor) -> State:
    return rnn(tf.nn.relu, w, state, x)


def rnn_tanh(w: Weights, state: State, x: Tensor) -> State:
    return rnn(tf.tanh, w, state, x)


def gru(w: Weights, state: State, x: Tensor) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]; gates r, z, n."""
    (h,) = state
    a_r, a_z, a_n = tf.split(tf.nn.bias_add(x @ w.w_in, w.b_rec), 3, axis=1)
    u_r, u_z, u_n = tf.split(h @ w.w_rec, 3, axis=1)
    r, z = tf.sigmoid(a_r + u_r), tf.sigmoid(a_z + u_z)
    n = tf.tanh(a_n + r * u_n)
    return ((1 - z) * n + z * h,)


def lstm(w: Weights, state: State, x: Tensor) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]; gates i, f, g, o."""
    h, c = state
    i, f, g, o = tf.split(tf.nn.bias_add(x @ w.w_in + h @ w.w_rec, w.b_rec), 4, axis=1)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c


def project(w: Weights, h: Tensor) -> Tensor:
    """Project h [N, H] to y [N, O]."""
    return tf.nn.bias_add(h @ w.w_out, w.b_out)


def keep(w: Weights, h: Tensor) -> Tensor:
    """Return h [..., H] itself, without projecting it."""
    return h


def start(w: Weights, cell: Cell, x: Tensor) -> State:
    """Return the state before the first step of x [T, B, I]: zeros [B, H]."""
    return tuple(tf.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype) for _ in range(cell.states))


def unroll(w: Weights, cell: Cell, x: Tensor, emit: Emit, *others: Tensor) -> list[Tensor]:
    """Run a Python loop over x [T, B, I] and others [T, ...], and return a list of T results of emit."""
    state = start(w, cell, x)
    out = []
    for x_t, *others_t in zip(*map(tf.unstack, (x, *others)), strict=True):
        state = cell.step(w, state, x_t)
        out.append(emit(w, state[0], *others_t))
    return out


def scan(w: Weights, cell: Cell, x: Tensor, emit: Emit) -> Tensor:
    """Run a symbolic loop over x [T, B, I], and return the stacked results of emit [T, B, N]."""

    def body(t: Tensor, state: State, out: TensorArray) -> tuple[Tensor, State, TensorArray]:
        state = cell.step(w, state, xs.read(t))
        return t + 1, state, out.write(t, emit(w, state[0]))

    steps, batch, _ = x.shape
    size = w.w_rec.shape[0] if emit is keep else w.w_out.shape[1]
    xs = TensorArray(x.dtype, steps).unstack(x)
    out = TensorArray(x.dtype, steps, element_shape=(batch, size))
    variables = (0, start(w, cell, x), out)
    return tf.while_loop(lambda t, state, out: t < steps, body, variables, maximum_iterations=steps)[2].stack()


def one_by_one(count: int, body: Callable[..., Any], variables: Any) -> Any:
    """Return a symbolic loop's results. Its first variable counts to `count`.

    By default a loop computes ten iterations side by side, and so holds ten of what each needs.
    """

    def unfinished(number: Tensor, *others: Any) -> Tensor:
        return number < count

    return tf.while_loop(unfinished, body, variables, parallel_iterations=1, maximum_iterations=count)


def unrolled(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by a Python loop."""
    return tf.stack(unroll(w, cell, x, keep))


def scanned(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by a symbolic loop."""
    return scan(w, cell, x, keep)


def layer(w: Held, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by the framework's built-in layer.

    Keras takes the batch axis first.
    """
    return batch_first(w.rnn(batch_first(x)))


def own_layer(cell: Cell, w: Weights) -> Any:
    """Return the framework's built-in layer of a cell, holding w_in, w_rec and b_rec as Keras lays them out."""
    inputs, size = w.w_in.shape[0], w.w_rec.shape[0]
    # The default, an orthogonal start, is not available in bf16. Every start is overwritten by the weights.
    rnn = cell.own(size, return_sequences=True, dtype=w.w_in.dtype.name, recurrent_initializer="zeros")
    return built(rnn, (None, None, inputs), w.recurrent)


class Projected(keras.Layer):  # type: ignore[misc]  # mypy looks into no framework
    """A cell with a dense layer inside, as Keras' RNN layer takes it: what TF1's OutputProjectionWrapper was."""

    def __init__(self, cell: Any, outputs: int) -> None:
        super().__init__(dtype=cell.dtype)
        self.cell, self.dense = cell, keras.layers.Dense(outputs, dtype=cell.dtype)
        self.state_size, self.output_size = cell.state_size, outputs

    def build(self, shape: Any) -> None:
        """Build both for inputs of a shape [B, I]."""
        self.cell.build(shape)
        self.dense.build((None, self.cell.units))
        self.built = True

    def call(self, inputs: Tensor, states: Any) -> tuple[Tensor, Any]:
        """Return y [B, O] and the next states."""
        h, states = self.cell(inputs, states)
        return self.dense(h), states

    def get_initial_state(self, batch_size: int | None = None) -> Any:
        return self.cell.get_initial_state(batch_size=batch_size)


def own_modules(cell: Cell, w: Weights, projection: str) -> Any:
    """Return Keras' RNN layer of its cell, which projects in the loop or not, holding its weights."""
    inputs, size = w.w_in.shape[0], w.w_rec.shape[0]
    inner = cell.module(size, dtype=w.w_in.dtype.name, recurrent_initializer="zeros")
    is_inside = projection == "in_loop"
    step = Projected(inner, w.w_out.shape[1]) if is_inside else inner
    rnn = keras.layers.RNN(step, return_sequences=True, dtype=w.w_in.dtype.name)
    return built(rnn, (None, None, inputs), tuple(w) if is_inside else w.recurrent)


def modules_per_step(w: Held, cell: Cell, x: Tensor) -> Tensor:
    return tf.stack([w.dense(h) for h in tf.unstack(layer(w, cell, x))])


def modules_batched(w: Held, cell: Cell, x: Tensor) -> Tensor:
    return w.dense(layer(w, cell, x))


def built(layer: Any, shape: tuple[int | None, ...], weights: tuple[Tensor, ...]) -> Any:
    """Build a Keras layer for inputs of a shape, set its variables to weights, and return it."""
    layer.build(shape)
    for variable, weight in zip(layer.trainable_variables, weights, strict=True):
        variable.assign(weight)
    return layer


def batch_first(a: Tensor) -> Tensor:
    """Swap the first two axes: [T, B, N] to [B, T, N], or back."""
    return tf.transpose(a, (1, 0, 2))


def given(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return x itself, which holds precomputed hidden states [T, B, H]."""
    return x


def project_steps(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a Python loop of T products."""
    return tf.stack([project(w, h) for h in tf.unstack(hs)])


def project_each(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a symbolic loop of T products."""

    def body(t: Tensor, out: TensorArray) -> tuple[Tensor, TensorArray]:
        return t + 1, out.write(t, project(w, inputs.read(t)))

    steps, batch, _ = hs.shape
    inputs = TensorArray(hs.dtype, steps).unstack(hs)
    out = TensorArray(hs.dtype, steps, element_shape=(batch, w.w_out.shape[1]))
    return tf.while_loop(lambda t, out: t < steps, body, (0, out), maximum_iterations=steps)[1].stack()


def project_once(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by one product, on h reshaped to [T*B, H]."""
    steps, batch, size = hs.shape
    return tf.reshape(project(w, tf.reshape(hs, (steps * batch, size))), (steps, batch, w.w_out.shape[1]))


def project_chunks(sizes: list[int], w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a product for each chunk of time; `sizes` are the steps of each."""
    return tf.concat([project_once(w, chunk) for chunk in tf.split(hs, sizes)], 0)


def project_bmm(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by one batched product of T."""
    return tf.nn.bias_add(tf.matmul(hs, w.w_out), w.b_out)


def project_vmap(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by one step's product, mapped over time."""
    return tf.vectorized_map(lambda h: project(w, h), hs)


def project_library(w: Held, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by the framework's built-in dense layer."""
    return w.dense(hs)


def project_time_distributed(w: Held, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a dense layer in Keras' wrapper, which takes the batch axis first."""
    return batch_first(w.dense(batch_first(hs)))


def own_dense(w: Weights) -> Any:
    """Return the framework's built-in dense layer, holding w_out and b_out."""
    size, outputs = w.w_out.shape
    return built(keras.layers.Dense(outputs, dtype=w.w_out.dtype.name), (None, None, size), (w.w_out, w.b_out))


def own_time_distributed(w: Weights) -> Any:
    """Return the built-in dense layer in Keras' TimeDistributed wrapper, holding w_out and b_out."""
    size, outputs = w.w_out.shape
    dtype = w.w_out.dtype.name
    wrapper = keras.layers.TimeDistributed(keras.layers.Dense(outputs, dtype=dtype), dtype=dtype)
    return built(wrapper, (None, 1, size), (w.w_out, w.b_out))


def unrolled_in_loop(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return tf.stack(unroll(w, cell, x, project))


def unrolled_per_step(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return tf.stack([project(w, h) for h in unroll(w, cell, x, keep)])


def scan_in_loop(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return scan(w, cell, x, project)


def scan_per_step(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return project_each(w, scanned(w, cell, x))


def squared(y: Tensor, target: Tensor, reduce: Any = tf.reduce_mean) -> Tensor:
    """Return the mean squared error of y [..., O], or what their squares are reduced to."""
    return reduce(tf.square(y - target))


def cross_entropy(y: Tensor, target: Tensor, reduce: Any = tf.reduce_mean) -> Tensor:
    """Return the mean softmax cross-entropy of logits y [..., O] against classes [...], or what it is reduced to."""
    return reduce(tf.nn.sparse_softmax_cross_entropy_with_logits(target, y))


def added(loss: Loss, w: Weights) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of h [N, H] and a target that projects h and returns the sum of its losses.

    What it computes is not kept for the backward pass, which computes it again. The weights are read outside of it:
    what recomputes takes tensors, and no variables.
    """
    w_out, b_out = map(tf.convert_to_tensor, (w.w_out, w.b_out))

    def add(w_out: Tensor, b_out: Tensor, h: Tensor, target: Tensor) -> Tensor:
        return loss(project(Weights(None, None, None, w_out, b_out), h), target, tf.reduce_sum)

    return partial(tf.recompute_grad(add), w_out, b_out)


def unrolled_in_loop_loss(loss: Loss, w: Weights, cell: Cell, x: Tensor, target: Tensor) -> Tensor:
    add = added(loss, w)
    losses = unroll(w, cell, x, lambda w, h, target: add(h, target), target)
    return tf.add_n(losses) / target.shape.num_elements()


def scan_in_loop_loss(loss: Loss, w: Weights, cell: Cell, x: Tensor, target: Tensor) -> Tensor:
    add, steps = added(loss, w), x.shape[0]
    xs, targets = (TensorArray(a.dtype, steps).unstack(a) for a in (x, target))

    def body(t: Tensor, state: State, total: Tensor) -> tuple[Tensor, State, Tensor]:
        state = cell.step(w, state, xs.read(t))
        return t + 1, state, total + add(state[0], targets.read(t))

    variables = (0, start(w, cell, x), tf.zeros((), x.dtype))
    return one_by_one(steps, body, variables)[2] / target.shape.num_elements()


def add_chunks(sizes: list[int], loss: Loss, w: Weights, hs: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss of h [T, B, H], projected and added up chunk by chunk; `sizes` are the steps of each.

    Chunks of one size are a symbolic loop. XLA would compute those of a Python loop side by side, and keep all of y.
    """
    add, total, first = added(loss, w), tf.zeros((), hs.dtype), 0
    for size in dict.fromkeys(sizes):
        count = sizes.count(size)
        arrays = [chunks(a[first : first + count * size], count) for a in (hs, target)]
        total = add_each(add, count, total, *arrays)
        first += count * size
    return total / target.shape.num_elements()


def add_each(add: Callable[..., Tensor], count: int, total: Tensor, *arrays: Tensor) -> Tensor:
    """Return a total with add of each of `count` items of arrays [count, ...], by a symbolic loop."""
    items = [TensorArray(a.dtype, count).unstack(a) for a in arrays]

    def body(number: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        return number + 1, total + add(*(item.read(number) for item in items))

    return one_by_one(count, body, (0, total))[1]


def chunks(a: Tensor, count: int) -> Tensor:
    """Reshape [count * T, B, ...] to [count, T*B, ...]."""
    return tf.reshape(a, (count, a.shape[0] // count * a.shape[1], *a.shape[2:]))


def adam(state: Trained, d: Weights) -> Trained:
    """Return the state after one step of Adam on the gradients d, in TF1's form: epsilon is not corrected for bias.

    Kingma and Ba 2015, end of section 2: rate sqrt(1 - beta_2^t) / (1 - beta_1^t). The differences are computed without
    cancellation.
    """
    t = state.t + 1
    rate = RATE * tf.sqrt(-tf.math.expm1(t * LOG_BETA_2)) / -tf.math.expm1(t * LOG_BETA_1)
    m = Weights(*(BETA_1 * m + (1 - BETA_1) * g for m, g in zip(state.m, d, strict=True)))
    v = Weights(*(BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(state.v, d, strict=True)))
    w = Weights(*(w - rate * m / (tf.sqrt(v) + EPSILON) for w, m, v in zip(state.w, m, v, strict=True)))
    return Trained(w, m, v, t)


def untrained(w: Weights) -> Trained:
    """Return the state before the first training step."""
    m, v = (Weights(*map(tf.zeros_like, w)) for _ in range(2))
    return Trained(w, m, v, tf.zeros((), w.w_in.dtype))


CELLS = {
    "rnn_relu": Cell(
        rnn_relu,
        1,
        partial(keras.layers.SimpleRNN, activation="relu"),
        partial(keras.layers.SimpleRNNCell, activation="relu"),
    ),
    "rnn_tanh": Cell(rnn_tanh, 1, keras.layers.SimpleRNN, keras.layers.SimpleRNNCell),
    "gru": Cell(gru, 1, keras.layers.GRU, keras.layers.GRUCell),
    "lstm": Cell(lstm, 2, keras.layers.LSTM, keras.layers.LSTMCell),
}
HIDDEN: dict[str, Callable[[Any, Cell, Tensor], Tensor]] = {
    "unrolled": unrolled,
    "scan": scanned,
    "layer": layer,
    "given": given,
    "modules": layer,
}
AFTER: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "none": keep,
    "per_step": project_steps,
    "batched": project_once,
    "bmm": project_bmm,
    "vmap": project_vmap,
    "library": project_library,
    "time_distributed": project_time_distributed,
}
IN_THE_LOOP: dict[str, Callable[[Any, Cell, Tensor], Tensor]] = {
    "unrolled_in_loop": unrolled_in_loop,
    "unrolled_per_step": unrolled_per_step,
    "scan_in_loop": scan_in_loop,
    "scan_per_step": scan_per_step,
    "modules_in_loop": layer,
    "modules_per_step": modules_per_step,
    "modules_batched": modules_batched,
}
LOSSES: dict[str, Loss] = {"squared": squared, "cross_entropy": cross_entropy}
LOSS_INSIDE = {"unrolled_in_loop_loss": unrolled_in_loop_loss, "scan_in_loop_loss": scan_in_loop_loss}
OWN_DENSE = {"library": own_dense, "time_distributed": own_time_distributed}


def held(w: Weights, cell: Cell, recurrence: str, projection: str) -> Held:
    """Return an arm's weights in variables: those of the built-in layers, which are built here, or separate ones."""
    if recurrence == "modules":
        rnn = own_modules(cell, w, projection)
        dense = own_dense(w) if projection in ("per_step", "batched") else None
    else:
        rnn = own_layer(cell, w) if recurrence == "layer" else None
        dense = OWN_DENSE[projection](w) if projection in OWN_DENSE else None
    recurrent = variables(rnn) if rnn else list(map(tf.Variable, w.recurrent))
    output = variables(dense) if dense else list(map(tf.Variable, (w.w_out, w.b_out)))
    return Held(*Weights(*(recurrent + output)[: len(Weights._fields)]), rnn, dense)


def variables(layer: Any) -> list[Any]:
    """Return the variables of a Keras layer: its kernels and its bias."""
    return [variable.value for variable in layer.trainable_variables]


def one_layer(recurrence: str, projection: str) -> Callable[[Any, Cell, Tensor], Tensor]:
    """Return the program of an arm of one layer."""
    if program := IN_THE_LOOP.get(f"{recurrence}_{projection}"):
        return program
    hidden, after = HIDDEN[recurrence], AFTER.get(projection)
    if after is None:
        return lambda w, cell, x: project_chunks(chunk_sizes(projection, x.shape[0]), w, hidden(w, cell, x))
    return lambda w, cell, x: after(w, hidden(w, cell, x))


def arm(recurrence: str, projection: str, layers: int = 1) -> Callable[[Any, Cell, Tensor], Tensor]:
    """Return an arm's program: it maps w, cell and x [T, B, I] to y [T, B, O], or h [T, B, H] for projection `none`."""
    program = one_layer(recurrence, projection)
    if layers == 1:
        return program

    def chained(w: Any, cell: Cell, x: Tensor) -> Tensor:
        for layer in range(layers):
            x = program(weights_of(w, layer), cell, x)
        return x

    return chained


def inside(recurrence: str, projection: str, loss: Loss) -> Callable[[Any, Cell, Tensor, Tensor], Tensor] | None:
    """Return the loss of an arm of one layer whose loss is inside, or None where it is not."""
    if program := LOSS_INSIDE.get(f"{recurrence}_{projection}"):
        return partial(program, loss)
    if family_of(projection) != CHUNKED_LOSS:
        return None
    hidden = HIDDEN[recurrence]
    return lambda w, cell, x, target: add_chunks(
        chunk_sizes(projection, x.shape[0]), loss, w, hidden(w, cell, x), target
    )


def objective(
    recurrence: str, projection: str, loss: str, layers: int = 1
) -> Callable[[Any, Cell, Tensor, Tensor], Tensor]:
    """Return an arm's loss as a program: it maps w, cell, x [T, B, I] and the target to a scalar.

    With the loss inside the last layer, those before it project in the loop too, or after it in one product.
    """
    measure = LOSSES[loss]
    last = inside(recurrence, projection, measure)
    if last is None:
        program = arm(recurrence, projection, layers)
        return lambda w, cell, x, target: measure(program(w, cell, x), target)
    if layers == 1:
        return last
    before = one_layer(recurrence, "batched" if family_of(projection) == CHUNKED_LOSS else "in_loop")

    def chained(w: Any, cell: Cell, x: Tensor, target: Tensor) -> Tensor:
        for layer in range(layers - 1):
            x = before(weights_of(w, layer), cell, x)
        return last(weights_of(w, layers - 1), cell, x, target)

    return chained
