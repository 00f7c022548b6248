"""Counts as they are stored: alike launches together, read back as they were written, and refused where malformed."""

import gzip

import pytest

from harness.errors import UsageError
from harness.records import counts
from harness.records.counts import CountRecord
from impls.thunks import Launch, Launches

FOUND = Launches(
    (
        Launch("copy.1", "kCopy", 1, 0, None, "", 8, False),
        Launch("copy.2", "kCopy", 1, 0, None, "", 8, False),
        Launch("gemm", "kCublasLtMatmul", 20, 1, (1, 50, 100, 100), "cuBLASLt", 800, False),
        Launch("tail", "kCustomKernel", 20, 1, (4, 50, 25, 100), "Triton", 800, False),
    ),
    (20,),
)


@pytest.fixture
def record() -> CountRecord:
    return CountRecord(
        card="h100",
        xla="jax-cuda12-pjrt 0.10.2",
        triton=False,
        workload="book",
        pass_="forward",
        recurrence="scan",
        projection="in_loop",
        graphs=list(FOUND.graphs),
        launches=counts.group_alike(FOUND),
    )


def test_launches_that_are_alike_are_one_line(record):
    assert [(launch.kind, launch.alike, launch.total) for launch in record.launches] == [
        ("kCopy", 2, 2),
        ("kCublasLtMatmul", 1, 20),
        ("kCustomKernel", 1, 20),
    ]
    assert (record.from_host, record.in_graphs) == (2, 40)
    assert record.products == {"Triton": 20, "cuBLASLt": 20}


def test_what_is_written_is_read_back_packed_or_not(record, tmp_path):
    other = record.model_copy(update={"triton": True})
    counts.append(tmp_path, [record])
    assert counts.read(tmp_path) == [record]
    (tmp_path / counts.PACKED).write_bytes(gzip.compress((tmp_path / counts.FILE).read_bytes()))
    (tmp_path / counts.FILE).unlink()
    counts.append(tmp_path, [other])
    assert counts.read(tmp_path) == [record, other]
    assert record.key != other.key


def test_a_program_counted_again_has_its_last_record_and_that_of_another_compiler_stays(record, tmp_path):
    failed = record.model_copy(update={"launches": [], "reason": "ValueError: not now"})
    newer = record.model_copy(update={"xla": "jax-cuda13-pjrt 0.11.2"})
    counts.append(tmp_path, [failed, newer, record])
    assert counts.read(tmp_path) == [record, newer]


def test_what_cannot_be_read_is_one_sentence(record, tmp_path):
    with pytest.raises(UsageError, match="holds no counts"):
        counts.read(tmp_path)
    (tmp_path / counts.FILE).write_text('{"card": "h100"}\n')
    with pytest.raises(UsageError, match="no count: Field required"):
        counts.read(tmp_path)
    (tmp_path / counts.FILE).unlink()
    (tmp_path / counts.PACKED).write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="cannot be read"):
        counts.read(tmp_path)


def test_a_line_that_a_full_disk_cut_is_none_and_what_is_added_takes_its_place(record, tmp_path):
    counts.append(tmp_path, [record, record])
    whole = (tmp_path / counts.FILE).read_bytes()
    (tmp_path / counts.FILE).write_bytes(whole[:-9])
    assert counts.read(tmp_path) == [record]
    counts.append(tmp_path, [record])
    assert (tmp_path / counts.FILE).read_bytes() == whole
