"""A worker that counts: what it answers where a program compiles, fails, or cannot be compiled at all."""

import sys
from types import SimpleNamespace

import pytest

from harness.study.study import NAMED
from harness.worker import counting
from harness.worker.messages import CountRequest
from impls.evidence import Evidence
from impls.interface import Arm
from impls.thunks import Launch, Launches

REQUEST = CountRequest(card="h100", workload=NAMED["book"], arm=Arm("scan", "in_loop"), pass_="train", triton=False)
FOUND = Launches((Launch("copy", "kCopy", 20, 1, None, "", 8, False),), (20,))


class Missing(Exception):  # noqa: N818  named as that of impls.jax.ahead
    pass


@pytest.fixture
def ahead(monkeypatch):
    module = SimpleNamespace(Missing=Missing, open_card=lambda name: ("xla 1", f"the {name}"))
    module.compile_arm = lambda *arguments: (FOUND, Evidence(loops=[20], temp_bytes=7), {})
    monkeypatch.setitem(sys.modules, "impls.made_up", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "impls.made_up.ahead", module)
    return module


def answer(seconds=(1.0, 3.5)):
    times = iter(seconds)
    return counting.count("made_up", REQUEST, lambda: next(times))


def test_a_program_s_count_has_all_that_tells_it_from_others(ahead):
    record = answer().record
    assert record.key == ("h100", False, "book", "train", "scan", "in_loop")
    assert (record.xla, record.graphs, record.in_graphs, record.loops) == ("xla 1", [20], 20, [20])
    assert (record.temp_bytes, record.compile_s, record.reason) == (7, 2.5, "")


def test_the_program_asked_for_is_the_one_compiled(ahead):
    asked = []
    ahead.compile_arm = lambda *arguments: asked.append(arguments) or (FOUND, Evidence(), {})
    answer()
    book = NAMED["book"]
    assert asked == [(book.shapes, book.cell, Arm("scan", "in_loop"), "train", "the h100", False)]


def test_a_program_that_does_not_compile_has_a_reason(ahead):
    def fail(*arguments):
        raise ValueError("a kind that is not known\nand more")

    ahead.compile_arm = fail
    record = answer().record
    assert record.reason == "ValueError: a kind that is not known"
    assert record.launches == []


def test_a_card_that_cannot_be_opened_and_a_framework_without_a_compiler_are_missing(ahead):
    def fail(name):
        raise Missing("it is not installed")

    ahead.open_card = fail
    assert (answer().record, answer().missing) == (None, "it is not installed")
    assert counting.count("nowhere", REQUEST, lambda: 0.0).missing == counting.NOT_AHEAD
