"""Whether a run measured anything, and why not. SampleSizes no pandas."""

from collections import Counter
from collections.abc import Iterable

from harness.records.store import Record

REASONS = 3  # that are named, the most frequent ones


def why_nothing(blocks: Iterable[Record], budget_s: float | None) -> str:
    """Why the blocks of a run hold no time, in a sentence; nothing where one of them does."""
    arms = [arm for block in blocks for arm in block["arms"].values()]
    if any(arm["status"] == "ok" and arm["samples_ns"] for arm in arms):
        return ""
    if not arms:
        why = f"the budget of {budget_s:g} s ended" if budget_s else "the run was interrupted"
        return f"{why} before the first block"
    count = Counter((arm["status"].replace("_", " "), arm["reason"] or "no time was taken") for arm in arms)
    named = [f"{times} {status}: {reason}" for (status, reason), times in count.most_common(REASONS)]
    if len(count) > REASONS:
        named.append(f"{sum(count.values()) - sum(times for _, times in count.most_common(REASONS))} for other reasons")
    return f"of {len(arms)} measurements {'; '.join(named)}"
