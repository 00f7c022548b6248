"""Count what XLA would launch for each arm on a GPU that this machine does not have. Nothing runs there.

    JAX_PLATFORMS=cpu python scripts/gpu_counts.py OUT.jsonl --card h100

Each line of OUT.jsonl is one compiled program. Needs the packages of the extra gpu-aot.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.study.study import NAMED
from impls.interface import IMPOSSIBLE, PASSES, Arm
from impls.jax import ahead
from impls.thunks import Launches

PROJECTIONS = ("none", "in_loop", "per_step", "batched", "bmm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--card", default="h100")
    parser.add_argument("--workload", default="book,vocab,stream")
    parser.add_argument("--recurrence", default="scan")
    parser.add_argument("--pass", dest="passes", default=",".join(PASSES))
    parser.add_argument("--texts", type=Path, help="a folder for the programs' texts")
    options = parser.parse_args()
    version, card = ahead.open_card(options.card)
    workloads, recurrences = options.workload.split(","), options.recurrence.split(",")
    passes = options.passes.split(",")
    for workload, recurrence, pass_, projection, triton in itertools.product(
        workloads, recurrences, passes, PROJECTIONS, (True, False)
    ):
        arm = Arm(recurrence, projection)
        if arm.name in IMPOSSIBLE:
            continue
        begin = time.perf_counter()
        sizes = NAMED[workload]
        found, evidence, texts = ahead.compiled(sizes.shapes, sizes.cell, arm, pass_, card, triton)
        if options.texts:
            keep(options.texts / f"{version}-{workload}-{pass_}-{arm.name}-{triton}".replace(" ", "-"), texts)
        row = {"card": options.card, "xla": version, "triton": triton, "workload": workload, "pass": pass_}
        row |= {"recurrence": recurrence, "projection": projection} | as_row(found)
        row |= {"loops": evidence.loops, "temp_bytes": evidence.temp_bytes}
        row |= {"compile_s": round(time.perf_counter() - begin, 2)}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row["workload"], pass_, arm.name, triton, found.from_host, found.graphs, found.in_graphs, flush=True)


def keep(folder: Path, texts: dict[str, str]) -> None:
    """Write a program's texts into a folder of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)


def as_row(found: Launches) -> dict[str, Any]:
    """Return launches as JSON, those alike together."""
    alike = Counter((e.kind, e.times, e.graph, e.product, e.library, e.moved_bytes, e.sliced) for e in found.launches)
    keys = ("kind", "times", "graph", "product", "library", "moved_bytes", "sliced", "alike")
    launches = [dict(zip(keys, (*key, count), strict=True)) for key, count in alike.items()]
    return {"graphs": found.graphs, "launches": launches}


if __name__ == "__main__":
    main()
