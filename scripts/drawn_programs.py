"""What the scripts share that compare drawn programs before and after a transformation, one for each number."""

import argparse
import time
from collections.abc import Callable
from typing import Protocol


class Outcome(Protocol):
    """What came of one program: the differences in sentences, and whether anything was moved."""

    differences: list[str]

    @property
    def moved(self) -> bool:
        """Return whether anything was moved."""


def compare_all(description: str, name: Callable[[int], str], compare: Callable[[int], Outcome]) -> int:
    """Compare as many programs as the command line says, print each difference, and return the exit status."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="how many programs (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    equal_count = moved_count = 0
    for number in range(arguments.first, arguments.first + arguments.count):
        outcome = compare(number)
        equal_count, moved_count = equal_count + (not outcome.differences), moved_count + outcome.moved
        for difference in outcome.differences:
            print(f"{name(number)}: {difference}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{equal_count} of {arguments.count} equal, {moved_count} with something moved, in {seconds:.0f} s")
    return 0 if equal_count == arguments.count else 1
