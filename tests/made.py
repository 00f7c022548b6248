"""Made-up records, and the content of real ones, for tests."""

import gzip
import json
from typing import Any

from harness.records.schema import KNOWN, BlockRecord
from harness.records.store import FILE, PACKED
from harness.study.study import Workload
from impls.interface import Execution

ARM = {"status": "ok", "reason": "", "first_call_ns": None, "calls": 1, "samples_ns": []}
BLOCK = {
    "key": "k-0",
    "kind": "block",
    "framework": "numpy",
    "device": "cpu",
    "threads": 1,
    "execution": "eager",
    "precision": "fp32",
    "status": "ok",
    "reason": "",
    "replicate": 0,
    "steps": 1,
    "pass": "forward",
    "load": 0.0,
    "began": "2026-01-01T00:00:00+00:00",
    "timer_ns": None,
    "threads_used": None,
    "bounds": {},
    "arms": {},
}
SIZES = Workload(name="w", B=1, T=1, I=1, H=1, O=1).model_dump()


def block(content: dict[str, Any]) -> BlockRecord:
    """A block's record, from what matters of it; the rest is filled in."""
    arms = {name: ARM | arm for name, arm in content.get("arms", {}).items()}
    workload = SIZES | content.get("workload", {})
    return BlockRecord.model_validate(BLOCK | {"steps": workload["T"]} | content | {"arms": arms, "workload": workload})


def records(contents):
    """Records from the content of their lines."""
    return [KNOWN.validate_python(content) for content in contents]


def lines(folder):
    """The content of each line of a run's records, plain or packed."""
    packed = folder / PACKED
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else (folder / FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def whole(folder):
    """The text of every page of a report."""
    return "\n".join(page.read_text() for page in [folder / "report.md", *sorted((folder / "appendix").glob("*.md"))])


def execution(**changed) -> Execution:
    """An execution that can do everything, eagerly and unrolled, but for what is changed."""
    return Execution(**{"traced": False, "unrolls": (), **changed})
