"""The two gates, judged in the parent from the arrays a worker saved.

(a) same function: in float64 every element agrees with the oracle to 1e-12 of the largest,
    scaled by T and H;
(b) same to rounding: in float32 the error is at most FACTOR times the largest of `RUNS` runs of the
    oracle's own arithmetic in float32 with its roundings shuffled (impls.reference.Noise), both in
    root mean square and in the worst element.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from harness import weights
from harness.measure import cast, probe, target_for
from harness.study import Workload
from impls import reference
from impls.interface import Arm, Data, Outputs

FACTOR = 4.0
RUNS = 6
FP64_BOUND = 1e-12


@dataclass(frozen=True)
class Truth:
    """The oracle's outputs for one call, and how far each may be missed: quantity -> (rms, worst)."""

    outputs: Outputs
    bounds: dict[str, tuple[float, float]]


class Judge:
    """Judges outputs of a study's workloads, whose weights and inputs lie under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truth = cache(self._truth)

    def judge(self, saved: Path, workload: Workload, steps: int, pass_: str, precision: str) -> dict[str, Any]:
        """Arm name -> {"ok", "reason", "quantities": {name: {...}}} for every arm in the saved file."""
        arms: dict[str, dict[str, Outputs]] = {}
        for key, array in load_file(saved).items():
            name, moment, quantity = key.split("/")
            arms.setdefault(name, {}).setdefault(moment, {})[quantity] = array
        judged = {}
        for name, moments in arms.items():
            recurrence, _, projection = name.partition("_")
            found = [
                self.compare(outputs, self.truth(workload, steps, pass_, precision, projection == "none", moment))
                for moment, outputs in sorted(moments.items())
            ]
            judged[name] = verdict(found)
            base = arms.get(f"{recurrence}_batched", {}).get("after")
            if base is not None and projection != "none":
                _distance(judged[name]["quantities"], moments["after"], base)
        return judged

    def compare(self, outputs: Outputs, truth: Truth) -> dict[str, dict[str, Any]]:
        """Quantity -> errors relative to the truth, their bounds, and whether they hold."""
        found = {}
        for name, true in truth.outputs.items():
            rms, worst = errors(outputs.get(name), true)
            rms_bound, worst_bound = truth.bounds[name]
            ok = bool(rms <= rms_bound and worst <= worst_bound)  # false for NaN
            found[name] = {"ok": ok, "rms": rms, "worst": worst, "rms_bound": rms_bound, "worst_bound": worst_bound}
        return found

    def _truth(self, workload: Workload, steps: int, pass_: str, precision: str, none: bool, moment: str) -> Truth:
        data = weights.load(self.folder, workload)
        data = data._replace(x=data.x[:steps], target=data.target[:steps])
        data = target_for(Arm("", "none" if none else "batched"), data)
        low = cast(data, {"fp32": "float32", "fp64": "float64"}[precision])
        if moment == "before":
            low = probe(low)
        true = reference.run(cast(low, "float64"), workload.cell, pass_, not none)
        if precision == "fp64":
            bound = FP64_BOUND * max(1.0, steps * np.sqrt(workload.H) / 200)
            return Truth(true, dict.fromkeys(true, (bound, bound)))
        return Truth(true, rounding_bounds(low, true, workload.cell, pass_, none))


def rounding_bounds(data: Data, true: Outputs, cell: str, pass_: str, none: bool) -> dict[str, tuple[float, float]]:
    """FACTOR times the worst of the oracle's own float32 errors under shuffled rounding."""
    seen = [reference.run(data, cell, pass_, not none, reference.Noise(seed)) for seed in range(RUNS)]
    bounds = {}
    for name in true:
        pairs = [errors(run[name], true[name]) for run in seen]
        bounds[name] = (FACTOR * max(p[0] for p in pairs), FACTOR * max(p[1] for p in pairs))
    return bounds


def errors(output: np.ndarray | None, true: np.ndarray) -> tuple[float, float]:
    """Root-mean-square error over the truth's, and largest error over the truth's largest.

    Infinite for a missing output, a wrong shape, a non-finite element, or where the truth is zero
    and the output is not.
    """
    if output is None or output.shape != true.shape or not np.isfinite(output).all():
        return float("inf"), float("inf")
    error = np.abs(output.astype(np.float64) - true)
    scale = float(np.abs(true).max())
    if scale == 0:
        return (0.0, 0.0) if not error.any() else (float("inf"), float("inf"))
    rms = float(np.sqrt(np.mean(np.square(error / scale))) / np.sqrt(np.mean(np.square(true / scale))))
    return rms, float(error.max() / scale)


def verdict(found: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Join the moments: the worst of each quantity, and one sentence on what failed."""
    quantities = {}
    for name in found[0]:
        quantities[name] = dict(max((one[name] for one in found), key=lambda q: q["worst"] / (q["worst_bound"] or 1)))
        quantities[name]["ok"] = all(one[name]["ok"] for one in found)
    bad = [
        f"{name} is off by {q['worst']:.2g} (bound {q['worst_bound']:.2g})"
        for name, q in quantities.items()
        if not q["ok"]
    ]
    return {"ok": not bad, "reason": "; ".join(bad), "quantities": quantities}


def _distance(quantities: dict[str, Any], outputs: Outputs, base: Outputs) -> None:
    """Note bitwise equality and distance in units in the last place to the batched arm's outputs."""
    for name, array in outputs.items():
        if name in quantities and name in base and base[name].shape == array.shape:
            quantities[name]["bitwise"] = array.tobytes() == base[name].tobytes()
            quantities[name]["max_ulp"] = max_ulp(array, base[name])


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
