"""Draw programs of every size and execution, check their outputs, plant faults in them, and count both mistakes.

    python scripts/output_check.py OUT --cases 2000 --seed 1 [--part 1/2] [--framework torch] [--execution eager]

A case is one arm of one workload in one pass, framework and execution, with weights and inputs of its own, in fp32.
Sizes are log-uniform: T*B up to 50,000, H and O up to 4,096, products up to OPERATIONS a call. A case that the output
check calls wrong is a false alarm. Then each fault is planted: what it does to the oracle in float64 is added to the
outputs that the framework computed, so that every program of every execution can have it. A fault that moves no output
by more than a millionth of its largest element is not counted: rounding hides it in any program. OUT/cases.csv has a
row for each case and fault (of one part of them, where parts are run apart, in cases-1.csv and so on), OUT/table.md
the counts by execution of all that lie there. The worst ratios of errors to bounds say how much
room is left on either side.
"""

import argparse
import csv
import dataclasses
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
from harness.study.data import cast
from harness.study.matrix import BlockSpec, Configuration, Job
from harness.study.study import Study, Workload
from harness.verify import output_check
from impls import reference
from impls.interface import CELLS, IMPOSSIBLE, PASSES, PROJECTIONS, RECURRENCES, Arm, Data, Outputs

SHARES = {  # of the cases, by how fast an execution compiles
    ("torch", "eager"): 18, ("torch", "inductor"): 6, ("torch", "inductor-batched"): 2,
    ("tf", "eager"): 14, ("tf", "graph"): 14, ("tf", "xla"): 14, ("tf", "v1"): 4,
    ("jax", "eager"): 10, ("jax", "xla"): 18,
}  # fmt: skip
ROWS, WIDE = 50_000, 4_096  # most of T*B, and of H and O
COPIES = 16  # steps at most that a compiler copies
STEPS = 2_048
OPERATIONS = (1e9, 2e10)  # of a case, mostly; and of one in fifty
BLOCK = 60  # cases of one worker
VISIBLE = 1e-6  # of a quantity's largest element
WRONG = 0.01  # of a quantity's root mean square: how far one wrong element is off
FAULTS = ("tf32", "bf16", "dropped_bias", "shifted_step", "missing_gradient", "wrong_element")
CORNERS = (  # sizes that draws seldom reach; jit(vmap) of more than 32,768 rows is jax issue 39103
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
class Case:
    """One program and its workload."""

    execution: tuple[str, str]  # framework, execution
    threads: int
    workload: Workload
    pass_: str
    arm: Arm


class Faults(output_check.OutputCheck):
    """The output check, which then plants every fault into what it has checked. `rows` are its findings."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self.random = np.random.default_rng(seed)
        self.rows: list[dict[str, Any]] = []

    def judge(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> dict[str, Any]:
        judged = super().judge(saved, workload, steps, pass_, precision)
        for name, moments in output_check._by_arm(saved).items():
            form = output_check.form_of(name)
            place = (workload, steps, pass_, precision, form)
            expected = {moment: self.expected(*place, moment) for moment in moments}
            verdict = judged["arms"][name]
            self._add("", judged["bounds"][form], verdict)
            if verdict["status"] == "ok" and precision == "fp32":
                for fault in FAULTS:
                    self._plant(fault, place, moments, expected)
        self.kept.clear()
        return judged

    def _plant(self, fault: str, place: tuple[Any, ...], moments: dict[str, Outputs], expected: Any) -> None:
        workload, steps, pass_, precision, form = place
        wrong, visible = {}, 0.0
        for moment, outputs in moments.items():
            data = cast(self._data(workload, steps, precision, form, moment), "float64")
            true = {name: bound.true for name, bound in expected[moment].items()}
            change = changed(fault, data, workload.cell, pass_, form, true, self.random)
            visible = max(visible, size_of(change, true) if moment == "after" else 0.0)
            wrong[moment] = {name: (outputs[name] + change[name]).astype(outputs[name].dtype) for name in outputs}
        if visible > VISIBLE:
            bounds = {name: bound.relative for name, bound in expected["after"].items()}
            self._add(fault, bounds, output_check._judged(wrong, expected, None, 1), visible)

    def _add(self, fault: str, bounds: Any, verdict: dict[str, Any], visible: float = math.nan) -> None:
        """A row of a check: its status, and the largest errors in parts of their bounds."""
        ratios = [
            [error / bound if bound else 0.0 for error, bound in zip(errors[:2], bounds[name], strict=True)]
            for name, errors in verdict["quantities"].items()
        ]
        rms, worst = (max(column) for column in zip(*ratios, strict=True)) if ratios else (0.0, 0.0)  # none verified
        row = {"fault": fault, "status": verdict["status"], "rms": f"{rms:.3g}", "worst": f"{worst:.3g}"}
        self.rows.append(row | {"size": f"{visible:.2g}", "reason": verdict["reason"]})


class Coarse(reference.Exact):
    """The oracle's operations with what a product multiplies rounded to a few bits after the point."""

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


class Forgetful(reference.Exact):
    """The oracle's operations without the gradient that goes through the recurrent product to the step before."""

    def __init__(self, w_rec: np.ndarray) -> None:
        self.w_rec = w_rec

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        product = super().product(a, b)
        return 0 * product if b.base is self.w_rec and b is not self.w_rec else product


def changed(
    fault: str, data: Data, cell: str, pass_: str, form: str, true: Outputs, chance: np.random.Generator
) -> Outputs:
    """What a fault adds to each output of a program, in float64."""
    w = data.weights
    if fault == "wrong_element":
        return one_wrong(true, chance)
    faulty, how = data, None
    if fault in ("tf32", "bf16"):
        how = Coarse({"tf32": 10, "bf16": 7}[fault])
    elif fault == "dropped_bias":
        name = "b_rec" if form == "none" else "b_out"
        faulty = data._replace(weights=w._replace(**{name: np.zeros_like(getattr(w, name))}))
    elif fault == "shifted_step":
        if pass_ == "forward":
            return {"y": np.roll(true["y"], 1, axis=0) - true["y"]}
        faulty = data._replace(target=np.roll(data.target, -1, axis=0))
    elif fault == "missing_gradient":
        if form == "given" and pass_ == "train":  # the last step's, of the weights of the projection
            lacking = reference.run(data._replace(x=np.where(last(data.x), 0, data.x)), cell, pass_, form)
            return {n: (lacking[n] - true[n] if n == "d_w_out" else np.zeros_like(true[n])) for n in true}
        how = Forgetful(w.w_rec)
    wrong = reference.run(faulty, cell, pass_, form, how)
    return {name: wrong[name] - true[name] for name in true}


def last(x: np.ndarray) -> np.ndarray:
    """[T, 1, 1]: whether a step is the last."""
    return (np.arange(len(x)) == len(x) - 1)[:, None, None]


def one_wrong(true: Outputs, chance: np.random.Generator) -> Outputs:
    """One element of one output, off by WRONG of the output's root mean square."""
    change = {name: np.zeros_like(array) for name, array in true.items()}
    name = chance.choice([name for name, array in true.items() if array.any()] or list(true))
    place = int(chance.integers(true[name].size))
    change[name].reshape(-1)[place] = WRONG * np.sqrt(np.mean(np.square(true[name])))
    return change


def size_of(change: Outputs, true: Outputs) -> float:
    """The largest change of any output, in parts of its largest element."""
    return max(float(np.abs(change[n]).max() / (np.abs(true[n]).max() or math.inf)) for n in true)


def drawn(count: int, seed: int, known: dict[str, matrix.Framework], only: set[tuple[str, str]]) -> Iterator[Case]:
    """The corners, and then as many cases as are wanted, with the executions that are selected."""
    chance = random.Random(seed)
    cells = list(CELLS)
    for at, (execution, arm, pass_, sizes) in enumerate(CORNERS):
        workload = Workload(name=f"c{at}", cell="rnn_tanh", **sizes)
        if execution in only and possible(Case(execution, 1, workload, pass_, arm), known):
            yield Case(execution, 1, workload, pass_, arm)
    done = 0
    while done < count:
        execution = chance.choices(list(SHARES), list(SHARES.values()))[0]
        arm = Arm(chance.choice(RECURRENCES), chance.choice(PROJECTIONS))
        copied = "traced" if known[execution[0]].executions[execution[1]]["traced"] else ""
        rare = chance.random() < 0.02
        steps = log_uniform(
            chance, COPIES if copied and arm.recurrence != "given" and arm.recurrence != "scan" else STEPS
        )
        if arm.projection == "per_step" and copied:
            steps = min(steps, COPIES)
        sizes = {"T": steps, "B": log_uniform(chance, ROWS // steps), "I": log_uniform(chance, 256)}
        sizes |= {"H": log_uniform(chance, WIDE), "O": log_uniform(chance, WIDE)}
        cell, pass_ = chance.choice(cells), chance.choice(PASSES)
        threads = chance.choice([1, environment.cores()])
        try:
            workload = Workload(name=f"w{seed}-{done}", cell=cell, **sizes)
        except ValueError:
            continue
        case = Case(execution, threads, workload, pass_, arm)
        if operations(workload, pass_) > OPERATIONS[rare] or execution not in only or not possible(case, known):
            continue
        done += 1
        yield case


def log_uniform(chance: random.Random, most: int) -> int:
    return max(1, min(most, int(math.exp(chance.uniform(0, math.log(most + 1))))))


def operations(w: Workload, pass_: str) -> float:
    wide = w.shapes["w_rec"][1]
    return 2.0 * w.T * w.B * (w.I * wide + w.H * wide + w.H * w.O) * (3 if pass_ == "train" else 1)


def possible(case: Case, known: dict[str, matrix.Framework]) -> bool:
    framework, execution = case.execution
    facts = known[framework].executions[execution]
    cell = matrix.Cell(Configuration(framework, "cpu", 1, execution, "fp32"), case.workload, case.pass_, case.arm)
    return not (facts["missing"] or IMPOSSIBLE.get(case.arm.name) or matrix.without(facts, cell))


def checked(
    cases: list[Case], bench: jobs.RunContext, judge: Faults, seed: int, precision: str
) -> Iterator[dict[str, Any]]:
    """The rows of the cases, those of one execution and thread count in one worker."""
    by_configuration: dict[Configuration, list[Case]] = {}
    for case in cases:
        by_configuration.setdefault(
            Configuration(case.execution[0], "cpu", case.threads, case.execution[1], precision), []
        ).append(case)
    for configuration, own_cases in by_configuration.items():
        for start in range(0, len(own_cases), BLOCK):
            batch = own_cases[start : start + BLOCK]
            for case in batch:
                weights.store(bench.weights, weights.files(case.workload, seed, None, None))
            todo = tuple(BlockSpec(c.workload, c.pass_, (c.arm,), c.workload.T, timed=False) for c in batch)
            for case, record in zip(
                batch, jobs.work(bench, Job(configuration, 1, todo), lambda: math.inf, lambda text: None), strict=True
            ):
                arm = record["arms"][case.arm.name]
                if not judge.rows:
                    judge.rows.append({"fault": "", "status": arm["status"], "reason": arm["reason"]})
                for row in judge.rows:
                    yield row_of(case) | row
                judge.rows.clear()
                for file in bench.weights.iterdir():
                    if file.name.startswith(f"{case.workload.name}."):
                        file.unlink()


def row_of(case: Case) -> dict[str, Any]:
    sizes = {size: getattr(case.workload, size) for size in "BTIHO"}
    framework, execution = case.execution
    where = {"framework": framework, "execution": execution, "threads": case.threads, "arm": case.arm.name}
    return where | {"pass": case.pass_, "cell": case.workload.cell} | sizes


COLUMNS = (
    "framework", "execution", "threads", "arm", "pass", "cell", *"BTIHO",
    "fault", "status", "rms", "worst", "size", "reason",
)  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> str:
    """Cases, false alarms, faults planted and caught, by framework and execution."""
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
    known = {framework.name: framework for framework in session.probe(study, threads) if not framework.missing}
    only = {
        (framework, execution)
        for framework, execution in SHARES
        if framework in (options.framework or known) and execution in (options.execution or known[framework].executions)
    }
    options.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, options.part.split("/"))
    cases = list(drawn(options.cases, options.seed, known, only))[part - 1 :: parts]
    with folders.private() as place:
        judge = Faults(place / "weights", options.seed)
        bench = jobs.RunContext(study, known, place / "weights", place / "cache", judge, {})
        name = "cases.csv" if parts == 1 else f"cases-{part}.csv"
        with (options.out / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in checked(cases, bench, judge, options.seed, options.precision):
                writer.writerow(row)
                file.flush()
                if row["status"] not in ("ok", "unavailable") and not row["fault"]:
                    print(row, file=sys.stderr, flush=True)
    text = summary(
        [row for file in options.out.glob("cases*.csv") for row in csv.DictReader(file.open(encoding="utf-8"))]
    )
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
