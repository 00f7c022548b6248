"""A user's own functions: what is refused and in which words, what is checked, timed and said of the times.

Most of it is with NumPy (tests/fourth): its workers start at once, and a function of NumPy can do anything wrong.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.analysis import pairs
from harness.errors import UsageError
from harness.records.pair import CONTROL, PAIR, AgreementRecord, PairHeaderRecord, TimedRecord
from harness.records.schema import ArmTiming
from harness.records.store import Store, read_records
from harness.report import pair as report
from harness.run import pair as run
from harness.study.configuration import Configuration
from harness.study.pair import PairStudy, make_study, read_file
from harness.verify import agreement
from harness.worker import pair_check, pair_file, pair_time
from harness.worker.pair_file import Loading
from harness.worker.timing import Meters, RoundLimits
from tests.conftest import FOURTH
from tests.run.test_session import plant

ROOT = Path(__file__).parents[2]
GOOD = """
import numpy as np

FRAMEWORK = "numpy"
GRADIENTS = ["w"]


def inputs(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 4, 3)), rng.normal(size=(3, 2))


def per_step(x, w):
    return np.stack([h @ w for h in x])


def batched(x, w):
    return x @ w


CANDIDATES = [per_step, batched]
"""


def changed(*pairs_of_texts):
    """The good file with texts in it replaced by others."""
    text = GOOD
    for old, new in pairs_of_texts:
        assert old in text
        text = text.replace(old, new)
    return text


def second(body, before=""):
    """The good file, whose second function does something else."""
    return changed(("    return x @ w\n", f"    {body}\n"), ("def batched", f"{before}\n\ndef batched"))


@pytest.fixture
def place(tmp_path):
    """A folder outside the repository, with blanks in its path."""
    folder = tmp_path / "a folder of mine"
    folder.mkdir()
    return folder


@pytest.fixture
def adapter(numpy_backend, monkeypatch):
    """NumPy's way to call functions, in this process; what loading a file does to this process is undone."""
    from impls.numpy.functions import Functions

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, pair_file.MODULE, None)
    return Functions(type("Backend", (), {"wait": lambda self, outputs: None})())


@pytest.fixture
def load(adapter, place):
    """Load a file by its text."""

    def loaded(text, exact=False, hoist=False):
        file = place / "my pair.py"
        file.write_text(text)
        return pair_file.load(file, adapter, Loading("fp32", 7, exact, hoist))

    return loaded


@pytest.fixture
def check(load, adapter):
    """Check a file by its text; return the differences and what is expected."""

    def checked(text, exact=False):
        return pair_check.Checker(load(text, exact), adapter, exact, lambda arm, what: None).differences()

    return checked


@pytest.fixture
def unproven(monkeypatch):
    """Threads are not proven, so that this may run beside other tests."""
    monkeypatch.setattr(run, "needs_proof", lambda configuration: False)


@pytest.fixture
def compare(harness, place, unproven, numpy_backend):
    """Call the command with a file's text; `compare.out` is its folder."""

    def called(text, *flags):
        file = place / "my pair.py"
        file.write_text(text)
        return harness("pair", str(file), "--processes", "2", "--rounds", "5", "--out", str(called.out), *flags)

    called.out = place / "the results"
    return called


# What is read of a file before it is run


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def f(:\n", "line 1, is not Python: invalid syntax"),
        ("x = 1\n", "names no framework: give it a line such as FRAMEWORK = "),
        ("FRAMEWORK = 'tor' + 'ch'\n", "names no framework"),
        ("FRAMEWORK = 7\n", "names no framework"),
        ("FRAMEWORK = 'toch'\n", "unknown framework 'toch': did you mean torch?"),
        ("FRAMEWORK = 'torch'\0", "is not Python: "),
    ],
)
def test_a_file_that_says_too_little_is_refused_unread(text, sentence, place):
    (place / "f.py").write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_file(place / "f.py")
    assert sentence in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(place):
    with pytest.raises(UsageError, match=r"f\.py cannot be read: No such file"):
        read_file(place / "f.py")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_file(place)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"precisions": ["bf16"]}, "unknown precision of a pair 'bf16'"),
        ({"threads": [1, 2]}, "--threads takes one value here, not 2"),
        ({"passes": ["backward"]}, "unknown passe 'backward'"),
        ({"processes": 0}, "processes: "),
    ],
)
def test_flags_that_make_no_study_are_refused(flags, sentence):
    with pytest.raises(UsageError) as refusal:
        make_study("torch", flags)
    assert sentence in str(refusal.value)


# What a worker refuses of a file


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import missing_module\n", "importing it raises ModuleNotFoundError: No module named 'missing_mod"),
        ("raise SystemExit(3)\n", "importing it ends the process (SystemExit: 3)"),
        ("x = 1 / 0\n", "importing it raises ZeroDivisionError: division by zero (line 1)"),
        ("x = 1\n", "has no CANDIDATES, a list of two or more functions, the baseline first"),
        (changed(("[per_step, batched]", "[per_step]")), "CANDIDATES must be a list of two or more functions"),
        (changed(("[per_step, batched]", "[per_step, np.tanh]")), "CANDIDATES[1] is a ufunc, and not a function"),
        (changed(("[per_step, batched]", "[per_step, per_step]")), "two of CANDIDATES are named per_step"),
        (changed(("def inputs", "def other")), "has no function inputs(seed)"),
        (changed(("inputs(seed)", "inputs()")), "inputs(seed) raises TypeError: inputs() takes 0 positional arguments"),
        (changed(("return rng.normal", "x = rng.normal")), "inputs(seed) returns nothing, and not a tuple"),
        (changed(("rng.normal(size=(3, 2))", "0.5")), "input 1 is a float, and not an array"),
        (changed(("rng.normal(size=(3, 2))", "np.array(['a'])")), "is of type <U1, which is neither real numbers nor"),
        (changed(("rng.normal(size=(3, 2))", "np.full((3, 2), np.nan)")), "input 1 holds numbers that are not finite"),
        (changed(("rng.normal(size=(3, 2))", "np.full((3, 2), 'a', object)")), "is of type object, which is neither"),
        (changed(("default_rng(seed)", "default_rng()")), "inputs(seed) makes other numbers at a second call"),
        (changed(("per_step(x, w)", "per_step(x)")), "per_step takes 1 arguments, and inputs(seed) makes 2"),
        (changed(("batched(x, w)", "batched(x, w, b)")), "batched cannot be called with x, w: missing a required arg"),
        (changed(('["w"]', '["v"]')), "GRADIENTS names 'v', but the arguments are x, w"),
        (changed(('["w"]', '"w"')), "GRADIENTS must be a list of names of arguments"),
        (changed(('["w"]', '["w", "w"]')), "GRADIENTS names an argument twice"),
        (changed(("rng.normal(size=(3, 2))", "np.ones((3, 2), int)")), "w has no gradient: it holds int64"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_the_protocol_is_refused_in_one_sentence(text, sentence, load):
    with pytest.raises(UsageError) as refusal:
        load(text)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (second("raise ValueError('no')"), "batched raises ValueError: no (line "),
        (second("y = x @ w"), "batched returns nothing"),
        (second("return x @ w, None"), "batched returns nothing as its output[1], and not an array of the framework"),
        (second("return []"), "batched returns nothing"),
        (second("return (x @ w).tolist()[0][0][0]"), "batched returns a float as its output, and not an array"),
        (second("return (x @ w)[:4]"), "batched returns float32 [4, 4, 2] as its output where per_step has float32 [5"),
        (second("return x @ w + np.zeros(2)"), "batched returns float64 [5, 4, 2] as its output where per_step"),
        (second("return x @ w, x"), "batched returns output[0], output[1] where per_step returns output"),
        (second("return {'y': x @ w}"), "batched returns output['y'] where per_step returns output"),
        (second("return (x @ w) * 1j"), "batched returns complex64 as its output: only real numbers are compared"),
        (second("x *= 2\n    return x @ w / 2"), "batched changes its input x in place"),
        (second("return x @ w / np.zeros((), 'float32')"), "batched returns numbers that are not finite in its output"),
        (second("calls.append(1)\n    return x @ w + np.float32(len(calls))", "calls = []"),
         "batched returns something else at a second call with the same inputs: output["),
        (second("calls.append(1)\n    return np.ones(len(calls), 'float32')", "calls = []"),
         "batched returns float32 [1] as its output where per_step has float32 [5, 4, 2]"),
        (changed(("    return np.stack([h @ w for h in x])", "    return x[x[..., 0] > X] @ w"),
                 ("def per_step", "X = inputs(7)[0].astype('float32')[1, 2, 0]\n\n\ndef per_step")),
         "per_step returns arrays of other shapes on inputs that are changed by a last digit or so"),
        (changed(("    return np.stack([h @ w for h in x])", "    return x @ w / np.zeros(1, 'float32')")),
         "per_step returns numbers that are not finite in its output"),
        (changed(("np.stack([h @ w for h in x])", "np.argmax(x @ w, -1)")),
         "per_step returns no floating-point numbers, whose gradients GRADIENTS asks for"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_function_that_cannot_be_compared_is_refused_in_one_sentence(text, sentence, check):
    with pytest.raises(UsageError) as refusal:
        check(text)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_inputs_by_name_go_to_each_function_in_its_own_order(check):
    text = changed(
        ("return rng.normal(size=(5, 4, 3)), rng.normal(size=(3, 2))",
         "return {'w': rng.normal(size=(3, 2)), 'x': rng.normal(size=(5, 4, 3))}"),
        ("def batched(x, w)", "def batched(w, x)"),
    )  # fmt: skip
    differences, _ = check(text, exact=True)
    assert all(difference.is_within for difference in differences["batched"].values())
    with pytest.raises(UsageError, match="batched has no argument x, which inputs"):
        check(text.replace("def batched(w, x)", "def batched(w, y)"))
    with pytest.raises(UsageError, match="batched has an argument before x that inputs"):
        check(text.replace("def batched(w, x)", "def batched(w, b=1, x=2)"))


# Agreement


def excesses(differences):
    """Quantities of the second function that differ by more than their bounds."""
    return [name for name, difference in differences["batched"].items() if not difference.is_within]


OUTPUT, GRADIENT, WEIGHTED = "output", "gradient of w", "gradient of w (outputs weighted)"


@pytest.mark.parametrize("exact", [True, False])
def test_functions_that_are_the_same_agree_and_those_that_are_not_do_not(check, exact):
    small = 1e-9 if exact else 1e-4
    assert excesses(check(GOOD, exact)[0]) == []
    assert excesses(check(second(f"return x @ w + {small}"), exact)[0]) == [OUTPUT]
    assert excesses(check(second(f"return x @ w * (1 + {small})"), exact)[0]) == [OUTPUT, GRADIENT, WEIGHTED]
    assert excesses(check(second("return x @ (0.5 * w + 0.5 * w.real)"), exact)[0]) == [GRADIENT, WEIGHTED]


def test_a_gradient_that_the_sum_of_outputs_hides_is_compared_by_their_weighted_sum(check):
    softmax = "e = np.exp(x @ w)\n    return e / e.sum(-1, keepdims=True)"
    cut = softmax.replace("x @ w", "x @ w.real")
    text = second(cut).replace("return np.stack([h @ w for h in x])", softmax)
    assert excesses(check(text, exact=True)[0]) == [WEIGHTED]


def test_terms_that_cancel_have_the_room_that_their_size_gives_them(check):
    """The last digits of a difference of large numbers are rounding's; a plain share of the result has no room."""
    large = "v = 1e7 * w[:, 0]\n    return "
    text = second(f"{large}x + (v - (1 - 1e-7) * v)").replace(
        "return np.stack([h @ w for h in x])", f"{large}(x + v) - (1 - 1e-7) * v"
    )
    differences, _ = check(text, exact=True)
    assert excesses(differences) == []
    assert differences["batched"][OUTPUT].error > 2 * agreement.FP64 * abs(differences["batched"][OUTPUT].true)
    assert excesses(check(text.replace("x + (v", "1.0000001 * x + (v"), exact=True)[0]) == [OUTPUT]


def test_a_function_that_computes_in_float32_is_not_checked_in_float64(check):
    for body in ("return (x.astype('float32') @ w).astype('float64')", "return x @ np.round(w, 7)"):
        with pytest.raises(UsageError, match=r"batched takes [xw] in less than float64"):
            check(second(body).replace('GRADIENTS = ["w"]', ""), exact=True)
    with pytest.raises(UsageError, match=r"batched returns float32 .* where per_step has float64"):
        check(second("return (x @ w).astype('float32')").replace('GRADIENTS = ["w"]', ""), exact=True)


def test_long_sums_have_the_room_that_they_round_by():
    """The room grows with the square root of how many numbers may be summed one after another."""
    true = {"output": agreement.np.ones(3)}
    ulps, changes = {"output": agreement.ULP["float32"]}, {"output": agreement.np.zeros(3)}
    few, many = (agreement.rounding_bounds(true, changes, ulps, count)["output"].bound[0] for count in (1, 4_096_000))
    assert 32 * ulps["output"] < few < 33 * ulps["output"]
    assert many == pytest.approx(few * 1000**0.5)


def test_the_worst_element_is_named_and_what_is_not_finite_is_the_worst():
    true = agreement.np.zeros((2, 3))
    value = true.copy()
    value[1, 2] = 0.5
    expected = agreement.Expected(true, true + 0.1)
    found = agreement.worst("output", value, expected)
    assert (found.place, found.error, round(found.share, 9)) == ("output[1, 2]", 0.5, 5.0)
    value[0, 1] = float("nan")
    assert agreement.worst("output", value, expected).place == "output[0, 1]"
    assert not agreement.worst("output", value, expected).is_within
    assert agreement.worst("output", true, agreement.Expected(true, true)).is_within


# Rounds, with a clock made up here


class Clock:
    """Counts nanoseconds: 50 a reading, and what functions add. It is a module that the user's file imports."""

    def __init__(self):
        self.now, self.calls = 0, -(10**9)  # calls of a file's functions, once they are timed

    def __call__(self):
        self.now += 50
        return self.now


@pytest.fixture
def timed(load, check, adapter, monkeypatch):
    """Time a file whose functions add to `clock.now`; return the timings by name."""

    def timings(text, compilations=lambda: 0, pass_="forward", seed=1):
        clock = Clock()
        monkeypatch.setitem(sys.modules, "clock", clock)
        text = f"import clock\n{text}"
        _, expected = check(text)
        spec = pair_time.PairTiming("eager", pass_, [], RoundLimits(7, 7, 1.0), seed, None, True)
        meters, pair = Meters(clock, lambda: 0), load(text)
        clock.calls = 0
        block = pair_time.PairBlock(pair, adapter, compilations, spec, expected, meters, lambda arm, what: None)
        block.run()
        return dict(block.results())

    return timings


def slowed(baseline_ns, second_ns):
    """The good file, whose functions take times that are set."""
    return changed(
        ("    return np.stack", f"    clock.now += {baseline_ns}\n    return np.stack"),
        ("    return x @ w\n", f"    clock.now += {second_ns}\n    return x @ w\n"),
    )


@pytest.mark.parametrize("pass_", ["forward", "train"])
def test_every_function_and_the_control_have_a_sample_each_round(timed, pass_):
    arms = timed(slowed(1_000_000, 1_500_000), pass_=pass_)
    assert set(arms) == {"per_step", "batched", CONTROL}
    calls = {"forward": 1, "train": 7}[pass_]  # a gradient of six numbers is seven calls
    assert set(arms["batched"].samples_ns) == {calls * 1_500_000 + 50}
    assert arms[CONTROL].samples_ns == arms["per_step"].samples_ns == [calls * 1_000_000 + 50] * 7
    assert arms["batched"].evidence.missing == {"everything": "NumPy counts nothing"}
    assert arms[CONTROL].evidence is None


def test_short_calls_share_a_sample(timed):
    arms = timed(slowed(100, 1000))
    assert {arm.calls for arm in arms.values()} == {334}  # 150 ns a call, where reading the clock costs 50


def test_a_function_that_goes_wrong_while_it_is_timed_has_no_times(timed):
    arms = timed(second("clock.calls += 1\n    return x @ w + np.float32(clock.calls > 5)"))
    assert (arms["batched"].status, arms["batched"].samples_ns) == ("wrong", [])
    assert "they differ by 1, and may by" in arms["batched"].reason
    assert arms["per_step"].status == "ok"


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        (2, "AssertionError: too often (line "),
        (5, "while functions were timed one raised AssertionError: too often (line "),
    ],
)
def test_a_function_that_raises_only_then_fails_and_nothing_is_compared_with_it(timed, calls, reason):
    arms = timed(second(f"clock.calls += 1\n    assert clock.calls < {calls}, 'too often'\n    return x @ w"))
    assert arms["batched"].status == "failed"
    assert reason in arms["batched"].reason
    assert {arm.samples_ns == [] for arm in arms.values()} == {True}


def test_what_compiles_while_it_is_timed_is_refused_and_what_always_does_is_unavailable(timed):
    late = itertools.chain([0] * 10, itertools.count(1))  # nine readings before the rounds, and one
    arms = timed(slowed(1000, 1000), lambda: next(late))
    assert {arm.status for arm in arms.values()} == {"refused"}
    always = itertools.count()
    arms = timed(slowed(1000, 1000), lambda: next(always))
    assert {arm.status for arm in arms.values()} == {"unavailable"}
    assert "compiles a part of itself anew at every call" in arms["per_step"].reason


# What is made of records


CONFIGURATION = Configuration("numpy", "cpu", 1, "eager", "fp32")


def made_header(**more):
    study = PairStudy(frameworks=["numpy"], threads=[1], processes=5)
    basis = {"machine": {"cpu": "made up"}, "versions": {"numpy": {"numpy": "1"}}, "code": {"commit": "c", "hash": "h"}}
    given = {"key": "h-0", "kind": "pair", "status": "ok", "reason": "", "study": study, "missing": [], "basis": basis}
    given |= {"environments": {}, "weights": {}, "command": "python -m harness pair f.py", "file": "f.py", "text": GOOD}
    given |= {"sources": {"f.py": "0"}, "functions": ["per_step", "batched"], "inputs": [], "gradients": []}
    given |= {"passes": ["forward"], "configurations": [CONFIGURATION], "absent": []}
    return PairHeaderRecord(**(given | {"agreement": AgreementRecord(method="fp64")} | more))


def made_process(replicate, times, **more):
    """A process's record from the nanoseconds of each function's samples."""
    arms = {name: ArmTiming.without_times().model_copy(update={"samples_ns": ns}) for name, ns in times.items()}
    given = {"key": f"{replicate}-0", "kind": "timed", "status": "ok", "reason": "", "configuration": CONFIGURATION}
    given |= {"pass_": "forward", "replicate": replicate, "began": "2026-01-01T00:00:00+00:00", "load": 0.0, "seed": 1}
    return TimedRecord(**(given | {"arms": arms} | more))


def injected(factor, control=1.0, processes=5):
    """Records of processes whose second function takes `factor` times as long, with drift and noise that both have."""
    records = [made_header()]
    for replicate in range(processes):
        base = [1_000_000 + 40_000 * replicate + 1000 * (17 * n % 23) for n in range(20)]
        wobble = [1 + 0.004 * ((7 * n + 3 * replicate) % 5 - 2) for n in range(20)]
        times = {"per_step": base}
        for name, ratio in (("batched", factor), (CONTROL, control)):
            times[name] = [
                round(ratio * b * w * (1 + 0.0004 * (replicate - 2))) for b, w in zip(base, wobble, strict=True)
            ]
        records.append(made_process(replicate, times))
    return records


@pytest.mark.parametrize(
    ("factor", "verdict", "direction"),
    [
        (1.1, "slower", "longer"),
        (0.8, "faster", "shorter"),
        (1.0, "equivalent", "unknown"),
        (1.01, "equivalent", "longer"),
    ],
)
def test_a_known_factor_is_found(factor, verdict, direction):
    (gap,) = pairs.pair_gaps(injected(factor))
    assert gap.gap.low < factor * 1.001
    assert gap.gap.high > factor * 0.999
    assert (gap.verdict, gap.gap.direction, gap.is_included) == (verdict, direction, True)
    assert pairs.problems(injected(factor)) == []


def test_a_ratio_whose_control_misses_1_is_shown_and_not_counted():
    records = injected(1.1, control=1.05)
    (gap,) = pairs.pair_gaps(records)
    assert not gap.is_included
    assert "not counted: its A/A control misses 1" in report.verdict_sentences(records)[0]
    assert "| ⚠ 1.10" in report.render("pair.md.j2", report.context(records))


def test_one_process_has_no_interval_and_none_is_a_problem():
    (gap,) = pairs.pair_gaps(injected(1.1, processes=1))
    assert not gap.has_interval
    assert "(one process) times as long" in report.verdict_sentences(injected(1.1, processes=1))[0]
    nothing = injected(1.1, processes=0)
    assert pairs.problems(nothing) == ["nothing was compared: the budget ended before the first process"]
    assert "batched has no times beside per_step" in report.verdict_sentences(nothing)[0]


def test_what_went_wrong_and_what_cannot_be_timed_is_said():
    lost = made_process(0, {"per_step": [1]}, status="failed", reason="batched: ended by SIGKILL")
    never = made_process(1, {})
    never.arms["batched"] = ArmTiming.without_times("unavailable", pair_time.COMPILES)
    records = [made_header(), lost, never]
    assert pairs.problems(records)[0] == "eager forward, process 0: batched: ended by SIGKILL"
    text = report.render("pair.md.j2", report.context(records))
    assert "- eager forward, process 0: batched: ended by SIGKILL" in text
    assert f"- eager forward, batched: {pair_time.COMPILES}" in text


def test_verdicts_are_corrected_over_the_functions_of_one_execution():
    """A difference that is shown by itself is not shown among twenty."""
    few, *processes = injected(1.0225)
    assert pairs.pair_gaps([few, *processes])[0].verdict == "slower"
    names = [f"same_{n}" for n in range(60)]
    many = made_header(functions=["per_step", "batched", *names])
    for process in processes:
        process.arms |= {name: process.arms[CONTROL] for name in names}
    assert pairs.pair_gaps([many, *processes])[0].verdict in ("slower", "inconclusive")
    assert len(pairs.pair_gaps([many, *processes])) == 61


def test_a_difference_that_is_not_finite_is_stored_and_read_again(tmp_path):
    true = agreement.np.ones(2)
    process = made_process(0, {"per_step": [1], "batched": []})
    process.differences["batched"] = agreement.compare(
        {"output": agreement.np.array([1.0, float("nan")])}, {"output": agreement.Expected(true, true)}
    )
    store = Store(tmp_path, PAIR)
    for record in (made_header(), process):
        store.append(record)
    (difference,) = read_records(tmp_path, PAIR)[1].differences["batched"].values()
    assert (difference.place, difference.share) == ("output[1]", float("inf"))
    assert "| eager | forward | batched | output[1] | nan | inf |" in report.write(tmp_path).read_text()


# The command, with NumPy


def test_the_command_checks_times_reports_and_ends_with_a_sentence(compare, harness, place):
    done = compare(GOOD)
    assert done.returncode == 0, done.stderr
    path, sentence = done.stdout.splitlines()
    assert path == str(compare.out / "pair.md")
    assert sentence.startswith("batched takes ")
    assert sentence.endswith("; they are the same function (checked in float64).")
    header, *processes = read_records(compare.out, PAIR)
    assert header.functions == ["per_step", "batched"]
    assert [(p.replicate, p.pass_) for p in processes] == [(0, "forward"), (0, "train"), (1, "forward"), (1, "train")]
    assert all(len(arm.samples_ns) == 5 for p in processes for arm in p.arms.values())
    assert sorted(path.name for path in compare.out.iterdir()) == ["pair.jsonl", "pair.md"]
    written = (compare.out / "pair.md").read_bytes()
    (compare.out / "pair.md").unlink()
    for flags in ([], ["--out", str(place / "b")]):
        assert harness("report", str(compare.out), *flags).returncode == 0
    assert (compare.out / "pair.md").read_bytes() == (place / "b" / "pair.md").read_bytes() == written


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (second("return x @ w + np.float32(0.01)"), "batched is not per_step in float64: output["),
        (second("return x @ (0.5 * w + 0.5 * w.real)"), "batched is not per_step in float64: gradient of w"),
        (second("return x @ w * np.float32('nan')"), "batched returns numbers that are not finite in its output"),
        (second("x *= 2\n    return x @ w / 2"), "batched changes its input x in place"),
        (
            second("os._exit(3)", "import os"),
            "my pair.py ended the process that it ran in: the worker ended with",
        ),
        ("FRAMEWORK = 'numpy'\n", "my pair.py has no CANDIDATES"),
    ],
)
def test_what_is_not_the_same_is_refused_and_leaves_nothing(text, sentence, compare):
    done = compare(text)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not compare.out.exists()


def test_functions_of_less_than_float64_are_checked_up_to_rounding_and_the_report_says_so(compare):
    text = second("return (x.astype('float32') @ w.astype('float32')).astype(x.dtype)")
    done = compare(text.replace('GRADIENTS = ["w"]', ""))
    assert done.returncode == 0, done.stderr
    assert "(checked up to rounding)" in done.stdout
    assert "not in float64: my pair.py: batched takes x in less than float64" in (compare.out / "pair.md").read_text()
    wrong = text.replace('GRADIENTS = ["w"]', "").replace("return (x", "return np.float32(1.001) * (x")
    refused = compare(wrong, "--out", f"{compare.out}2")
    assert refused.returncode == 2
    assert "is not per_step in fp32, by more than rounding does: output[" in refused.stderr


def test_pass_train_takes_gradients(compare):
    done = compare(changed(('GRADIENTS = ["w"]', "")), "--pass", "train")
    assert done.returncode == 2
    assert "pass train was asked for, but the file has no GRADIENTS" in done.stderr


def test_a_process_that_dies_while_it_times_is_a_record_and_the_others_go_on(compare):
    body = "calls.append(1)\n    if len(calls) > 12:\n        os._exit(5)\n    return x @ w"
    text = second(body, "import os\ncalls = []").replace('GRADIENTS = ["w"]', "")
    done = compare(text, "--rounds", "20")
    assert done.returncode == 1
    _, *processes = read_records(compare.out, PAIR)
    assert [(p.replicate, p.status) for p in processes] == [(0, "failed"), (1, "failed")]
    assert "eager forward, process 1: the worker ended with status 5" in done.stderr
    assert "nothing was compared: no process has times" in done.stderr
    assert "has no times beside per_step" in done.stdout


def test_times_without_proof_of_threads_are_refused(harness, place, numpy_backend, tmp_path, monkeypatch):
    plant("idle", tmp_path, monkeypatch)
    (place / "my pair.py").write_text(GOOD)
    flags = ["--processes", "1", "--pass", "forward", "--out", str(place / "out")]
    done = harness("pair", str(place / "my pair.py"), *flags)
    assert done.returncode == 1
    assert "eager forward, process 0: threads not proven: 1 set, 0." in done.stderr
    (_, process) = read_records(place / "out", PAIR)
    assert (process.status, process.arms) == ("refused", {})


def test_a_comparison_is_resumed_where_it_was_cut_and_not_with_another_file(compare):
    done = compare(GOOD, "--pass", "forward", "--budget", "0.001")
    assert done.returncode == 1
    assert "nothing was compared: the budget ended before the first process" in done.stderr
    done = compare(GOOD, "--pass", "forward", "--resume")
    assert done.returncode == 0, done.stderr
    file = compare.out / "pair.jsonl"
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == ["pair", "timed", "timed"]
    done = compare(f"{GOOD}\n# another\n", "--pass", "forward", "--resume")
    assert done.returncode == 2
    assert "cannot be resumed: its records belong to another study" in done.stderr


def test_a_file_outside_the_repository_runs_in_workers_alone_and_imports_what_lies_beside_it(place, tmp_path):
    """Also the process that is asked for is not this file's: it never imports it."""
    (place / "beside me.txt").write_text("read")
    (place / "my_layers.py").write_text(
        "import os\nfrom pathlib import Path\n\n\ndef project(x, w):\n    return x @ w\n"
    )
    noted = "with open(Path(__file__).parent / 'pids', 'a') as file:\n    print(os.getpid(), file=file)\n"
    text = second("return my_layers.project(x, w)", f"import os\nfrom pathlib import Path\nimport my_layers\n{noted}")
    (place / "my pair.py").write_text(text)
    command = [sys.executable, "-c", "from tests.run.test_pair import main; main()", "pair", "my pair.py"]
    command += ["--processes", "1", "--rounds", "3", "--pass", "forward"]
    path = os.pathsep.join(map(str, (ROOT, FOURTH)))
    done = subprocess.run(
        command, cwd=place, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    header, _ = read_records(place / "runs" / "pair", PAIR)
    assert sorted(header.sources) == ["my pair.py", "my_layers.py"]
    pids = {int(line) for line in (place / "pids").read_text().splitlines()}
    assert len(pids) == 3  # two checks and one process
    assert int(done.stderr.rpartition("parent ")[2]) not in pids
    assert "python -m harness pair 'my pair.py' --processes 1" in (place / "runs" / "pair" / "pair.md").read_text()


def main():
    """The command line, without the proof of threads; it says at the end which process it was."""
    from harness.cli import app

    run.needs_proof = lambda configuration: False
    try:
        app.main()
    finally:
        print("parent", os.getpid(), file=sys.stderr)


# The examples, with their frameworks


SMALLER = {
    "world_model": (("T, B, A, H, O = 64, 16, 8, 200, 64", "T, B, A, H, O = 3, 2, 2, 5, 4"), "xla", "--hoist"),
    "decoder": (("T, B, E, H, V = 30, 16, 64, 128, 1000", "T, B, E, H, V = 3, 2, 4, 5, 7"), "eager", "--hoist"),
    "time_distributed": (("T, B, H, O = 20, 32, 64, 10", "T, B, H, O = 3, 2, 4, 5"), "graph"),
}
PRODUCTS = {  # of the forward pass: of the baseline, of what it is compared with, and of the hoisted baseline
    "world_model": (12, 8, 8),
    "decoder": (9, 7, None),  # what is traced is not eager, and has no times
    "time_distributed": (3, 1),
}
LINES = {"world_model": (2, 1), "decoder": (1, 0)}  # of the hoist's log: of what was moved, and of what stays


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_an_example_runs(name, harness, unproven, tmp_path):
    sizes, execution, *more = SMALLER[name]
    text = (ROOT / "docs" / "pairs" / f"{name}.py").read_text()
    assert sizes[0] in text
    (tmp_path / "example.py").write_text(text.replace(*sizes))
    flags = ["--execution", execution, "--processes", "1", "--rounds", "3", "--out", str(tmp_path / "out"), *more]
    done = harness("pair", str(tmp_path / "example.py"), *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("they are the same function (checked in float64).")
    header, *processes = read_records(tmp_path / "out", PAIR)
    assert [process.pass_ for process in processes] == ["forward", "train"]
    evidence = [processes[0].arms[function].evidence for function in header.functions]
    counts = [None if e is None else sum(product.times for product in e.written or e.products) for e in evidence]
    assert tuple(counts) == PRODUCTS[name]
    moved = [line for line in header.hoisted if re.search(": moved: (1 dot_general|matmul, add): ", line)]
    stays = [line for line in header.hoisted if "stays: 2 dot_general" in line]
    assert (len(moved), len(stays)) == LINES.get(name, (0, 0))
    assert all(line in (tmp_path / "out" / "pair.md").read_text() for line in header.hoisted)


def test_what_rewrites_jax_is_refused_to_others_and_a_name_may_be_taken(load):
    with pytest.raises(UsageError, match="hoist rewrites programs of JAX and PyTorch, and those of no other framework"):
        load(GOOD, hoist=True)
    with pytest.raises(UsageError, match="per_step_hoisted is the name of the hoisted per_step"):
        load(GOOD.replace("batched", "per_step_hoisted"), hoist=True)


@pytest.mark.parametrize("name", SMALLER)
def test_an_example_is_on_the_page_or_linked_from_it(name):
    page = (ROOT / "docs" / "pair.md").read_text()
    assert f"(pairs/{name}.py)" in page
    if name == "decoder":
        assert (ROOT / "docs" / "pairs" / f"{name}.py").read_text().partition("import torch")[2] in page
