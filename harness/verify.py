"""The two gates, judged in the parent from the arrays a worker saved.

(a) same function: in float64 every element agrees with the oracle to 1e-12 of the largest,
    scaled by T and H;
(b) same to rounding: in float32 the error is at most FACTOR times the largest of `RUNS` runs of the
    oracle's own arithmetic in float32 with its roundings shuffled (impls.reference.Noise), both in
    root mean square and in the worst element. In tf32 and bf16 the shuffled roundings are theirs. What is
    as shipped may be TF32 where a GPU has it, and is held to that.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harness import weights
from harness.measure import DTYPES, cast, data_for, probe
from harness.study import Workload
from impls import reference
from impls.interface import Arm, Data, Outputs, Weights

FACTOR = 4.0
RUNS = 6
FP64_BOUND = 1e-12
BFLOAT16 = 1 << 16  # float32 numbers from one of bfloat16's to the next


Bounds = dict[str, tuple[float, float]]
Found = dict[str, list[Any]]  # quantity -> [rms, worst, bitwise equal to batched, ULP to batched]


class Judge:
    """Judges outputs of a study's workloads, whose weights and inputs lie under `folder`.

    `bound`: the precision whose bounds all outputs are held to, whatever they were computed in; None: their own.
    """

    def __init__(self, folder: Path, bound: str | None = None) -> None:
        self.folder, self.bound = folder, bound
        self.truth = cache(self._truth)
        self.bounds = cache(self._bounds)

    def judge(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> dict[str, Any]:
        """What the gates say of a block's saved outputs.

        {"bounds": {form: {quantity: (rms, worst)}}, "arms": {name: {"reason", "quantities"}}}, where the form
        is one of the oracle's, and an empty reason means that both moments of every quantity hold.
        """
        arms = _by_arm(saved)
        judged: dict[str, Any] = {"bounds": {}, "arms": {}}
        for name, moments in arms.items():
            recurrence, _, projection = name.partition("_")
            form = form_of(name)
            bounds = self.bounds(workload, steps, pass_, self.bound or precision, form)
            judged["bounds"][form] = bounds
            truths = {m: self.truth(workload, steps, pass_, precision, form, m) for m in moments}
            base = arms.get(f"{recurrence}_batched", {}).get("after") if projection != "none" else None
            judged["arms"][name] = _judged(moments, truths, bounds, base, BFLOAT16 if precision == "bf16" else 1)
        return judged

    def _data(self, workload: Workload, steps: int, precision: str, form: str, moment: str) -> Data:
        data = weights.load(self.folder, workload)
        data = data._replace(x=data.x[:steps], target=data.target[:steps])
        arm = Arm("given" if form == "given" else "", "none" if form == "none" else "")
        data = cast(data_for(arm, data), DTYPES[precision])
        data = probe(data) if moment == "before" else data
        return _in_bfloat16(data) if precision == "bf16" else data

    def _truth(self, workload: Workload, steps: int, pass_: str, precision: str, form: str, moment: str) -> Outputs:
        data = cast(self._data(workload, steps, precision, form, moment), "float64")
        return reference.run(data, workload.cell, pass_, form)

    def _bounds(self, workload: Workload, steps: int, pass_: str, precision: str, form: str) -> Bounds:
        true = self.truth(workload, steps, pass_, precision, form, "after")
        if precision == "fp64":
            bound = FP64_BOUND * max(1.0, steps * workload.H**0.5 / 200)
            return dict.fromkeys(true, (bound, bound))
        data = self._data(workload, steps, precision, form, "after")
        return rounding_bounds(data, true, workload.cell, pass_, form, precision)


def _in_bfloat16(data: Data) -> Data:
    """As a backend puts it: bfloat16 numbers, here as float32."""
    w, x, target = data
    return Data(Weights(*map(reference.in_bfloat16, w)), *map(reference.in_bfloat16, (x, target)))


@cache
def form_of(arm: str) -> str:
    """The oracle's form of an arm, by its name: what its outputs and bounds depend on."""
    recurrence, _, projection = arm.partition("_")
    return "given" if recurrence == "given" else "none" if projection == "none" else "projected"


def _by_arm(saved: Path) -> dict[str, dict[str, Outputs]]:
    """Arm -> moment -> quantity -> array."""
    arms: dict[str, dict[str, Outputs]] = {}
    for key, array in load_file(saved).items():
        name, moment, quantity = key.split("/")
        arms.setdefault(name, {}).setdefault(moment, {})[quantity] = array
    return arms


def _judged(
    moments: dict[str, Outputs], truths: dict[str, Outputs], bounds: Bounds, base: Outputs | None, unit: int
) -> dict[str, Any]:
    """An arm's worst errors over its moments, and one sentence on what does not hold; `unit`: ULP of the dtype in one
    of the precision.
    """
    quantities: Found = {}
    bad = []
    for name, bound in bounds.items():
        seen = [errors(outputs.get(name), truths[moment][name]) for moment, outputs in moments.items()]
        found = [max(rms for rms, _ in seen), max(worst for _, worst in seen)]
        after = moments["after"].get(name)
        apart: list[Any] = [None, None]
        if base is not None and after is not None and after.shape == base[name].shape:
            same = after.tobytes() == base[name].tobytes()
            apart = [same, 0 if same else max_ulp(after, base[name]) // unit]
        quantities[name] = [*found, *apart]
        if not holds(found, bound):
            bad.append(f"{name} is off by {found[1]:.2g} (bound {bound[1]:.2g})")
    return {"reason": "; ".join(bad), "quantities": quantities}


def holds(found: Sequence[Any], bound: Sequence[float]) -> bool:
    """Whether errors [rms, worst, ...] are within the bounds (rms, worst); not, for NaN."""
    return bool(found[0] <= bound[0] and found[1] <= bound[1])


def rounding_bounds(data: Data, true: Outputs, cell: str, pass_: str, form: str, precision: str = "fp32") -> Bounds:
    """FACTOR times the worst of the oracle's own errors under a precision's shuffled rounding."""
    how = reference.ROUNDINGS[precision]
    runs = [reference.run(data, cell, pass_, form, reference.Noise(seed, how)) for seed in range(RUNS)]
    bounds = {}
    for name in true:
        rms, worst = zip(*(errors(run[name], true[name]) for run in runs), strict=True)
        bounds[name] = (FACTOR * max(rms), FACTOR * max(worst))
    return bounds


def errors(output: np.ndarray | None, true: np.ndarray) -> tuple[float, float]:
    """Root-mean-square error over the truth's, and largest error over the truth's largest.

    Infinite for a missing output, a wrong shape, a non-finite element, or where the truth is zero
    and the output is not.
    """
    if output is None or output.shape != true.shape or not np.isfinite(output).all():
        return float("inf"), float("inf")
    error = np.subtract(output, true, dtype=np.float64)
    scale, largest = (float(np.abs([a.max(), a.min()]).max()) for a in (true, error))
    if scale == 0:
        return (0.0, 0.0) if largest == 0 else (float("inf"), float("inf"))
    # Norms are of elements over the largest, so that no square under- or overflows.
    return _norm(error, scale) / _norm(true, scale), largest / scale


def _norm(a: np.ndarray, scale: float) -> float:
    return float(np.linalg.norm(a.ravel() / scale))


def max_ulp(a: np.ndarray, b: np.ndarray) -> int:
    """Largest number of representable numbers between elements of a and b, of one float dtype."""
    if a.dtype != b.dtype or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1

    sign: Any = {4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}[a.itemsize]

    def ordered(x: np.ndarray) -> np.ndarray:
        """Float bits as unsigned integers in the order of the numbers."""
        bits = np.ascontiguousarray(x).view(sign.dtype)
        return np.where(bits & sign, ~bits, bits | sign)

    low, high = np.minimum(ordered(a), ordered(b)), np.maximum(ordered(a), ordered(b))
    return int((high - low).max())
