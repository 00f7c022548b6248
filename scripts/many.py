"""How long `report` takes from many blocks: the records of a run, repeated as further replicates.

    python scripts/many.py reports/<folder> --blocks 10000

prints the seconds that `python -m harness report` took of such a folder, its start included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.cli import streams
from harness.records.schema import BlockRecord, RunRecord
from harness.records.store import FILE, SCHEMA, read_run


def repeat_blocks(records: list[RunRecord], blocks: int) -> list[RunRecord]:
    """Return the records that are no blocks, and `blocks` blocks: replicate 1's under ever new replicates and keys."""
    known = [record for record in records if isinstance(record, BlockRecord) and record.kind == "block"]
    others = [record for record in records if record not in known]
    first = [record for record in known if record.replicate == 1]
    rounds = [divmod(number, len(first)) for number in range(blocks)]
    return others + [
        first[place].model_copy(update={"replicate": replicate, "key": f"{number:016x}-0"})
        for number, (replicate, place) in enumerate(rounds)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / FILE).open("w", encoding="utf-8") as file:
            for record in repeat_blocks(read_run(given.folder), given.blocks):
                line = {"schema": SCHEMA, **record.model_dump(by_alias=True)}
                file.write(json.dumps(line) + "\n")
        began = time.monotonic()
        command = [sys.executable, "-m", "harness", "report", "--no-html", folder]
        if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"the report ended with status {code}")
        print(f"{given.blocks} blocks: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    streams.leave(main)
