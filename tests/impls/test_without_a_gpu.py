"""What backends do on a GPU, as far as it can be run where there is none. Each line says what stands for the GPU.

The device `meta` has shapes and no numbers, and refuses to mix its arrays with a CPU's, as a GPU does.
"""

import importlib
from types import SimpleNamespace

import pytest

from impls import libraries
from impls.interface import CELLS, Arm, Program, Settings, Unavailable
from tests.conftest import HERE, SMALL, data_of

pytestmark = pytest.mark.slow
ON_GPU = Settings("gpu", 1, "fp32")
about_torch = pytest.mark.skipif("torch" not in HERE, reason="it is about PyTorch")
about_jax = pytest.mark.skipif("jax" not in HERE, reason="it is about JAX")
about_tf = pytest.mark.skipif("tf" not in HERE, reason="it is about TensorFlow")


def test_workers_for_a_gpu_may_see_one(framework):
    backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    variables = {device: backend.environment(Settings(device, 1, "fp32")) for device in ("cpu", "gpu")}
    assert variables["cpu"].get("CUDA_VISIBLE_DEVICES", "-1") == "-1"
    assert "CUDA_VISIBLE_DEVICES" not in variables["gpu"]  # the user's own is inherited
    assert variables["gpu"].get("JAX_PLATFORMS", "cuda") == "cuda"


@pytest.fixture
def torch_on_meta():
    from impls.torch.backend import Backend

    backend = Backend()
    backend.open(ON_GPU)
    assert backend.device == "cuda"
    backend.device = "meta"
    return backend


AFTER = ("per_step", "bmm", "vmap", "library", "batched")
ARMS = [
    *(("unrolled", form) for form in ("none", "in_loop", *AFTER)),
    *(("given", form) for form in AFTER),
    *(("layer", form) for form in ("none", *AFTER)),
]


def devices_of(backend, program):
    """The devices of a program's outputs."""
    import torch

    data = backend.put(data_of(SMALL.model_copy(update={"cell": program.cell})))
    states = torch.ones(SMALL.T, SMALL.B, SMALL.H, device=backend.device)
    run = backend.prepare(program, data.weights)
    x = states if program.arm.recurrence == "given" else data.x
    outputs = run(x, states if program.arm.projection == "none" else data.target)
    backend.wait(outputs)
    return {output.device.type for output in (outputs if isinstance(outputs, tuple) else (outputs,))}


@about_torch
@pytest.mark.parametrize("cell", CELLS)
def test_torch_makes_every_array_where_its_data_are(cell, torch_on_meta):
    for recurrence, projection in ARMS:
        for pass_ in ("forward", "train"):
            program = Program(Arm(recurrence, projection), cell, pass_, "eager")
            assert devices_of(torch_on_meta, program) == {"meta"}, program


@about_torch
def test_an_array_made_on_the_cpu_is_caught(torch_on_meta, monkeypatch):
    import torch

    def start(w, cell, x):
        return tuple(torch.zeros(x.shape[1], w.w_rec.shape[0]) for _ in range(cell.states))

    monkeypatch.setattr(torch_on_meta.model, "start", start)
    with pytest.raises(RuntimeError, match="device"):
        devices_of(torch_on_meta, Program(Arm("unrolled", "batched"), "lstm", "forward", "eager"))


@about_torch
def test_torch_waits_for_the_gpu_whenever_it_is_timed(monkeypatch):
    """Arrays are torch's fakes, which are on a GPU that need not be there and take no gradients."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from impls.torch.backend import Backend

    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    backend = Backend()
    backend.open(ON_GPU)
    with FakeTensorMode():
        backend.product(4, 3, 2)()
        backend.scale(5)()
    assert len(waits) == 2


@about_torch
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_profile_of_a_gpu_that_ran_nothing_says_so():
    import torch

    from impls.torch import evidence

    a = torch.ones(2, 2)
    found, _ = evidence.of_call(lambda: (a @ a,), cuda=True)
    assert found.missing["device_kernels"] == "the profiler saw no kernel"
    evidence.add_libraries(found, lambda: None, cuda=True)
    assert found.missing["libraries"] == libraries.ON_GPU


@about_torch
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_all_graphs_of_a_tree_are_counted(monkeypatch):
    """The recorded graphs are made up."""
    from torch._inductor import cudagraph_trees

    from impls.torch.backend import Backend

    def node(*children):
        return SimpleNamespace(children={at: [child] for at, child in enumerate(children)})

    roots = SimpleNamespace(get_roots=lambda: [node(node(), node(node())), node()])
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda device, create_if_none_exists: roots)
    backend = Backend()
    backend.open(ON_GPU)
    assert backend._graphs().recorded == 5
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda device, create_if_none_exists: None)
    assert backend._graphs().recorded == 0


@about_jax
def test_jax_reads_a_gpu_s_profile_besides_the_program():
    """The CPU is taken for the GPU: nothing of it is in a profile's lines of a GPU."""
    from impls.jax.backend import Backend

    backend = Backend()
    backend.open(Settings("cpu", 1, "fp32"))
    backend.gpu = True
    data = backend.put(data_of(SMALL))
    program = Program(Arm("scan", "in_loop"), SMALL.cell, "forward", "xla")
    found, _ = backend.evidence(program, backend.prepare(program, data.weights), data[1:])
    assert found.missing["libraries"] == libraries.ON_GPU
    assert found.missing["device_kernels"] == "the profiler saw no kernel"
    assert found.device_ns is found.graph_launches is None
    assert found.products


@about_tf
def test_tf_reads_a_gpu_s_profile_and_its_allocator_besides_the_program(monkeypatch):
    """The CPU is taken for the GPU, and the allocator is made up."""
    import tensorflow as tf

    from impls.tf.backend import Backend

    backend = Backend()
    backend.open(Settings("cpu", 1, "fp32"))
    backend.gpu = True
    told = iter([{"current": 1000}, {"current": 1240, "peak": 5000}])
    memory = tf.config.experimental
    monkeypatch.setattr(memory, "get_memory_info", lambda device: next(told))
    monkeypatch.setattr(memory, "reset_memory_stats", lambda device: None)
    data = backend.put(data_of(SMALL))
    program = Program(Arm("scan", "in_loop"), SMALL.cell, "forward", "graph")
    found, _ = backend.evidence(program, backend.prepare(program, data.weights), data[1:])
    assert found.missing["libraries"] == libraries.ON_GPU
    assert found.missing["device_kernels"] == "the profiler saw no kernel"
    assert found.temp_bytes == 5000 - 1240  # what is held after the call is its outputs


@pytest.fixture
def torch_on_cpu():
    from impls.torch.backend import Backend

    backend = Backend()
    backend.open(Settings("cpu", 1, "fp32"))
    return backend


def flattened_on_cpu(arrays, cell):
    """Does what cuDNN does with a layer's weights: they become views of one buffer, in the order given."""
    import torch

    buffer, start = torch.cat([a.flatten() for a in arrays]), 0
    for array in arrays:
        array.set_(buffer.untyped_storage(), start, array.shape)
        start += array.numel()


def biases_apart(arrays, cell):
    w_in, w_rec, b_in, b_rec = arrays
    flattened_on_cpu([b_in, w_in, w_rec, b_rec], cell)


@about_torch
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_a_layer_s_weights_in_one_buffer_are_the_same_weights(cell, torch_on_cpu, monkeypatch):
    """The CPU is taken for the GPU."""
    import torch

    from impls.torch import private

    data = torch_on_cpu.put(data_of(SMALL.model_copy(update={"cell": cell})))
    program = Program(Arm("layer", "batched"), cell, "forward", "eager")
    expected = torch_on_cpu.prepare(program, data.weights)(*data[1:])
    monkeypatch.setattr(private, "flatten_layer_weights", flattened_on_cpu)
    torch_on_cpu.device = "cuda"
    run = torch_on_cpu.prepare(program, data.weights)
    assert torch.equal(run(*data[1:]), expected)
    monkeypatch.setattr(private, "flatten_layer_weights", biases_apart)
    with pytest.raises(AssertionError, match="cuDNN lays biases out otherwise"):
        torch_on_cpu.prepare(program, data.weights)


@about_torch
def test_a_program_without_its_cuda_graph_is_not_called_one(torch_on_cpu, monkeypatch):
    """Inductor is not called, and how many graphs it recorded is made up."""
    import torch

    from impls.torch.backend import Graphs

    options, steps = [], []
    monkeypatch.setattr(torch, "compile", lambda function, **given: options.append(given.get("options")) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(None))
    monkeypatch.setattr(torch_on_cpu, "_prove_counting", lambda: None)
    data = torch_on_cpu.put(data_of(SMALL))
    program = Program(Arm("unrolled", "batched"), SMALL.cell, "forward", "cudagraph")
    graphs = iter([Graphs(0, 0), Graphs(1, 0)])
    monkeypatch.setattr(torch_on_cpu, "_graphs", lambda: next(graphs))
    torch_on_cpu.prepare(program, data.weights)(*data[1:])
    assert {"triton.cudagraphs": True} in options
    assert len(steps) == 3  # it warms up, records, and replays
    monkeypatch.setattr(torch_on_cpu, "_graphs", lambda: Graphs(1, 0))
    with pytest.raises(Unavailable, match="Inductor recorded no CUDA graph"):
        torch_on_cpu.prepare(program, data.weights)(*data[1:])
