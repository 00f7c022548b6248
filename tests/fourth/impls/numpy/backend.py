"""NumPy behind the contract. A file `mischief` in TMPDIR makes it misbehave.

Its processor time is made up, so that threads are proven whatever else the machine does while tests run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness.verify.output_check import form_of
from impls import reference
from impls.evidence import Evidence
from impls.interface import FAMILIES, Data, Execution, Facts, Weights, named

LARGEST = 64  # side of a product that rates and threads are asked of: no test is about how fast NumPy is


class Backend:
    def environment(self, settings):
        threads = str(settings.threads)
        return {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}

    def facts(self):
        if _mischief() == "missing":
            raise ModuleNotFoundError("No module named 'numpyx'", name="numpyx")
        if _mischief() == "broken":
            raise OSError("libnothing.so: cannot open shared object file")
        if _mischief() == "ends":
            print("first\nthese were\nits words", file=sys.stderr)
            sys.exit(3)
        without = {
            "scan": "NumPy has no symbolic loop",
            "layer": "NumPy has no layers",
            "library": "NumPy has no layers",
        }
        others = [form for form in FAMILIES if form not in ("none", "in_loop", "per_step", "batched", *without)]
        without |= dict.fromkeys(others, "NumPy is not asked for it here")
        eager = Execution(traced=False, without=without)
        devices = {"cpu": None, "gpu": None if _mischief() == "gpu" else "NumPy knows no GPU"}  # calls itself one
        return Facts({"numpy": np.__version__}, {"eager": eager}, devices)

    def open(self, settings):
        from impls.numpy import model

        self.model, self.compiled = model, 0
        if _mischief() != "idle":
            time.process_time_ns = lambda: settings.threads * time.perf_counter_ns()
        print("noise on stdout", file=sys.stdout, flush=True)
        return {}

    def prepare(self, program, w):
        arm = self.model.arm(program.arm.recurrence, program.arm.projection)
        act = self.model.ACTIVATIONS[program.cell]
        self.misbehave(program)
        if program.pass_ == "forward":
            return lambda x, target: [arm(w, act, x)]

        def by_reference(x, target):
            form = form_of(program.arm.name)
            data = Data(w, x, target)
            return list(reference.run(data, program.cell, program.pass_, form, loss=program.loss).values())

        return by_reference

    def trainer(self, program, w):
        state = reference.untrained(w)
        self.misbehave(program)

        def step(x, target):
            nonlocal state
            loss, *d = reference.run(Data(state.w, x, target), program.cell, "train", "projected").values()
            before, state = state, reference.adam(state, Weights(*d))
            if program.arm.projection == "in_loop":
                loss, state = spoiled(loss, before, state)
            return loss, *state.leaves

        return step

    def misbehave(self, program):
        mischief = _mischief()
        if program.arm.projection != "per_step":
            return
        if mischief == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if mischief == "kill":
            os.kill(os.getpid(), signal.SIGKILL)  # as for want of memory
        if mischief == "exit":
            os._exit(3)
        if mischief == "noise":
            print("x" * 1_000_000, file=sys.stderr, flush=True)
            os.write(1, b"\xff\x00" * 1_000_000)
        if mischief == "hang":
            child = subprocess.Popen(["sleep", "600"])
            Path(tempfile.gettempdir(), "child").write_text(str(child.pid))
            child.wait()
        if mischief == "raise":
            raise ValueError("this arm\nhas two lines of trouble")

    def put(self, data):
        return Data(Weights(*map(np.array, data.weights)), np.array(data.x), np.array(data.target))

    def wait(self, outputs):
        if _mischief() == "recompile":
            self.compiled += 1

    def get(self, program, outputs):
        return named([np.array(a) for a in outputs], program.pass_)

    def evidence(self, program, run, inputs):
        return Evidence(missing={"everything": "NumPy counts nothing"}), {}

    def peak_bytes(self, call):
        return None

    def compilations(self):
        return self.compiled

    def product(self, rows, inner, columns, execution=""):
        rows, inner, columns = (min(size, LARGEST) for size in (rows, inner, columns))
        a, b = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
        if _mischief() == "idle":
            return lambda: time.sleep(0.02)
        return lambda: (a @ b, None)[1]

    def scale(self, count):
        a = np.ones(min(count, LARGEST**2), np.float32)
        return lambda: (2 * a, None)[1]


def spoiled(loss, before, after):
    """A step's loss and what it came to, with a mistake of training in them, if one was planted."""
    mischief = _mischief()
    if mischief == "summed":
        return loss * 1000, after  # the sum where the mean is meant: Adam hides it from all but the loss
    if mischief == "fast":
        moved = zip(before.w, after.w, strict=True)
        return loss, after._replace(w=Weights(*(old + np.float32(1.01) * (new - old) for old, new in moved)))
    if mischief == "endless":
        return loss * np.float32("nan"), after
    return loss, after


def _mischief():
    """A worker gets only a few variables of its parent's environment; TMPDIR is one."""
    file = Path(os.environ.get("TMPDIR", "/nowhere")) / "mischief"
    return file.read_text() if file.exists() else ""
