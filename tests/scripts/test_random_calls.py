"""The short form of scripts/random_calls.py; and that what it looks for is found where it is planted."""

import os
import sys

import pytest

from scripts import random_calls
from scripts.random_calls import Call, Outcome, changed_paths, draw_call, find_faults

SEED, CALLS = 18, 16
RUN = Call(("run", "--out", "out"))


def outcome(status=0, said="", errors="", changed=(), left_running=0):
    return Outcome(status, said, errors, tuple(changed), left_running, 1.0)


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_random_calls_end_as_documented_and_write_where_they_are_told():
    found = random_calls.run_calls(SEED, range(CALLS), parallel=2)
    assert found["calls"] == CALLS
    assert found["faults"] == []


def test_a_call_is_the_same_for_the_same_seed_and_number():
    drawn = [draw_call(3, number) for number in range(200)]
    assert drawn == [draw_call(3, number) for number in range(200)]
    assert drawn != [draw_call(4, number) for number in range(200)]
    assert {call.command for call in drawn} >= {"run", "verify", "explain", "report", "list", "train"}
    assert {kind for call in drawn for kind in call.streams} == {"normal", "closed", "full", "broken"}


@pytest.mark.parametrize(
    ("seen", "call"),
    [
        (outcome(), RUN),
        (outcome(1, errors="12 measurements went wrong"), RUN),
        (outcome(2, errors="error: no"), RUN),
        (outcome(2), Call(RUN.arguments, streams=("normal", "normal", "closed"))),
        (outcome(130), Call(RUN.arguments, interrupted_s=1.0)),
    ],
)
def test_what_is_documented_is_no_fault(seen, call):
    assert find_faults(call, seen) == []


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (outcome(None), "did not end"),
        (outcome(3), "exit status is 3"),
        (outcome(139), "exit status is 139"),
        (outcome(130), "and was not"),
        (outcome(1, errors="Traceback (most recent call last):\n"), "Traceback"),
        (outcome(0, said="Traceback (most recent call last):\n"), "Traceback"),
        (outcome(1, errors="Exception ignored in: <x>"), "Exception ignored"),
        (outcome(2), "refused in 0 sentences"),
        (outcome(2, errors="error: one\nerror: two"), "refused in 2 sentences"),
        (outcome(0, errors="error: one"), "ended with 0"),
        (outcome(changed=["/box/home/x"]), "changed /box/home/x"),
        (outcome(left_running=2), "left 2 processes"),
    ],
)
def test_every_fault_that_is_planted_is_found(seen, said):
    (found,) = find_faults(RUN, seen)
    assert said in found


def test_what_lies_outside_the_named_folder_is_a_change():
    before = {"/box/here/notes": (3, 1), "/box/tmp": (0, 0)}
    after = before | {
        "/box/here/notes": (3, 2),
        "/box/here/out/report.md": (9, 9),
        "/box/here/out": (0, 0),
        "/box/tmp/x": (1, 1),
    }
    assert changed_paths(before, after, ["/box/here/out"]) == ("/box/here/notes", "/box/tmp/x")
    assert changed_paths(before, {"/box/tmp": (0, 0)}, ["/box/here/out"]) == ("/box/here/notes",)
    assert (
        changed_paths(before, before | {"/box/here/deep": (0, 0), "/box/here/deep/out": (0, 0)}, ["/box/here/deep/out"])
        == ()
    )


def test_a_call_that_hangs_is_ended_and_named(tmp_path, monkeypatch):
    place = random_calls.make_sandbox(tmp_path / "box", tmp_path / "nowhere")
    sleeping = ["/bin/sh", "-c", "sleep 600"]
    monkeypatch.setattr(random_calls, "command_line", lambda call: sleeping)
    assert random_calls.perform(RUN, place, limit_s=0.2).status is None


def test_what_a_call_leaves_running_and_writes_is_seen(tmp_path, monkeypatch):
    place = random_calls.make_sandbox(tmp_path / "box", tmp_path / "nowhere")
    script = "import subprocess; subprocess.Popen(['sleep', '600']); open('../tmp/left', 'w'); print('said'); exit(7)"
    monkeypatch.setattr(random_calls, "command_line", lambda call: [sys.executable, "-c", script])
    monkeypatch.setattr(random_calls, "GRACE_S", 0.1)
    found = random_calls.perform(RUN, place)
    assert (found.status, found.said, found.left_running) == (7, "said\n", 1)
    assert found.changed == (os.fspath(place / "tmp" / "left"),)


@pytest.mark.parametrize("kind", ["closed", "full", "broken"])
def test_streams_are_what_they_are_called(kind, tmp_path, monkeypatch):
    place = random_calls.make_sandbox(tmp_path / "box", tmp_path / "nowhere")
    script = (
        "import os\ntry:\n    os.write(1, b'x')\nexcept OSError as error:\n    os.write(2, str(error.errno).encode())"
    )
    line = random_calls.command_line(Call((), streams=("normal", kind, "normal")))
    monkeypatch.setattr(random_calls, "command_line", lambda call: [*line[:4], sys.executable, "-c", script])
    found = random_calls.perform(Call((), streams=("normal", kind, "normal")), place)
    assert found.errors == {"closed": "9", "full": "28", "broken": "32"}[kind]
