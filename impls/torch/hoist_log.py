"""The settings of impls.torch.hoist, and the sentences of its log."""

from collections.abc import Iterable
from dataclasses import dataclass, field

FEEDS = "a later step, or something else than the stack of all steps, depends on it"
NO_PRODUCT = "nothing in it is a product, so that doing it for all steps at once would save little"
MOVED = "no later step depends on it"


@dataclass(frozen=True)
class Settings:
    """The arguments of `hoist` that say what is moved, and the list that gets the log's lines."""

    chunk: int | None = None
    memory_budget: int | None = None
    log: list[str] = field(default_factory=list)

    def at_once(self, steps: int) -> int:
        """Return how many steps are done at once after a loop."""
        return min(self.chunk or steps, steps)

    def pieces(self, steps: int) -> list[tuple[int, int]]:
        """Return the first step of each piece, and the one after its last."""
        size = self.at_once(steps)
        return [(start, min(start + size, steps)) for start in range(0, steps, size)]

    def over_budget(self, extra_bytes: int) -> str:
        """Return why moving something takes too much memory, or ""."""
        if self.memory_budget is None or extra_bytes <= self.memory_budget:
            return ""
        return f"moving it would take {extra_bytes} bytes more, and the memory budget is {self.memory_budget}"

    def add(self, loop: str, steps: int, verb: str, names: Iterable[str], reason: str) -> None:
        """Add a line about a group of operations."""
        self.log.append(f"{loop}, {steps} steps: {verb}: {', '.join(names)}: {reason}")
