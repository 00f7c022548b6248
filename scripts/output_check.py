"""Draw programs of all sizes and executions, check their outputs, plant faults in them, and count the check's errors.

    python scripts/output_check.py OUT --cases 2000 --seed 1 [--part 1/2] [--framework torch] [--execution eager]

A case is one arm of one workload in one pass, framework and execution, with weights and inputs of its own, in fp32.
Sizes are log-uniform: T*B up to 50,000, H and O up to 4,096, products up to OPERATIONS a call. A case that the output
check calls wrong is a false alarm. Then each fault is planted: the change that it makes to the float64 oracle is added
to the outputs that the framework computed, so that any program of any execution can have it. A fault that changes no
output by more than a millionth of its largest element is not counted, because rounding hides it in any program.

OUT/cases.csv has a row for each case and fault; with --part, OUT/cases-I.csv has those of one part. OUT/table.md has
the counts by execution over all these files. The worst ratios of errors to bounds say how much room is left on either
side.
"""

import argparse
import csv
import dataclasses
import io
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.machine import environment, folders
from harness.report.markdown import table
from harness.run import jobs, session
from harness.study import matrix, weights
from harness.study.configuration import Configuration
from harness.study.data import cast
from harness.study.matrix import BlockSpec, Job
from harness.study.study import Study, Workload
from harness.verify import output_check
from harness.verify.output_check import ArmCheck, BlockCheck
from impls import reference
from impls.interface import CELLS, PASSES, PROJECTIONS, RECURRENCES, Arm, Data, Outputs

SHARES = {  # relative frequency of each execution; those that compile fast have more cases
    ("torch", "eager"): 18, ("torch", "inductor"): 6, ("torch", "inductor-batched"): 2,
    ("tf", "eager"): 14, ("tf", "graph"): 14, ("tf", "xla"): 14, ("tf", "v1"): 4,
    ("jax", "eager"): 10, ("jax", "xla"): 18,
}  # fmt: skip
ROWS, WIDE = 50_000, 4_096  # maximum of T*B, and of H and O
COPIES = 16  # maximum number of steps where a compiler copies the code of each step
STEPS = 2_048  # maximum number of steps otherwise
OPERATIONS = (1e9, 2e10)  # maximum of a case: usually, and in one case of fifty
BLOCK = 60  # maximum number of cases in one worker
VISIBLE = 1e-6  # smallest change that is counted, relative to a quantity's largest element
WRONG = 0.01  # error of one wrong element, relative to its quantity's root mean square
UNLIMITED = Study(unroll_limit=None)  # the number of unrolled steps has its own limit here, COPIES
FAULTS = ("tf32", "bf16", "dropped_bias", "shifted_step", "missing_gradient", "wrong_element")
CORNERS = (  # sizes that random draws seldom reach; jit(vmap) of more than 32,768 rows is jax issue 39103
    (("jax", "xla"), Arm("given", "vmap"), "forward", {"T": 40_000, "B": 1, "I": 3, "H": 64, "O": 16}),
    (("jax", "xla"), Arm("given", "vmap"), "train", {"T": 33_000, "B": 1, "I": 3, "H": 16, "O": 5}),
    (("jax", "xla"), Arm("scan", "vmap"), "train", {"T": 32_769, "B": 1, "I": 2, "H": 8, "O": 3}),
    (("jax", "xla"), Arm("scan", "vmap"), "forward", {"T": 1, "B": 50_000, "I": 2, "H": 64, "O": 64}),
    (("torch", "eager"), Arm("given", "vmap"), "train", {"T": 40_000, "B": 1, "I": 3, "H": 64, "O": 16}),
    (("tf", "xla"), Arm("given", "vmap"), "train", {"T": 40_000, "B": 1, "I": 3, "H": 64, "O": 16}),
    *(
        (execution, Arm(recurrence, "batched"), "train", {"T": 10, "I": 4} | sizes)
        for execution, recurrence in (
            (("torch", "eager"), "unrolled"),
            (("tf", "xla"), "scan"),
            (("jax", "xla"), "scan"),
        )
        for sizes in ({"B": 50, "H": 4_096, "O": 3}, {"B": 5_000, "H": 64, "O": 16}, {"B": 100, "H": 16, "O": 4_096})
    ),
    (("torch", "eager"), Arm("given", "batched"), "forward", {"T": 10, "B": 5_000, "I": 1, "H": 512, "O": 1}),
    *(
        (execution, Arm("unrolled", "batched"), "train", {"B": 64, "T": 64, "I": 16, "H": 64, "O": 10})
        for execution in (("torch", "eager"), ("tf", "eager"), ("jax", "eager"))
    ),
    (("tf", "xla"), Arm("unrolled", "batched"), "train", {"B": 1, "T": 3, "I": 2, "H": 1, "O": 5_000}),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ProgramCase:
    """One program and its workload."""

    execution: tuple[str, str]  # framework, execution
    threads: int
    workload: Workload
    pass_: str
    arm: Arm


class FaultPlantingCheck(output_check.OutputCheck):
    """An output check that also plants all faults into the outputs that it has checked.

    `rows` holds its findings, a row for each check.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self.random = np.random.default_rng(seed)
        self.rows: list[dict[str, Any]] = []

    def check(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> BlockCheck:
        result = super().check(saved, workload, steps, pass_, precision)
        for name, moments in output_check._outputs_by_arm(saved).items():
            form = output_check.form_of(name)
            key = (workload, steps, pass_, precision, form, result.sequences)
            expected = {moment: self.expected(*key, moment) for moment in moments}
            checked = {
                moment: output_check._select_outputs(outputs, workload.B, result.sequences)
                for moment, outputs in moments.items()
            }
            verdict = result.arms[name]
            self._add("", result.bounds[form], verdict)
            if verdict.status == "ok" and precision == "fp32":
                for fault in FAULTS:
                    self._plant(fault, key, checked, expected)
        self.kept.clear()
        return result

    def _plant(self, fault: str, key: tuple[Any, ...], moments: dict[str, Outputs], expected: Any) -> None:
        """Add a fault to the outputs of a program, and check them if the change is larger than VISIBLE."""
        workload, steps, pass_, precision, form, sequences = key
        faulty, size = {}, 0.0
        for moment, outputs in moments.items():
            data = cast(self._data(workload, steps, precision, form, sequences, moment), "float64")
            truth = {name: bound.true for name, bound in expected[moment].items()}
            change = fault_effect(fault, data, (workload.cell, pass_, form), truth, self.random)
            size = max(size, relative_size(change, truth) if moment == "after" else 0.0)
            faulty[moment] = {name: (outputs[name] + change[name]).astype(outputs[name].dtype) for name in outputs}
        if size > VISIBLE:
            bounds = {name: bound.relative for name, bound in expected["after"].items()}
            self._add(fault, bounds, output_check._check_arm(faulty, expected, {}, sequences), size)

    def _add(self, fault: str, bounds: Any, verdict: ArmCheck, size: float = math.nan) -> None:
        """Append a row for a check: its status, and the largest errors as fractions of their bounds."""
        ratios = [
            [error / bound if bound else 0.0 for error, bound in zip(errors[:2], bounds[name], strict=True)]
            for name, errors in verdict.quantities.items()
        ]
        rms, worst = (max(column) for column in zip(*ratios, strict=True)) if ratios else (0.0, 0.0)  # none verified
        row = {"fault": fault, "status": verdict.status, "rms": f"{rms:.3g}", "worst": f"{worst:.3g}"}
        self.rows.append(row | {"size": f"{size:.2g}", "reason": verdict.reason})


class CoarseOperations(reference.Exact):
    """The oracle's operations, with the factors of products rounded to `bits` bits after the binary point."""

    def __init__(self, bits: int) -> None:
        self.cut = np.uint32(23 - bits)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return super().product(self.rounded(a), self.rounded(b))

    def outer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return super().outer(self.rounded(a), self.rounded(b))

    def rounded(self, a: np.ndarray) -> np.ndarray:
        bits = a.astype("float32").view("uint32")
        half = np.uint32(1) << (self.cut - np.uint32(1))
        return ((bits + half) & ~((np.uint32(1) << self.cut) - np.uint32(1))).view("float32").astype("float64")


class ForgetfulOperations(reference.Exact):
    """The oracle's operations without the gradient through the recurrent product to the previous step."""

    def __init__(self, w_rec: np.ndarray) -> None:
        self.w_rec = w_rec

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        product = super().product(a, b)
        return 0 * product if b.base is self.w_rec and b is not self.w_rec else product


def fault_effect(
    fault: str, data: Data, program: tuple[str, str, str], truth: Outputs, generator: np.random.Generator
) -> Outputs:
    """Return the change that a fault makes to each output of a program (cell, pass, form), in float64."""
    w, (cell, pass_, form) = data.weights, program
    if fault == "wrong_element":
        return wrong_element_effect(truth, generator)
    faulty_data, arithmetic = data, None
    if fault in ("tf32", "bf16"):
        arithmetic = CoarseOperations({"tf32": 10, "bf16": 7}[fault])
    elif fault == "dropped_bias":
        name = "b_rec" if form == "none" else "b_out"
        faulty_data = data._replace(weights=w._replace(**{name: np.zeros_like(getattr(w, name))}))
    elif fault == "shifted_step":
        if pass_ == "forward":
            return {"y": np.roll(truth["y"], 1, axis=0) - truth["y"]}
        faulty_data = data._replace(target=np.roll(data.target, -1, axis=0))
    elif fault == "missing_gradient":
        if form == "given" and pass_ == "train":  # the last step's, of the weights of the projection
            gradients = reference.run(data._replace(x=np.where(is_last_step(data.x), 0, data.x)), cell, pass_, form)
            return {n: (gradients[n] - truth[n] if n == "d_w_out" else np.zeros_like(truth[n])) for n in truth}
        arithmetic = ForgetfulOperations(w.w_rec)
    outputs = reference.run(faulty_data, cell, pass_, form, arithmetic)
    return {name: outputs[name] - truth[name] for name in truth}


def is_last_step(x: np.ndarray) -> np.ndarray:
    """Return a mask of the last step, [T, 1, 1]."""
    return (np.arange(len(x)) == len(x) - 1)[:, None, None]


def wrong_element_effect(truth: Outputs, generator: np.random.Generator) -> Outputs:
    """Return a change of one random element of one output by WRONG times the output's root mean square."""
    change = {name: np.zeros_like(array) for name, array in truth.items()}
    name = generator.choice([name for name, array in truth.items() if array.any()] or list(truth))
    position = int(generator.integers(truth[name].size))
    change[name].reshape(-1)[position] = WRONG * np.sqrt(np.mean(np.square(truth[name])))
    return change


def relative_size(change: Outputs, truth: Outputs) -> float:
    """Return the largest change of any output, as a fraction of that output's largest element."""
    return max(float(np.abs(change[n]).max() / (np.abs(truth[n]).max() or math.inf)) for n in truth)


def draw_cases(
    count: int, seed: int, frameworks: dict[str, matrix.Framework], executions: set[tuple[str, str]]
) -> Iterator[ProgramCase]:
    """Yield the corners, then `count` random cases, all with the selected executions.

    `frameworks` are the installed ones by name; `executions` are pairs of framework and execution.
    """
    generator = random.Random(seed)
    cells = list(CELLS)
    for index, (execution, arm, pass_, sizes) in enumerate(CORNERS):
        workload = Workload(name=f"c{index}", cell="rnn_tanh", **sizes)
        if execution in executions and is_possible(ProgramCase(execution, 1, workload, pass_, arm), frameworks):
            yield ProgramCase(execution, 1, workload, pass_, arm)
    number = 0
    while number < count:
        execution = generator.choices(list(SHARES), list(SHARES.values()))[0]
        arm = Arm(generator.choice(RECURRENCES), generator.choice(PROJECTIONS))
        traced = "traced" if frameworks[execution[0]].executions[execution[1]].traced else ""
        rare = generator.random() < 0.02
        steps = draw_log_uniform(
            generator, COPIES if traced and arm.recurrence != "given" and arm.recurrence != "scan" else STEPS
        )
        if arm.projection == "per_step" and traced:
            steps = min(steps, COPIES)
        sizes = {"T": steps, "B": draw_log_uniform(generator, ROWS // steps), "I": draw_log_uniform(generator, 256)}
        sizes |= {"H": draw_log_uniform(generator, WIDE), "O": draw_log_uniform(generator, WIDE)}
        cell, pass_ = generator.choice(cells), generator.choice(PASSES)
        threads = generator.choice([1, environment.cores()])
        try:
            workload = Workload(name=f"w{seed}-{number}", cell=cell, **sizes)
        except ValueError:
            continue
        case = ProgramCase(execution, threads, workload, pass_, arm)
        if (
            operation_count(workload, pass_) > OPERATIONS[rare]
            or execution not in executions
            or not is_possible(case, frameworks)
        ):
            continue
        number += 1
        yield case


def draw_log_uniform(generator: random.Random, maximum: int) -> int:
    """Draw a log-uniform integer from 1 to `maximum`."""
    return max(1, min(maximum, int(math.exp(generator.uniform(0, math.log(maximum + 1))))))


def operation_count(w: Workload, pass_: str) -> float:
    """Return the floating-point operations of a call; a training pass counts three times."""
    width = w.shapes["w_rec"][1]
    return 2.0 * w.T * w.B * (w.I * width + w.H * width + w.H * w.O) * (3 if pass_ == "train" else 1)


def is_possible(case: ProgramCase, frameworks: dict[str, matrix.Framework]) -> bool:
    """Return whether a case's execution is available and can run its arm."""
    framework, execution = case.execution
    cell = matrix.Cell(Configuration(framework, "cpu", 1, execution, "fp32"), case.workload, case.pass_, case.arm)
    absence = matrix.cell_absence(UNLIMITED, frameworks[framework], cell)
    return absence is None or absence[0] == "skipped"  # what a study has on request only


def check_cases(
    cases: list[ProgramCase], context: jobs.RunContext, check: FaultPlantingCheck, seed: int, precision: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the cases; cases of one configuration share workers, up to BLOCK in each."""
    by_configuration: dict[Configuration, list[ProgramCase]] = {}
    for case in cases:
        by_configuration.setdefault(
            Configuration(case.execution[0], "cpu", case.threads, case.execution[1], precision), []
        ).append(case)
    for configuration, group in by_configuration.items():
        for start in range(0, len(group), BLOCK):
            batch = group[start : start + BLOCK]
            for case in batch:
                weights.write_files(context.weights, weights.workload_files(case.workload, seed, None, None))
            blocks = tuple(BlockSpec(c.workload, c.pass_, (c.arm,), c.workload.T, timed=False) for c in batch)
            for case, record in zip(
                batch,
                jobs.work(context, Job(configuration, 1, blocks), lambda: math.inf, lambda text: None),
                strict=True,
            ):
                arm = record.arms[case.arm.name]
                if not check.rows:
                    check.rows.append({"fault": "", "status": arm.status, "reason": arm.reason})
                for row in check.rows:
                    yield case_columns(case) | row
                check.rows.clear()
                for file in context.weights.iterdir():
                    if file.name.startswith(f"{case.workload.name}."):
                        file.unlink()


def case_columns(case: ProgramCase) -> dict[str, Any]:
    """Return the columns that identify a case."""
    sizes = {size: getattr(case.workload, size) for size in "BTIHO"}
    framework, execution = case.execution
    program = {"framework": framework, "execution": execution, "threads": case.threads, "arm": case.arm.name}
    return program | {"pass": case.pass_, "cell": case.workload.cell} | sizes


COLUMNS = (
    "framework", "execution", "threads", "arm", "pass", "cell", *"BTIHO",
    "fault", "status", "rms", "worst", "size", "reason",
)  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> str:
    """Tabulate cases, false alarms, and faults planted and caught, by framework and execution."""
    lines = []
    for execution in [*SHARES, None]:
        selected = [row for row in rows if execution in (None, (row["framework"], row["execution"]))]
        cases = [row for row in selected if not row["fault"] and row["status"] in ("ok", "wrong", "refused")]
        if not cases:
            continue
        alarms = [row for row in cases if row["status"] != "ok"]
        worst = max((float(row["worst"]) for row in cases), default=math.nan)
        counts = []
        for fault in FAULTS:
            planted = [row for row in selected if row["fault"] == fault]
            counts.append(f"{sum(row['status'] == 'wrong' for row in planted)} of {len(planted)}")
        name = " ".join(execution) if execution else "all"
        outcomes = Counter(row["status"] for row in selected if not row["fault"])
        lost = sum(outcomes[status] for status in ("failed", "timeout", "not_reached"))
        lines.append([name, len(cases), len(alarms), lost, outcomes["unavailable"], f"{worst:.2f}", *counts])
    columns = [
        "execution",
        "cases",
        "false alarms",
        "lost",
        "unavailable",
        "worst error / bound",
        *(f"caught: {fault}" for fault in FAULTS),
    ]
    return table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="Of the cases every N-th, from the I-th on: I/N.")
    parser.add_argument("--precision", default="fp32", help="Faults are planted in fp32 alone.")
    parser.add_argument("--framework", action="append")
    parser.add_argument("--execution", action="append")
    options = parser.parse_args()
    study = Study(threads=[1, "all"])
    threads = matrix.thread_counts(study, environment.cores())
    frameworks = {framework.name: framework for framework in session.probe(study, threads) if not framework.missing}
    selected = {
        (framework, execution)
        for framework, execution in SHARES
        if framework in (options.framework or frameworks)
        and execution in (options.execution or frameworks[framework].executions)
    }
    options.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, options.part.split("/"))
    cases = list(draw_cases(options.cases, options.seed, frameworks, selected))[part - 1 :: parts]
    with folders.private() as folder:
        check = FaultPlantingCheck(folder / "weights", options.seed)
        context = jobs.RunContext(study, frameworks, folder / "weights", folder / "cache", check, {})
        name = "cases.csv" if parts == 1 else f"cases-{part}.csv"
        with (options.out / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in check_cases(cases, context, check, options.seed, options.precision):
                writer.writerow(row)
                file.flush()
                if row["status"] not in ("ok", "unavailable") and not row["fault"]:
                    print(row, file=sys.stderr, flush=True)
    texts = [file.read_text(encoding="utf-8") for file in options.out.glob("cases*.csv")]
    text = summary([row for rows in texts for row in csv.DictReader(io.StringIO(rows))])
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
