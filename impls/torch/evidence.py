"""What a PyTorch program does in one call, from the profiler and from the modules that Inductor generated."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from impls import libraries, trace
from impls.evidence import Evidence, Product, counted, listed
from impls.torch import private

NO_LOOPS = "Inductor turns a loop into Python, which holds no trip count; kernels and products are those of all trips"
REPLAYED = "a CUDA graph replays kernels, which do not say what shapes they multiply"
ONE_CALL = "the layer is one call of a library, whose products the profiler does not see"
UNKNOWN = "products of a kind whose operands are not known here"
OPERANDS = {"aten::mm": 0, "aten::bmm": 0, "aten::mv": 0, "aten::addmm": 1, "aten::baddbmm": 1, "aten::addmv": 1}
VIEWS = re.compile(  # operations that compute nothing: they re-describe memory or allocate it
    r"aten::(t|transpose|permute|expand|expand_as|as_strided|as_strided_|view|_unsafe_view|view_as|reshape|_reshape_alias|"
    r"unbind|select|slice|narrow|split|chunk|unsafe_chunk|unsafe_split|detach|detach_|alias|unsqueeze|squeeze|unflatten|"
    r"empty|empty_like|empty_strided|new_empty|new_empty_strided|resize_|result_type|is_same_size|item|"
    r"numpy_T|cudnn_is_acceptable|_local_scalar_dense|resolve_conj|resolve_neg|_has_compatible_shallow_copy_type|lift_fresh|set_|size|stride)"
)
LAYERS = ("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::_thnn_fused_lstm_cell", "aten::_thnn_fused_gru_cell")
MULTIPLIES = re.compile(  # names of products, convolutions and recurrent layers, but not of a cell's pointwise part
    r"\w+::_*(?:\w+_)?(?:b?(?:add)?b?mm|(?:add)?mv|matmul|v?dot|tensordot|addr|ger|(?:bi)?linear|gem[mv]|einsum|"
    r"conv(?:olution|\d?d)?|attention|cdist|(?:rnn|lstm|gru)(?!_cell|_flatten))(?:_\w*)?"
)
FUSED = re.compile(r"cpp_fused\w*")
GENERATED = "triton_"  # start of the names of Inductor's GPU kernels


def of_call(call: Callable[[], Sequence[Tensor]], cuda: bool) -> tuple[Evidence, str]:
    """Return the evidence of one call, which must return its outputs, and its operations as text.

    `temp_bytes` is a GPU's memory if `cuda`, and otherwise the host's.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with generated() as fused, profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        outputs = call()
    events = profiler.events()
    kernels, products = Counter(fused), Counter[tuple[int, int, int, int]]()
    unknown_names: dict[str, None] = {}
    for event in _kernels(events):
        kernels[event.name.removeprefix("aten::")] += 1
        if event.name in OPERANDS:
            products[_product(event)] += 1
        elif _unknown(event):
            unknown_names[event.name] = None
    result = counted(products, kernels)
    if unknown_names:
        result.missing["products"] = f"{UNKNOWN}: {', '.join(sorted(unknown_names))}"
    device_type = DeviceType.CUDA if cuda else DeviceType.CPU
    result.fusions, result.temp_bytes = sum(fused.values()), _peak_bytes(profiler, device_type, outputs)
    if any(name.removeprefix("aten::") in kernels for name in LAYERS):
        result.missing["products"] = ONE_CALL
    if cuda:
        trace.add(result, trace.of_kineto(profiler.profiler.kineto_results.events(), DeviceType.CUDA))
        result.fusions = sum(times for name, times in result.device_kernels.items() if name.startswith(GENERATED))
    if result.graph_launches:
        result.missing |= dict.fromkeys(("products", "kernels"), REPLAYED)
    return result, "".join(f"{line}\n" for line in _lines(events))


def add_libraries(result: Evidence, call: Callable[[], object], cuda: bool) -> None:
    """Add to a call's evidence which libraries multiply in another such call, as they print it."""
    if cuda:
        libraries.on_gpu(result)
        return

    def verbose_call() -> None:
        with private.libraries_verbose():
            call()

    libraries.look(result, lambda: libraries.add(result, libraries.lines_of(libraries.printed(verbose_call))))


def products(call: Callable[[], object]) -> list[Product]:
    """Return the products that a call issues, or none if the profiler does not see them all. A first call compiles."""
    call()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        call()
    events = list(_kernels(profiler.events()))
    if any(event.name in LAYERS or _unknown(event) for event in events):
        return []
    return listed(Counter(_product(event) for event in events if event.name in OPERANDS))


@contextlib.contextmanager
def generated() -> Iterator[Counter[str]]:
    """Count calls of generated kernels, by replacing them in their modules, which look them up by name at each call."""
    counts: Counter[str] = Counter()

    def count_calls(name: str, kernel: Any) -> Any:
        kind = re.sub(r"_\d+$", "", name)

        def call(*arguments: Any) -> Any:
            counts[kind] += 1
            return kernel(*arguments)

        return call

    originals = [
        (module, name, kernel)
        for module in private.generated_modules()
        for name, kernel in vars(module).items()
        if FUSED.fullmatch(name) and callable(kernel)
    ]
    for module, name, kernel in originals:
        setattr(module, name, count_calls(name, kernel))
    try:
        yield counts
    finally:
        for module, name, kernel in originals:
            setattr(module, name, kernel)


def _kernels(events: Any) -> Iterator[Any]:
    """Yield the events that compute: matrix products, whole layers, and other operations that call none that compute.

    A product that is made of products (under vmap) does not count itself. What a product does besides is part of it.
    """
    for event in events:
        within = any(map(_whole, _above(event)))
        if _whole(event):
            if not any(map(_whole, _below(event))):
                yield event
        elif _computes(event) and not within and not any(map(_computes, _below(event))):
            yield event


def _whole(event: Any) -> bool:
    return _known(event) or _unknown(event)


def _known(event: Any) -> bool:
    return event.name in OPERANDS or event.name in LAYERS


def _unknown(event: Any) -> bool:
    """Return whether an unknown operation multiplies, is not part of a known one, and calls none that multiplies."""
    if _known(event) or not MULTIPLIES.fullmatch(event.name) or any(map(_known, _above(event))):
        return False
    return not any(_known(inner) or MULTIPLIES.fullmatch(inner.name) for inner in _below(event))


def _computes(event: Any) -> bool:
    return event.name.startswith(("aten::", "mkldnn::")) and not VIEWS.fullmatch(event.name)


def _above(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _below(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _below(child)


def _product(event: Any) -> tuple[int, int, int, int]:
    """Return batch, M, K and N of a product, from the shapes of its operands."""
    index = OPERANDS[event.name]
    left, right = event.input_shapes[index : index + 2]
    *batch, m, k = left
    return (batch[0] if batch else 1), m, k, (right[-1] if len(right) > 1 else 1)


def _peak_bytes(profiler: Any, device_type: DeviceType, outputs: Sequence[Tensor]) -> int | None:
    """Return the most bytes that a call had allocated on a device at once, without its outputs."""
    allocated = peak = 0
    memory_events = [
        event
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == device_type
    ]
    for event in sorted(memory_events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak - sum(output.nbytes for output in outputs) if memory_events else None


def _lines(events: Any) -> Iterator[str]:
    """Yield the operations in the order in which they began, indented by call depth."""
    for event in events:
        yield f"{'  ' * len(list(_above(event)))}{event.name} {event.input_shapes or ''}".rstrip()
