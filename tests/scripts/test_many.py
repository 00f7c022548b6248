"""A run of many blocks is made of the blocks of a run: each has a replicate and a key of its own."""

from pathlib import Path

from harness.records.schema import BlockRecord
from harness.records.store import latest_blocks, read_run
from scripts import many

REPORT = max((Path(__file__).parents[2] / "reports").glob("*-default"))


def test_as_many_blocks_are_made_as_were_asked_for_and_all_of_them_count():
    records = read_run(REPORT)
    first = [r for r in records if isinstance(r, BlockRecord) and r.kind == "block" and r.replicate == 1]
    repeated = many.repeat_blocks(records, 2 * len(first) + 1)
    blocks = latest_blocks(repeated, "block")
    assert len(blocks) == 2 * len(first) + 1
    assert [block.replicate for block in blocks] == [0] * len(first) + [1] * len(first) + [2]
    assert blocks[-1].arms == first[0].arms
