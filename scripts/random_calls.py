"""Random calls of the command line: no traceback, no hang, nothing written where nothing belongs, a documented status.

Each call is drawn from the seed and its number: a command, flags that are valid and flags that are not, files of every
kind, an environment, streams that are closed, full or broken, and sometimes an interruption. It is run as a user would,
in a sandbox of its own, with the NumPy backend of tests/fourth as the only framework, so that it takes a second.

    python scripts/random_calls.py > reports/<folder>/calls.json          # 3,000 calls
    python scripts/random_calls.py --seed 1 --only 17                     # one of them again, with all it said
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
FOURTH = ROOT / "tests" / "fourth"
LIMIT_S = 180.0  # after which a call hangs; the longest take a tenth of it on an idle core
GRACE_S = 5.0  # in which processes that a call started end after it
END = 2000  # characters of what a call said last that are kept
STATUSES = (0, 1, 2, 130)
CRASHES = ("Traceback (most recent call last)", "Exception ignored", "Fatal Python error")
ABSENT = ("torch", "tensorflow", "keras", "jax", "flax")  # as where they are not installed: they take seconds to start
TINY = ("B=2,T=3,I=2,H=4,O=3", "B=1,T=1,I=1,H=1,O=1", "B=3,T=2,I=1,H=5,O=1,cell=rnn_relu")
ODD = (
    "", " ", "0", "-1", "1e99", "nan", "inf", "é", "🙂", "a b", "a\nb", "|", "*", "../../x", "--", "-", "$(touch x)",
    "x" * 300, "\udcff", "None", "[]", "=", "B=", "B=2,B=3", "B=0,T=1,I=1,H=1,O=1", "numpyy", ",", "all,", "NUMPY",
)  # fmt: skip
PLACES = (
    "out", "out", "out", "a b", "é ü", "deep/er/out", "file", "file/inside", "occupied", "records", "/proc/out",
    "/dev/full", "/dev/null", "locked/out", "locked", "", ".", "..", "x" * 300, "\udcff", "-dash", "~", "line\nbreak",
    "dangling", "runs/x",
)  # fmt: skip
FILES = (
    "valid.toml", "bom.toml", "broken.toml", "unknown.toml", "typed.toml", "latin.toml", "bytes.toml", "names.toml",
    "empty", "occupied", "nowhere.toml",
)  # fmt: skip
TENSORS = ("tensors", "broken.safetensors", "empty", "nowhere", "occupied", "file", "")
TEXTS: Mapping[str, bytes] = {
    "valid.toml": b'frameworks = ["numpy"]\nworkloads = ["B=2,T=3,I=2,H=4,O=3"]\nthreads = [1]\nprocesses = 1\n',
    "bom.toml": b'\xef\xbb\xbfframeworks = ["numpy"]\nworkloads = ["B=2,T=3,I=2,H=4,O=3"]\nprocesses = 1\n',
    "broken.toml": b'frameworks = ["numpy"\n',
    "unknown.toml": b"frameworkz = 3\n",
    "typed.toml": b'processes = "many"\nseed = -1\nworkloads = 7\n',
    "latin.toml": b'frameworks = ["numpy"] # \xe9\n',
    "bytes.toml": bytes(range(256)),
    "names.toml": b'frameworks = ["numpy"]\n[[workloads]]\nname = "../../escaped"\nB = 1\nT = 1\nI = 1\nH = 1\nO = 1\n',
    "empty": b"",
    "broken.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
    "file": b"a file of somebody's\n",
}
ENVIRONMENTS: Mapping[str, tuple[str | None, ...]] = {  # None: unset; {} is the sandbox
    "LC_ALL": ("C", "POSIX", "xx_XX.UTF-8", "C.UTF-8"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-8", "ascii:strict"),
    "PYTHONUTF8": ("0", "1"),
    "COLUMNS": ("0", "1", "-5", "abc", "12", "400"),
    "LINES": ("0", "abc"),
    "TERM": ("dumb", "", "nonsense"),
    "NO_COLOR": ("1",),
    "TMPDIR": ("{}/tmp/a b", "{}/tmp/é", "{}/nowhere", "{}/here/file", "/proc/self", "", "relative"),
    "HOME": (None, "{}/nowhere", "{}/here/file", "", "{}/home/a b"),
    "MPLBACKEND": ("nonsense", "qtagg", "", "module://x"),
    "MPLCONFIGDIR": ("/proc/self", "{}/here/file", "{}/nowhere"),
    "OMP_NUM_THREADS": ("0", "abc", "7"),
    "PYTHONHASHSEED": ("3",),
}
STREAMS = ("normal", "normal", "normal", "normal", "normal", "closed", "full", "broken")
REDIRECTED = {"closed": ("0<&-", "1>&-", "2>&-"), "full": ("0</dev/full", "1>/dev/full", "2>/dev/full")}


@dataclass(frozen=True)
class Call:
    """What is run. `environment`: variables that are set, or unset where None; `streams`: stdin, stdout and stderr."""

    arguments: tuple[str, ...]
    environment: dict[str, str | None] = field(default_factory=dict)
    streams: tuple[str, str, str] = ("normal", "normal", "normal")
    interrupted_s: float | None = None

    @property
    def command(self) -> str:
        return self.arguments[0] if self.arguments and self.arguments[0] in COMMANDS else "none"


@dataclass(frozen=True)
class Outcome:
    """What a call did. `status` is None where it hung; paths are those in its sandbox."""

    status: int | None
    said: str  # on stdout
    errors: str  # on stderr
    changed: tuple[str, ...]
    left_running: int
    seconds: float


def draw(seed: int, number: int) -> Call:
    """The call of a number: the same for the same seed."""
    choose = random.Random(f"{seed}/{number}")
    name = choose.choices(list(COMMANDS), [weight for weight, _ in COMMANDS.values()])[0]
    arguments = [name, *COMMANDS[name][1](choose)]
    if choose.random() < 0.08:
        arguments.insert(choose.randint(0, len(arguments)), choose.choice(ODD))
    environment = {
        variable: choose.choice(values) for variable, values in ENVIRONMENTS.items() if choose.random() < 0.12
    }
    streams = tuple(choose.choice(STREAMS) if choose.random() < 0.4 else "normal" for _ in range(3))
    interrupted = choose.uniform(0.3, 4.0) if choose.random() < 0.06 else None
    return Call(tuple(arguments), environment, (streams[0], streams[1], streams[2]), interrupted)


def _or_odd(choose: random.Random, *values: str) -> str:
    """One of the values, or seldom something that nobody expects there."""
    return choose.choice(ODD) if choose.random() < 0.12 else choose.choice(values)


def _some(choose: random.Random, flags: Mapping[str, tuple[str, ...]], most: int) -> list[str]:
    """Some of the flags, each with one of its values; of a flag without values it alone."""
    arguments: list[str] = []
    for flag in choose.sample(sorted(flags), choose.randint(0, min(most, len(flags)))):
        if not flags[flag]:
            arguments.append(flag)
            continue
        value = _or_odd(choose, *flags[flag])
        arguments += [f"{flag}={value}"] if choose.random() < 0.4 else [flag, value]
    return arguments


SELECTED: Mapping[str, tuple[str, ...]] = {
    "--device": ("cpu", "gpu", "cpu,gpu"),
    "--execution": ("eager", "xla", "eager,eager"),
    "--recurrence": ("unrolled", "given", "scan", "unrolled,given"),
    "--projection": ("in_loop", "batched", "none", "in_loop,batched", "per_step"),
    "--pass": ("forward", "train", "forward,train"),
    "--precision": ("fp32", "fp64", "bf16", "as_shipped", "tf32"),
    "--seed": ("1", "0", "4294967295"),
    "--timeout": ("60", "30"),
    "--unroll-limit": ("1", "-1", "0"),
    "--weights": TENSORS,
    "--inputs": TENSORS,
}


def _base(choose: random.Random) -> list[str]:
    """What keeps a call small."""
    workload = _or_odd(choose, *TINY)
    return ["--framework", _or_odd(choose, "numpy"), "--threads", _or_odd(choose, "1"), "--workload", workload]


def _run(choose: random.Random) -> list[str]:
    own = {"--sweep": ("none", *TINY), "--no-report": (), "--quick": (), "--rigorous": (), "--all": (), "--resume": ()}
    own["--memory"] = ("held", "default", "tcmalloc", "jemalloc")
    rest = ["--processes", _or_odd(choose, "1", "2"), "--rounds", _or_odd(choose, "1", "3", "5")]
    rest += ["--budget", choose.choice(("1", "2", "2s", "0.000001"))]
    study = [choose.choice(FILES)] if choose.random() < 0.25 else []
    out = ["--out", choose.choice(PLACES)] if choose.random() < 0.8 else []
    return [*study, *_base(choose), *rest, *out, *_some(choose, SELECTED | own, 3)]


def _verify(choose: random.Random) -> list[str]:
    own = {"--save-outputs": PLACES, "--bound": ("fp32", "fp64", "bf16")}
    return [*_base(choose), *_some(choose, SELECTED | own, 4)]


def _explain(choose: random.Random) -> list[str]:
    words = ["numpy", "eager", _or_odd(choose, "unrolled", "given", "scan"), _or_odd(choose, "in_loop", "batched")]
    words += [
        _or_odd(choose, *TINY),
        *([_or_odd(choose, "train", "fp64", "cpu", "gpu")] if choose.random() < 0.5 else []),
    ]
    choose.shuffle(words)
    return [*words, *_some(choose, {"--out": PLACES}, 1)]


def _train(choose: random.Random) -> list[str]:
    flags = {"--execution": ("eager",), "--seed": ("1", "7"), "--timeout": ("60",), "--resume": ()}
    small = ["--framework", "numpy", "--steps", _or_odd(choose, "1", "2"), "--processes", _or_odd(choose, "1")]
    return [*small, "--out", choose.choice(PLACES), *_some(choose, flags, 2)]


def _report(choose: random.Random) -> list[str]:
    folders = [
        choose.choice(("records", "records", "records", "packed", "cut", "occupied", "file", "nowhere", "", "a b"))
    ]
    if choose.random() < 0.25:
        folders.append(choose.choice(("packed", "records", "cut")))
    return [*folders, *(["--out", choose.choice(PLACES)] if choose.random() < 0.6 else [])]


def _selftest(choose: random.Random) -> list[str]:
    return ["--studies", _or_odd(choose, "100"), *_some(choose, {"--seed": ("1", "0")}, 1)]


def _nothing(choose: random.Random) -> list[str]:
    return _some(choose, {"--help": (), "--version": (), "--out": PLACES}, 1)


COMMANDS: Mapping[str, tuple[float, Callable[[random.Random], list[str]]]] = {  # how often each is drawn, and how
    "run": (30, _run),
    "verify": (14, _verify),
    "explain": (12, _explain),
    "report": (16, _report),
    "list": (8, _nothing),
    "train": (3, _train),
    "selftest": (0.4, _selftest),
    "doctor": (0.2, _nothing),
    "": (1, _nothing),
    "runn": (1, _nothing),
}


def sandbox(folder: Path, records: Path) -> Path:
    """A folder of a call's own: `here`, in which it runs, `home` and `tmp`, and in `here` the files it may be given."""
    here = folder / "here"
    for name in ("home/a b", "tmp/a b", "tmp/é", "here/occupied", "here/locked", "../absent"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in TEXTS.items():
        (here / name).write_bytes(content)
    (here / "occupied" / "notes.txt").write_text("somebody's\n")
    (here / "dangling").symlink_to("nowhere-else")
    if records.exists():
        for name in ("records", "packed", "cut"):
            shutil.copytree(records, here / name)
        _pack(here / "packed")
        _cut(here / "cut")
        shutil.copytree(records / "weights", here / "tensors")
    for name in ABSENT:
        text = f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n"
        (folder.parent / "absent" / f"{name}.py").write_text(text)
    (here / "locked").chmod(0o500)
    return folder


def _pack(folder: Path) -> None:
    subprocess.run(["gzip", str(folder / "records.jsonl")], check=True)


def _cut(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def environment(call: Call, place: Path) -> dict[str, str]:
    """The variables of a call in its sandbox."""
    variables: dict[str, str | None] = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": f"{ROOT}:{FOURTH}:{place.parent / 'absent'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    variables |= {name: value and value.replace("{}", str(place)) for name, value in call.environment.items()}
    return {name: value for name, value in variables.items() if value is not None}


def command_line(call: Call) -> list[str]:
    """What is executed: a shell that redirects the streams and becomes Python."""
    redirected = [REDIRECTED[kind][at] for at, kind in enumerate(call.streams) if kind in REDIRECTED]
    shell = ["/bin/sh", "-c", f'exec "$@" {" ".join(redirected)}', "sh"]
    return [*shell, sys.executable, "-m", "harness", *call.arguments]


def perform(call: Call, place: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Run a call in its sandbox and see what it did."""
    before, began = listing(place), time.monotonic()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        ends = [_broken() if kind == "broken" else None for kind in call.streams]
        handles = [
            end if end is not None else usual
            for end, usual in zip(ends, (subprocess.DEVNULL, said, errors), strict=True)
        ]
        process = subprocess.Popen(
            command_line(call), cwd=place / "here", env=environment(call, place), start_new_session=True,
            stdin=handles[0], stdout=handles[1], stderr=handles[2],
        )  # fmt: skip
        for end in filter(None, ends):
            os.close(end)
        status = _ended(process, call.interrupted_s, limit_s)
        seconds = time.monotonic() - began
        running = left_running(place)
        texts = [_text(file) for file in (said, errors)]
    return Outcome(status, *texts, changes(before, listing(place), allowed(call, place)), running, seconds)


def _broken() -> int:
    """The end of a pipe whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _ended(process: subprocess.Popen[bytes], interrupted_s: float | None, limit_s: float) -> int | None:
    """The exit status, as a shell would have it; None where it had to be killed."""
    try:
        if interrupted_s is not None:
            try:
                process.wait(interrupted_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None
    return 128 - status if status < 0 else status


def left_running(place: Path) -> int:
    """Processes that work in the sandbox after its call has ended; they are killed."""
    processes = [process for process in psutil.process_iter() if _within(process, place)]
    _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in alive:
        process.kill()
    return len(alive)


def _within(process: psutil.Process, place: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(place)
    except (psutil.Error, OSError):
        return False


def listing(place: Path) -> dict[str, tuple[int, int]]:
    """Every path in the sandbox, with its size and when it was changed; of a folder neither, for they follow."""
    entries: dict[str, tuple[int, int]] = {}
    for folder, folders, files in os.walk(place):
        for name in folders:
            entries[os.path.join(folder, name)] = (0, 0)
        for name in files:
            state = os.lstat(os.path.join(folder, name))
            entries[os.path.join(folder, name)] = (state.st_size, state.st_mtime_ns)
    return entries


def allowed(call: Call, place: Path) -> list[str]:
    """Where a call may write: what --out and --save-outputs name, and `runs`; `report` without --out, its folders."""
    named, arguments = ["runs"], list(call.arguments)
    for at, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--out", "--save-outputs"):
            named.append(value if equals else "".join(arguments[at + 1 : at + 2]))
    if call.command == "report" and not any(argument.startswith("--out") for argument in arguments):
        named += [argument for argument in arguments[1:] if not argument.startswith("-")]
    return [os.path.normpath(place / "here" / name) for name in named if name]


def changes(before: Mapping[str, Any], after: Mapping[str, Any], within: Iterable[str]) -> tuple[str, ...]:
    """Paths that came, went or changed, but for those in the folders `within` and the folders that lead there."""
    places = list(within)
    changed = [path for path in {*before, *after} if before.get(path) != after.get(path)]
    return tuple(
        sorted(
            path
            for path in changed
            if not any(path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/") for one in places)
        )
    )


def faults(call: Call, outcome: Outcome) -> list[str]:
    """What a call did that none may do, a sentence each."""
    faults: list[str] = []
    everything = f"{outcome.said}\n{outcome.errors}"
    if outcome.status is None:
        faults.append("it did not end")
    elif outcome.status not in STATUSES:
        faults.append(f"its exit status is {outcome.status}")
    if outcome.status == 130 and call.interrupted_s is None:
        faults.append("it says that it was interrupted, and was not")
    faults += [f"it said {crash!r}" for crash in CRASHES if crash in everything]
    sentences = [line for line in outcome.errors.splitlines() if line.startswith("error: ")]
    if call.streams[2] == "normal" and outcome.status == 2 and len(sentences) != 1:
        faults.append(f"it was refused in {len(sentences)} sentences")
    if outcome.status == 0 and sentences:
        faults.append("it said an error and ended with 0")
    faults += [f"it changed {path}" for path in outcome.changed]
    if outcome.left_running:
        faults.append(f"it left {outcome.left_running} processes behind")
    return faults


def shown(call: Call) -> str:
    """The call as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in call.environment.items() if value is not None]
    unset = [f"-u {name}" for name, value in call.environment.items() if value is None]
    streams = [
        f"{name} {kind}"
        for name, kind in zip(("stdin", "stdout", "stderr"), call.streams, strict=True)
        if kind != "normal"
    ]
    if call.interrupted_s is not None:
        streams.append(f"SIGINT after {call.interrupted_s:.2f} s")
    line = shlex.join(["python", "-m", "harness", *call.arguments])
    start = " ".join(["env", *unset, *variables, ""]) if unset or variables else ""
    return f"{start}{line}" + (f"  # {', '.join(streams)}" if streams else "")


def one(seed: int, number: int, records: Path, limit_s: float = LIMIT_S) -> tuple[Call, Outcome, list[str]]:
    """The call of a number, what it did, and its faults."""
    call = draw(seed, number)
    with tempfile.TemporaryDirectory(prefix="fusegap-calls-", ignore_cleanup_errors=True) as folder:
        place = sandbox(Path(folder) / "box", records)
        outcome = perform(call, place, limit_s)
        (place / "here" / "locked").chmod(0o700)
        wrong = [fault.replace(str(place), "<sandbox>") for fault in faults(call, outcome)]
    return call, outcome, wrong


def small_run(folder: Path) -> Path:
    """Records that calls are given: those of a small run."""
    place = sandbox(folder / "first" / "box", folder / "nowhere")
    base = ["--framework", "numpy", "--threads", "1", "--workload", TINY[0], "--processes", "2", "--rounds", "2"]
    base += ["--pass", "forward"]
    perform(Call(("run", *base, "--budget", "0", "--no-report", "--out", "run")), place)
    if not (place / "here" / "run" / "records.jsonl").exists():
        raise SystemExit("no small run can be made here, which calls are given")
    return place / "here" / "run"


def calls(
    seed: int, numbers: Iterable[int], parallel: int, report: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Draw and run calls; what they were, how they ended, and every fault with what it takes to see it again."""
    began = time.monotonic()
    numbers = list(numbers)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("command", "status", "environment", "streams")}
    reports: list[dict[str, Any]] = []
    took: list[float] = []
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fusegap-calls-") as folder, ThreadPoolExecutor(parallel) as pool:
        records = small_run(Path(folder))
        for number, (call, outcome, wrong) in zip(
            numbers, pool.map(lambda n: one(seed, n, records), numbers), strict=True
        ):
            _count(counts, call, outcome)
            took.append(outcome.seconds)
            spent[call.command] = round(spent.get(call.command, 0.0) + outcome.seconds, 1)
            if wrong:
                reports.append({"number": number, "faults": wrong, "call": shown(call), **_end(outcome)})
            report(len(took))
    return {
        "seed": seed, "calls": len(numbers), "seconds": round(time.monotonic() - began, 1),
        "slowest_s": round(max(took, default=0.0), 1), "seconds_by_command": dict(spent),
        "with_faults": len(reports),
        "counts": {name: dict(sorted(each.items())) for name, each in counts.items()}, "faults": reports,
    }  # fmt: skip


def _count(counts: Mapping[str, Counter[str]], call: Call, outcome: Outcome) -> None:
    counts["command"][call.command] += 1
    counts["status"][str(outcome.status)] += 1
    counts["environment"].update(call.environment.keys() or ["as usual"])
    counts["streams"].update(
        f"{name} {kind}" for name, kind in zip(("stdin", "stdout", "stderr"), call.streams, strict=True)
    )
    counts["streams"]["interrupted"] += call.interrupted_s is not None


def _end(outcome: Outcome) -> dict[str, Any]:
    return {"status": outcome.status, "said": outcome.said[-END:], "errors": outcome.errors[-END:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of one call, to see it again")
    options = parser.parse_args()
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="fusegap-calls-") as folder:
            call, outcome, wrong = one(options.seed, options.only, small_run(Path(folder)))
        json.dump({"call": shown(call), "faults": wrong, **asdict(outcome)}, sys.stdout, indent=1)
        print()
        return
    said = sys.stderr.isatty()
    numbers = range(options.first, options.first + options.calls)
    result = calls(
        options.seed,
        numbers,
        options.parallel,
        lambda done: print(f"\r{done}", end="", file=sys.stderr) if said else None,
    )
    json.dump(result, sys.stdout, indent=1)
    print()
    sys.exit(1 if result["with_faults"] else 0)


if __name__ == "__main__":
    main()
