"""The worker: one process, one framework, device, thread count, execution and precision.

The only process that imports impls.<framework>. It reads requests (harness.worker.messages) from stdin, and answers
on a file descriptor of its own, so that nothing a framework prints can spoil an answer. Before the answer to a block, a
training or the oracle come stages, which say what is about to happen.
"""

import importlib
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from harness.errors import UsageError
from harness.machine.parent import end_first_without_memory, end_with_parent
from harness.records.schema import CallOverheads
from harness.study import weights
from harness.study.data import DTYPES, cast
from harness.study.matrix import Framework, WorkerEnvironment
from harness.worker import counting, pair_check, pair_file, pair_time, peak_rates, timing, training
from harness.worker.messages import (
    Answer,
    BlockAnswer,
    BlockRequest,
    CountRequest,
    FactsAnswer,
    FactsRequest,
    OpenAnswer,
    OpenRequest,
    OracleAnswer,
    OracleRequest,
    PairCheckAnswer,
    PairCheckRequest,
    PairRefusedAnswer,
    PairTimeAnswer,
    PairTimeRequest,
    Request,
    StageAnswer,
    TrainAnswer,
    TrainRequest,
    UnwrittenAnswer,
    decode_request,
    encode,
)
from harness.worker.pair_file import Pair
from impls.functions import Functions
from impls.interface import Backend, Outputs, Settings

PRODUCT = 1536  # side of the square product that shows how many threads are used
Stage = Callable[[str, str], None]  # tells the parent which arm is about to do what


def main() -> None:
    """Serve requests until stdin ends.

    Command-line arguments: the framework, and the file descriptor to answer on.
    """
    end_with_parent()  # so that no worker keeps measuring after its parent was killed
    end_first_without_memory()  # and its parent records why
    framework, descriptor = sys.argv[1], int(sys.argv[2])
    with os.fdopen(descriptor, "wb") as answers:

        def send(answer: Answer | StageAnswer) -> None:
            answers.write(encode(answer))
            answers.flush()

        def send_stage(arm: str, what: str) -> None:
            send(StageAnswer(arm=arm, what=what))

        service = Service(framework, importlib.import_module(f"impls.{framework}.backend").Backend(), send_stage)
        for line in sys.stdin.buffer:
            send(service.answer(decode_request(line)))


@dataclass
class Service:
    """What a worker answers requests with: its framework's backend, and the settings that it was opened with."""

    framework: str
    backend: Backend
    stage: Stage
    settings: Settings | None = None
    adapter: Functions | None = None  # once the framework is open and a user's file is asked of
    pair: Pair | None = None  # the user's file once it has been imported

    def answer(self, request: Request) -> Answer:
        """Do what a request asks for, and return its answer."""
        match request:
            case FactsRequest():
                return FactsAnswer(framework=facts(self.framework, self.backend, request))
            case OpenRequest():
                self.settings = request.settings
                return open_framework(self.backend, request)
            case OracleRequest():
                return compute_oracle(request, self.stage)
            case TrainRequest():
                return train(self.backend, request, self.stage)
            case CountRequest():
                return counting.count(self.framework, request, time.perf_counter)
            case PairCheckRequest() | PairTimeRequest():
                return self.answer_pair(request)
            case BlockRequest():
                assert self.settings is not None
                return run_block(self.backend, self.settings, request, self.stage)

    def answer_pair(self, request: PairCheckRequest | PairTimeRequest) -> Answer:
        """Check or time the functions of a user's file, which the first request imports."""
        assert self.settings is not None
        exact = isinstance(request, PairCheckRequest) and request.exact
        try:
            if self.adapter is None or self.pair is None:
                self.adapter = importlib.import_module(f"impls.{self.framework}.functions").Functions(self.backend)
                loading = pair_file.Loading(request.precision, request.seed, exact, request.hoist)
                self.pair = pair_file.load(Path(request.file), self.adapter, loading)
            if isinstance(request, PairCheckRequest):
                return check_pair(self.pair, self.adapter, request, self.stage)
        except UsageError as error:
            return PairRefusedAnswer(reason=str(error))
        return time_pair(self.pair, self.adapter, self.backend, self.settings.threads, request, self.stage)


def facts(name: str, backend: Backend, request: FactsRequest) -> Framework:
    """Return the framework's facts about itself, and the environment that each of its workers needs.

    If the framework is not installed or does not start, its `missing` holds the reason instead.
    """
    environments = [
        WorkerEnvironment(
            device, threads, backend.environment(Settings(device, threads, "fp32", request.cache, request.library))
        )
        for device in request.devices
        for threads in request.threads
    ]
    try:
        own_facts = backend.facts()
    except ModuleNotFoundError as error:
        return Framework(name, missing=f"{error.name or error} is not installed", installed=False)
    except Exception as error:  # whatever a framework raises is a fact to report, not a crash
        return Framework(name, missing=f"it is installed and does not start: {_describe_error(error)}")
    return Framework(name, None, own_facts.versions, own_facts.executions, own_facts.devices, environments)


def _describe_error(error: Exception) -> str:
    """Return an error's type and message on one line; without a message, the line of code that raised it."""
    message = " ".join(str(error).split())
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {message or f'{frame.line} ({frame.filename}, line {frame.lineno})'}"


def check_pair(pair: Pair, adapter: Functions, request: PairCheckRequest, stage: Stage) -> PairCheckAnswer:
    """Check that a user's functions compute the same. Raises UsageError where they cannot be compared."""
    differences, expected = pair_check.Checker(pair, adapter, request.exact, stage).differences()
    if request.expected:
        pair_check.save_expected(expected, Path(request.expected))
    return PairCheckAnswer(
        functions=list(pair.functions),
        inputs=pair.input_records(),
        gradients=list(pair.gradients),
        sources=pair_file.sources(pair.path),
        differences=differences,
        hoisted=list(dict.fromkeys(pair.log)),  # a function is traced several times
    )


def time_pair(
    pair: Pair, adapter: Functions, backend: Backend, threads: int, request: PairTimeRequest, stage: Stage
) -> PairTimeAnswer:
    """Time a user's functions, if the threads can be proven where that is asked for."""
    answer = PairTimeAnswer()
    if request.prove:
        answer.proven, answer.threads_used = prove_threads(backend, threads)
        if not answer.proven:
            return answer
    spec = pair_time.PairTiming(
        request.execution,
        request.pass_,
        request.left_out,
        request.rounds,
        request.order_seed,
        request.calls,
        request.counted,
    )
    expected = pair_check.load_expected(Path(request.expected))
    block = pair_time.PairBlock(pair, adapter, backend.compilations, spec, expected, METERS, stage)
    block.run()
    answer.timer_ns, answer.arms, answer.differences = block.timer, dict(block.results()), block.differences
    return answer


def prove_threads(backend: Backend, threads: int) -> tuple[bool, float]:
    """Return whether a large product uses as many threads as were set, and how many cores it kept busy."""
    return timing.prove_threads(
        threads, backend.product(PRODUCT, PRODUCT, PRODUCT), time.process_time_ns, time.perf_counter_ns
    )


def open_framework(backend: Backend, request: OpenRequest) -> OpenAnswer:
    """Open the framework, measure its peak rates and prove its threads, as far as the request asks for it."""
    answer = OpenAnswer(numerics=backend.open(request.settings))
    if request.rate:
        answer.rates = peak_rates.measure_rates(backend, time.perf_counter_ns, request.settings.device)
        answer.rates.products = peak_rates.product_times(
            backend, time.perf_counter_ns, request.execution, request.products
        )
    if request.prove:
        answer.proven, answer.threads_used = prove_threads(backend, request.settings.threads)
    return answer


def run_block(
    backend: Backend, settings: Settings, request: BlockRequest, stage: Stage
) -> BlockAnswer | UnwrittenAnswer:
    """Run one block: write its outputs into the folder that the request names, and return its times."""
    data = weights.load_data(Path(request.weights), request.workload)
    data = data._replace(x=data.x[: request.steps], target=data.target[: request.steps])
    spec = timing.TimingSpec(
        cell=request.workload.cell,
        loss=request.workload.loss,
        layers=request.workload.layers,
        pass_=request.pass_,
        execution=request.execution,
        arms=request.arms,
        data=cast(data, DTYPES[settings.precision]),
        rounds=request.rounds,
        seed=request.seed,
        seconds=request.seconds,
        counted=tuple(request.counted),
        control=request.control,
        calls=request.calls,
        hurried=request.hurried,
        loop=request.loop,
        overwrites=request.overwrites,
        peaks=request.peaks,
        on_gpu=settings.device == "gpu",
    )
    folder = Path(request.outputs)

    def keep(name: str, moment: str, outputs: Outputs) -> None:
        arrays = {f"{name}/{moment}/{quantity}": array for quantity, array in outputs.items()}
        with _translate_write_errors():
            save_file(arrays, folder / f"{name}.{moment}.safetensors")

    try:
        result = timing.block(backend, spec, METERS, keep, stage)
        if request.texts:
            with _translate_write_errors():
                _write_texts(Path(request.texts), result.texts)
    except WriteError as error:
        return UnwrittenAnswer(reason=f"a program's outputs or text cannot be written: {error}")
    floors = _call_overheads(backend, spec) if spec.rounds else CallOverheads()
    return BlockAnswer(arms=result.arms, timer_ns=result.timer_ns, floors=floors)


# A class of its own, because a framework may raise an OSError for other reasons. The usual cause is a full disk.
class WriteError(Exception):
    """A file of the harness could not be written; the message is the system's."""


@contextmanager
def _translate_write_errors() -> Iterator[None]:
    """Raise WriteError for an error of the system or of safetensors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(str(error)) from error


def minor_faults() -> int:
    """Return the minor page faults of this process, all its threads included, so far.

    These are pages that the kernel gave the process without reading them from a disk.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


METERS = timing.Meters(time.perf_counter_ns, minor_faults)


def compute_oracle(request: OracleRequest, stage: Stage) -> OracleAnswer:
    """Compute the oracle's trajectories for a training; no framework is imported for it."""
    data = weights.load_training_data(Path(request.weights), request.workload)
    return OracleAnswer(losses=training.oracle_losses(data, request.workload.cell, stage))


def train(backend: Backend, request: TrainRequest, stage: Stage) -> TrainAnswer:
    """Train the forms of one recurrence in fp32, and return their trajectories."""
    data = weights.load_training_data(Path(request.weights), request.workload)
    spec = training.TrainingSpec(request.workload.cell, request.execution, request.recurrence, data, request.seed)
    return TrainAnswer(forms=training.train(backend, spec, time.perf_counter_ns, stage))


def _write_texts(folder: Path, texts: dict[str, dict[str, str]]) -> None:
    """Write the programs' texts (arm -> file name -> text) into `folder`."""
    for arm, files in texts.items():
        for name, text in files.items():
            (folder / f"{arm}.{name}").write_text(text, encoding="utf-8")


def _call_overheads(backend: Backend, spec: timing.TimingSpec) -> CallOverheads:
    """Return what calling and what measuring costs. Must come after the timing, because it may trace and compile."""
    overheads = CallOverheads(harness_ns=timing.harness_ns(time.perf_counter_ns))
    try:
        overheads.null_ns = timing.null_ns(backend, spec, time.perf_counter_ns)
    except Exception as error:  # whatever a framework raises is a record, not a crash
        overheads.reason = f"{type(error).__name__}: {timing.first_line(error)}"
    return overheads


if __name__ == "__main__":
    main()
