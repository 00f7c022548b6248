"""Run random calls of the command line, and report tracebacks, hangs, stray writes and undocumented exit statuses.

Each call is drawn from the seed and its number: a command, valid and invalid flags, files of all kinds, an environment,
streams that are closed, full or broken, and sometimes an interruption. It runs as a user would run it, in a sandbox of
its own. The NumPy backend of tests/fourth is the only framework, so that a call takes about a second.

    python scripts/random_calls.py > reports/<folder>/calls.json          # 3,000 calls
    python scripts/random_calls.py --seed 1 --only 17                     # one of them again, with its whole output
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
LIMIT_S = 180.0  # a call that takes longer hangs; the longest take a tenth of this on an idle core
GRACE_S = 5.0  # time for a call's processes to end after the call
END = 2000  # number of last characters of a call's output that are reported
STATUSES = (0, 1, 2, 130)
CRASHES = ("Traceback (most recent call last)", "Exception ignored", "Fatal Python error")
ABSENT = ("torch", "tensorflow", "keras", "jax", "flax")  # hidden, because they take seconds to import
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
    """A call of the command line.

    `environment` holds variables to set, or to unset where None; `streams` are stdin, stdout and stderr.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str | None] = field(default_factory=dict)
    streams: tuple[str, str, str] = ("normal", "normal", "normal")
    interrupted_s: float | None = None

    @property
    def command(self) -> str:
        return self.arguments[0] if self.arguments and self.arguments[0] in COMMANDS else "none"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call. `status` is None where it hung; `changed` holds paths in its sandbox."""

    status: int | None
    said: str  # on stdout
    errors: str  # on stderr
    changed: tuple[str, ...]
    left_running: int
    seconds: float


def draw_call(seed: int, number: int) -> Call:
    """Draw a call; the same seed and number give the same call."""
    generator = random.Random(f"{seed}/{number}")
    name = generator.choices(list(COMMANDS), [weight for weight, _ in COMMANDS.values()])[0]
    arguments = [name, *COMMANDS[name][1](generator)]
    if generator.random() < 0.08:
        arguments.insert(generator.randint(0, len(arguments)), generator.choice(ODD))
    environment = {
        variable: generator.choice(values) for variable, values in ENVIRONMENTS.items() if generator.random() < 0.12
    }
    streams = tuple(generator.choice(STREAMS) if generator.random() < 0.4 else "normal" for _ in range(3))
    interrupted_s = generator.uniform(0.3, 4.0) if generator.random() < 0.06 else None
    return Call(tuple(arguments), environment, (streams[0], streams[1], streams[2]), interrupted_s)


def _draw_value_or_odd(generator: random.Random, *values: str) -> str:
    """Draw one of the values, or with a probability of 12% an odd one that is not expected there."""
    return generator.choice(ODD) if generator.random() < 0.12 else generator.choice(values)


def _draw_flags(generator: random.Random, flags: Mapping[str, tuple[str, ...]], maximum: int) -> list[str]:
    """Draw up to `maximum` of the flags, each with one of its values; a flag without values stands alone."""
    arguments: list[str] = []
    for flag in generator.sample(sorted(flags), generator.randint(0, min(maximum, len(flags)))):
        if not flags[flag]:
            arguments.append(flag)
            continue
        value = _draw_value_or_odd(generator, *flags[flag])
        arguments += [f"{flag}={value}"] if generator.random() < 0.4 else [flag, value]
    return arguments


SELECTED: Mapping[str, tuple[str, ...]] = {
    "--device": ("cpu", "gpu", "cpu,gpu"),
    "--execution": ("eager", "xla", "eager,eager"),
    "--recurrence": ("unrolled", "given", "scan", "unrolled,given"),
    "--projection": ("in_loop", "batched", "none", "in_loop,batched", "per_step", "chunked_2"),
    "--chunks": ("1", "1,2,T", "T", "9999"),
    "--pass": ("forward", "train", "forward,train"),
    "--precision": ("fp32", "fp64", "bf16", "as_shipped", "tf32"),
    "--seed": ("1", "0", "4294967295"),
    "--timeout": ("60", "30"),
    "--unroll-limit": ("1", "-1", "0"),
    "--weights": TENSORS,
    "--inputs": TENSORS,
}


def _base_arguments(generator: random.Random) -> list[str]:
    """Return options that keep a call small."""
    workload = _draw_value_or_odd(generator, *TINY)
    return [
        "--framework",
        _draw_value_or_odd(generator, "numpy"),
        "--threads",
        _draw_value_or_odd(generator, "1"),
        "--workload",
        workload,
    ]


def _run_arguments(generator: random.Random) -> list[str]:
    options = {
        "--sweep": ("none", *TINY),
        "--no-report": (),
        "--no-html": (),
        "--quick": (),
        "--rigorous": (),
        "--all": (),
        "--resume": (),
    }
    options["--memory"] = ("held", "default", "tcmalloc", "jemalloc")
    limits = [
        "--processes",
        _draw_value_or_odd(generator, "1", "2"),
        "--rounds",
        _draw_value_or_odd(generator, "1", "3", "5"),
    ]
    limits += ["--budget", generator.choice(("1", "2", "2s", "0.000001"))]
    study = [generator.choice(FILES)] if generator.random() < 0.25 else []
    out = ["--out", generator.choice(PLACES)] if generator.random() < 0.8 else []
    return [*study, *_base_arguments(generator), *limits, *out, *_draw_flags(generator, SELECTED | options, 3)]


def _verify_arguments(generator: random.Random) -> list[str]:
    options = {"--save-outputs": PLACES, "--bound": ("fp32", "fp64", "bf16")}
    return [*_base_arguments(generator), *_draw_flags(generator, SELECTED | options, 4)]


def _explain_arguments(generator: random.Random) -> list[str]:
    words = [
        "numpy",
        "eager",
        _draw_value_or_odd(generator, "unrolled", "given", "scan"),
        _draw_value_or_odd(generator, "in_loop", "batched"),
    ]
    words += [
        _draw_value_or_odd(generator, *TINY),
        *([_draw_value_or_odd(generator, "train", "fp64", "cpu", "gpu")] if generator.random() < 0.5 else []),
    ]
    generator.shuffle(words)
    return [*words, *_draw_flags(generator, {"--out": PLACES}, 1)]


def _train_arguments(generator: random.Random) -> list[str]:
    flags = {"--execution": ("eager",), "--seed": ("1", "7"), "--timeout": ("60",), "--resume": ()}
    options = [
        "--framework",
        "numpy",
        "--steps",
        _draw_value_or_odd(generator, "1", "2"),
        "--processes",
        _draw_value_or_odd(generator, "1"),
    ]
    return [*options, "--out", generator.choice(PLACES), *_draw_flags(generator, flags, 2)]


def _report_arguments(generator: random.Random) -> list[str]:
    folders = [
        generator.choice(("records", "records", "records", "packed", "cut", "occupied", "file", "nowhere", "", "a b"))
    ]
    if generator.random() < 0.25:
        folders.append(generator.choice(("packed", "records", "cut")))
    return [*folders, *(["--out", generator.choice(PLACES)] if generator.random() < 0.6 else [])]


def _selftest_arguments(generator: random.Random) -> list[str]:
    return ["--studies", _draw_value_or_odd(generator, "100"), *_draw_flags(generator, {"--seed": ("1", "0")}, 1)]


def _general_arguments(generator: random.Random) -> list[str]:
    return _draw_flags(generator, {"--help": (), "--version": (), "--out": PLACES}, 1)


COMMANDS: Mapping[str, tuple[float, Callable[[random.Random], list[str]]]] = {  # how often each is drawn, and how
    "run": (30, _run_arguments),
    "verify": (14, _verify_arguments),
    "explain": (12, _explain_arguments),
    "report": (16, _report_arguments),
    "list": (8, _general_arguments),
    "train": (3, _train_arguments),
    "selftest": (0.4, _selftest_arguments),
    "doctor": (0.2, _general_arguments),
    "": (1, _general_arguments),
    "runn": (1, _general_arguments),
}


def make_sandbox(folder: Path, records: Path) -> Path:
    """Fill and return a call's sandbox: `home`, `tmp`, and `here`, where it runs and finds the files of its options."""
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
        _truncate(here / "cut")
        shutil.copytree(records / "weights", here / "tensors")
    for name in ABSENT:
        text = f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n"
        (folder.parent / "absent" / f"{name}.py").write_text(text)
    (here / "locked").chmod(0o500)
    return folder


def _pack(folder: Path) -> None:
    subprocess.run(["gzip", str(folder / "records.jsonl")], check=True)


def _truncate(folder: Path) -> None:
    path = folder / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])


def call_environment(call: Call, box: Path) -> dict[str, str]:
    """Return the environment variables of a call in its sandbox."""
    variables: dict[str, str | None] = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(box / "home"),
        "TMPDIR": str(box / "tmp"),
        "PYTHONPATH": f"{ROOT}:{FOURTH}:{box.parent / 'absent'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    variables |= {name: value and value.replace("{}", str(box)) for name, value in call.environment.items()}
    return {name: value for name, value in variables.items() if value is not None}


def command_line(call: Call) -> list[str]:
    """Return the command to execute: a shell that redirects the streams and then executes Python."""
    redirected = [REDIRECTED[kind][index] for index, kind in enumerate(call.streams) if kind in REDIRECTED]
    shell = ["/bin/sh", "-c", f'exec "$@" {" ".join(redirected)}', "sh"]
    return [*shell, sys.executable, "-m", "harness", *call.arguments]


def perform(call: Call, box: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Run a call in its sandbox, and return its outcome."""
    entries, start_s = list_files(box), time.monotonic()
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        ends = [_broken_pipe() if kind == "broken" else None for kind in call.streams]
        handles = [
            end if end is not None else default
            for end, default in zip(ends, (subprocess.DEVNULL, stdout, stderr), strict=True)
        ]
        process = subprocess.Popen(
            command_line(call), cwd=box / "here", env=call_environment(call, box), start_new_session=True,
            stdin=handles[0], stdout=handles[1], stderr=handles[2],
        )  # fmt: skip
        for end in filter(None, ends):
            os.close(end)
        status = _wait_for_exit(process, call.interrupted_s, limit_s)
        seconds = time.monotonic() - start_s
        running = kill_survivors(box)
        texts = [_read_text(file) for file in (stdout, stderr)]
    return Outcome(status, *texts, changed_paths(entries, list_files(box), writable_paths(call, box)), running, seconds)


def _broken_pipe() -> int:
    """Return the writing end of a pipe whose reading end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _read_text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "replace"))


def _wait_for_exit(process: subprocess.Popen[bytes], interrupted_s: float | None, limit_s: float) -> int | None:
    """Wait for a process; return the exit status as a shell gives it, or None where the process had to be killed."""
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


def kill_survivors(box: Path) -> int:
    """Kill processes that still work in the sandbox after its call has ended, and return their number."""
    processes = [process for process in psutil.process_iter() if _works_in(process, box)]
    _, survivors = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in survivors:
        process.kill()
    return len(survivors)


def _works_in(process: psutil.Process, box: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(box)
    except (psutil.Error, OSError):
        return False


def list_files(box: Path) -> dict[str, tuple[int, int]]:
    """Return all paths in the sandbox, with size in bytes and modification time in ns.

    Both are 0 for a folder, because they follow from its files.
    """
    entries: dict[str, tuple[int, int]] = {}
    for folder, folders, files in os.walk(box):
        for name in folders:
            entries[os.path.join(folder, name)] = (0, 0)
        for name in files:
            state = os.lstat(os.path.join(folder, name))
            entries[os.path.join(folder, name)] = (state.st_size, state.st_mtime_ns)
    return entries


def writable_paths(call: Call, box: Path) -> list[str]:
    """Return the paths where a call may write.

    These are `runs` and what --out and --save-outputs name. `report` without --out may also write into its folders.
    """
    names, arguments = ["runs"], list(call.arguments)
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--out", "--save-outputs"):
            names.append(value if equals else "".join(arguments[index + 1 : index + 2]))
    if call.command == "report" and not any(argument.startswith("--out") for argument in arguments):
        names += [argument for argument in arguments[1:] if not argument.startswith("-")]
    return [os.path.normpath(box / "here" / name) for name in names if name]


def changed_paths(before: Mapping[str, Any], after: Mapping[str, Any], exempt: Iterable[str]) -> tuple[str, ...]:
    """Return the paths that were added, removed or changed, sorted.

    The paths `exempt`, all paths inside them, and the folders that contain them are left out.
    """
    folders = list(exempt)
    paths = [path for path in {*before, *after} if before.get(path) != after.get(path)]
    return tuple(
        sorted(
            path
            for path in paths
            if not any(
                path == folder or path.startswith(f"{folder}/") or folder.startswith(f"{path}/") for folder in folders
            )
        )
    )


def find_faults(call: Call, outcome: Outcome) -> list[str]:
    """Return what a call did that no call may do, a sentence for each."""
    messages: list[str] = []
    output = f"{outcome.said}\n{outcome.errors}"
    if outcome.status is None:
        messages.append("it did not end")
    elif outcome.status not in STATUSES:
        messages.append(f"its exit status is {outcome.status}")
    if outcome.status == 130 and call.interrupted_s is None:
        messages.append("it says that it was interrupted, and was not")
    messages += [f"it said {crash!r}" for crash in CRASHES if crash in output]
    sentences = [line for line in outcome.errors.splitlines() if line.startswith("error: ")]
    if call.streams[2] == "normal" and outcome.status == 2 and len(sentences) != 1:
        messages.append(f"it was refused in {len(sentences)} sentences")
    if outcome.status == 0 and sentences:
        messages.append("it said an error and ended with 0")
    messages += [f"it changed {path}" for path in outcome.changed]
    if outcome.left_running:
        messages.append(f"it left {outcome.left_running} processes behind")
    return messages


def format_call(call: Call) -> str:
    """Return the call as one would type it."""
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


def run_call(seed: int, number: int, records: Path, limit_s: float = LIMIT_S) -> tuple[Call, Outcome, list[str]]:
    """Draw and run the call of a number; return the call, its outcome and its faults."""
    call = draw_call(seed, number)
    with tempfile.TemporaryDirectory(prefix="fusegap-calls-", ignore_cleanup_errors=True) as folder:
        box = make_sandbox(Path(folder) / "box", records)
        outcome = perform(call, box, limit_s)
        (box / "here" / "locked").chmod(0o700)
        messages = [fault.replace(str(box), "<sandbox>") for fault in find_faults(call, outcome)]
    return call, outcome, messages


def make_small_run(folder: Path) -> Path:
    """Make a small run and return its folder, whose records are given to calls.

    Raises SystemExit where the run leaves no records.
    """
    box = make_sandbox(folder / "first" / "box", folder / "nowhere")
    base = ["--framework", "numpy", "--threads", "1", "--workload", TINY[0], "--processes", "2", "--rounds", "2"]
    base += ["--pass", "forward"]
    perform(Call(("run", *base, "--budget", "0", "--no-report", "--out", "run")), box)
    if not (box / "here" / "run" / "records.jsonl").exists():
        raise SystemExit("no small run can be made here, which calls are given")
    return box / "here" / "run"


def run_calls(
    seed: int, numbers: Iterable[int], parallel: int, report: Callable[[int], None] = lambda count: None
) -> dict[str, Any]:
    """Draw and run calls; return counts of calls and outcomes, and all faults with the calls that reproduce them.

    `report` is called with the number of finished calls.
    """
    start_s = time.monotonic()
    numbers = list(numbers)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("command", "status", "environment", "streams")}
    reports: list[dict[str, Any]] = []
    durations_s: list[float] = []
    seconds_by_command: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fusegap-calls-") as folder, ThreadPoolExecutor(parallel) as pool:
        records = make_small_run(Path(folder))
        for number, (call, outcome, messages) in zip(
            numbers, pool.map(lambda n: run_call(seed, n, records), numbers), strict=True
        ):
            _count_call(counts, call, outcome)
            durations_s.append(outcome.seconds)
            seconds_by_command[call.command] = round(seconds_by_command.get(call.command, 0.0) + outcome.seconds, 1)
            if messages:
                reports.append(
                    {"number": number, "faults": messages, "call": format_call(call), **_outcome_end(outcome)}
                )
            report(len(durations_s))
    return {
        "seed": seed, "calls": len(numbers), "seconds": round(time.monotonic() - start_s, 1),
        "slowest_s": round(max(durations_s, default=0.0), 1), "seconds_by_command": dict(seconds_by_command),
        "with_faults": len(reports),
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()}, "faults": reports,
    }  # fmt: skip


def _count_call(counts: Mapping[str, Counter[str]], call: Call, outcome: Outcome) -> None:
    counts["command"][call.command] += 1
    counts["status"][str(outcome.status)] += 1
    counts["environment"].update(call.environment.keys() or ["as usual"])
    counts["streams"].update(
        f"{name} {kind}" for name, kind in zip(("stdin", "stdout", "stderr"), call.streams, strict=True)
    )
    counts["streams"]["interrupted"] += call.interrupted_s is not None


def _outcome_end(outcome: Outcome) -> dict[str, Any]:
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
            call, outcome, messages = run_call(options.seed, options.only, make_small_run(Path(folder)))
        json.dump({"call": format_call(call), "faults": messages, **asdict(outcome)}, sys.stdout, indent=1)
        print()
        return
    is_terminal = sys.stderr.isatty()
    numbers = range(options.first, options.first + options.calls)
    result = run_calls(
        options.seed,
        numbers,
        options.parallel,
        lambda count: print(f"\r{count}", end="", file=sys.stderr) if is_terminal else None,
    )
    json.dump(result, sys.stdout, indent=1)
    print()
    sys.exit(1 if result["with_faults"] else 0)


if __name__ == "__main__":
    main()
