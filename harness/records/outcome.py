"""Whether a run measured anything, and why not. Needs no pandas."""

from collections import Counter
from collections.abc import Iterable

from harness.records.schema import BlockRecord

REASONS = 3  # how many reasons are named, the most frequent ones


def no_times_reason(blocks: Iterable[BlockRecord], budget_s: float | None) -> str:
    """Return why the blocks of a run hold no time, in one sentence; an empty string if any block holds one."""
    arms = [arm for block in blocks for arm in block.arms.values()]
    if any(arm.has_times for arm in arms):
        return ""
    if not arms:
        cause = f"the budget of {budget_s:g} s ended" if budget_s else "the run was interrupted"
        return f"{cause} before the first block"
    counts = Counter((arm.status.replace("_", " "), arm.reason or "no time was taken") for arm in arms)
    clauses = [f"{count} {status}: {reason}" for (status, reason), count in counts.most_common(REASONS)]
    if len(counts) > REASONS:
        clauses.append(
            f"{sum(counts.values()) - sum(count for _, count in counts.most_common(REASONS))} for other reasons"
        )
    return f"of {len(arms)} measurements {'; '.join(clauses)}"
