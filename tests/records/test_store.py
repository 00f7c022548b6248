"""The last line of records: whole without its newline it is a record, cut it is none; nothing else is touched."""

import gzip
import json
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.records import store
from harness.records.store import FILE, PACKED, RUN, Store, read_records
from harness.records.training import TRAINING

REPORTS = Path(__file__).parents[2] / "reports"


def committed(format_):
    """The first lines of committed records."""
    packed = max(REPORTS.glob(f"*/{format_.file}.gz"))
    first, *others = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()[:4]]
    if "cells" in first:
        first |= {name: first[name][:5] for name in ("cells", "absent")}
    return [json.dumps(record) for record in (first, *others)]


def parsed(format_, line):
    return format_.known.validate_python(json.loads(line))


@pytest.fixture(scope="module", params=[RUN, TRAINING], ids=["run", "training"])
def kind(request):
    """A format of records, and lines of it."""
    return request.param, committed(request.param)


def put(folder, format_, text, packed=False):
    content = text if isinstance(text, bytes) else text.encode()
    if packed:
        (folder / f"{format_.file}.gz").write_bytes(gzip.compress(content))
    else:
        (folder / format_.file).write_bytes(content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_last_record_without_its_newline_is_read(kind, count, packed, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, "\n".join(lines[:count]), packed)
    assert read_records(tmp_path, format_) == [parsed(format_, line) for line in lines[:count]]


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_line_is_none_wherever_it_is_cut(kind, packed, tmp_path):
    format_, lines = kind
    whole = "\n".join(lines[:2]) + "\n"
    for cut in {1, 2, 9, len(lines[2]) // 3, len(lines[2]) // 2, len(lines[2]) - 2, len(lines[2]) - 1}:
        put(tmp_path, format_, whole + lines[2][:cut], packed)
        assert len(read_records(tmp_path, format_)) == 2
    put(tmp_path, format_, whole.encode() + bytes(512), packed)  # as file systems leave it when the power fails
    assert len(read_records(tmp_path, format_)) == 2


def test_a_cut_in_a_letter_of_several_bytes_is_no_record(kind, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, (lines[0] + "\n").encode() + '{"key": "é'.encode()[:-1])
    assert len(read_records(tmp_path, format_)) == 1


@pytest.mark.parametrize("tail", ["{}", "null", "17", '{"schema": 99, "key": "k"}', '{"schema": 1, "kind": "other"}'])
def test_a_whole_last_line_that_is_no_record_is_not_dropped_in_silence(kind, tail, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, f"{lines[0]}\n{tail}")
    before = (tmp_path / format_.file).read_bytes()
    with pytest.raises(UsageError, match="line 2"):
        read_records(tmp_path, format_)
    with pytest.raises(UsageError, match="line 2"):
        Store(tmp_path, format_).recover()
    assert (tmp_path / format_.file).read_bytes() == before


def test_what_is_added_goes_behind_a_last_record_without_its_newline(kind, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, "\n".join(lines[:3]))
    store = Store(tmp_path, format_)
    assert len(store.recover()) == 3
    added = store.append(parsed(format_, lines[3]))
    assert read_records(tmp_path, format_) == [*(parsed(format_, line) for line in lines[:3]), added]
    assert (tmp_path / format_.file).read_text().startswith("\n".join(lines[:3]) + "\n")


def test_what_is_added_takes_the_place_of_a_cut_line(kind, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, "\n".join(lines[:3]) + "\n" + lines[3][:-5])
    store = Store(tmp_path, format_)
    assert len(store.recover()) == 3
    store.append(parsed(format_, lines[3]))
    store.append(parsed(format_, lines[3]))
    assert len(read_records(tmp_path, format_)) == 5
    assert (tmp_path / format_.file).read_text().startswith("\n".join(lines[:3]) + "\n")


def test_a_first_record_that_was_cut_is_written_again(kind, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, lines[0][:50])
    store = Store(tmp_path, format_)
    assert store.recover() == []
    store.append(parsed(format_, lines[0]))
    assert len(read_records(tmp_path, format_)) == 1


def test_a_file_that_is_not_ours_is_not_changed(kind, tmp_path):
    """Its last line was once cut off before it was seen to be another program's."""
    format_, _ = kind
    put(tmp_path, format_, "somebody's\nnotes without an end")
    with pytest.raises(UsageError, match="line 1, is not JSON"):
        Store(tmp_path, format_).recover()
    assert (tmp_path / format_.file).read_text() == "somebody's\nnotes without an end"


def test_reading_changes_nothing(kind, tmp_path):
    format_, lines = kind
    put(tmp_path, format_, "\n".join(lines[:2]) + "\n" + lines[2][:40])
    before = (tmp_path / format_.file).read_bytes()
    read_records(tmp_path, format_)
    Store(tmp_path, format_).recover()
    assert (tmp_path / format_.file).read_bytes() == before


def test_a_packed_file_that_was_cut_is_refused(kind, tmp_path):
    format_, lines = kind
    packed = gzip.compress("\n".join(lines).encode())
    (tmp_path / f"{format_.file}.gz").write_bytes(packed[:-12])
    with pytest.raises(UsageError, match="cannot be read"):
        read_records(tmp_path, format_)


def test_committed_records_can_be_read():
    assert {path.parent.name for path in REPORTS.glob(f"*/{PACKED}")}
    for format_, name in ((RUN, FILE), (RUN, PACKED), (TRAINING, f"{TRAINING.file}.gz")):
        for path in REPORTS.glob(f"*/{name}"):
            assert len(store.read_records(path.parent, format_)) > 3


@pytest.mark.parametrize(("name", "limit"), [("LONGEST_LINE", 300), ("LARGEST_FILE", 450)])
def test_a_file_that_is_too_large_for_records_is_refused_before_it_fills_the_memory(name, limit, tmp_path, monkeypatch):
    with gzip.open(tmp_path / PACKED, "wb") as file:
        file.write(b" " * (400 if name == "LONGEST_LINE" else 200) + b"\n" + b" " * 300 + b"\n")
    monkeypatch.setattr(store, name, limit)
    with gzip.open(tmp_path / PACKED) as file, pytest.raises(UsageError, match="is too large for records"):
        list(store._lines(tmp_path / PACKED, file))
