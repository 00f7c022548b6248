"""Which library multiplied: what MKL, oneDNN and XLA's programs say, and that silence is not taken for an answer."""

import ctypes
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from impls import hlo, libraries
from impls.evidence import Evidence, Product
from impls.interface import Settings
from impls.tf import products
from tests.conftest import HERE

ROOT = Path(__file__).parents[2]
MKL_LINE = "MKL_VERBOSE SGEMM(N,N,1000,50,100,0x7ffd1c9e,0x561890d6,1000) 288.86us CNR:OFF Dyn:1 FastMM:1 TID:0  NThr:2"
ONEDNN_LINE = "onednn_verbose,v1,primitive,exec,cpu,gemm_api,,undef,src_f32::blocked:ab:f0 wei_f32,,,48x100:100x7,0.3"
OTHERS = """\
MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture
onednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:blk,undef,src:f32::blocked:abdec::f0,,,1x1x16x4x16,0.26
SGEMM is a word
"""


def test_a_line_is_told_from_headers_and_from_what_does_not_multiply():
    output = f"{OTHERS}{MKL_LINE}\nnoise\n{ONEDNN_LINE}\n{MKL_LINE}\n"
    assert [library for library, _ in libraries.lines_of(output)] == ["MKL", "oneDNN", "MKL"]
    assert libraries.lines_of(OTHERS) == []


def test_the_first_line_is_the_proof_without_times_and_addresses():
    evidence = Evidence([Product(3, 1, 50, 100, 1000)])
    libraries.add(evidence, libraries.lines_of(f"{MKL_LINE}\n{ONEDNN_LINE}\n{MKL_LINE}"))
    assert evidence.libraries == {"MKL": 2, "oneDNN": 1}
    assert evidence.library_proof["MKL"] == "SGEMM(N,N,1000,50,100,…,1000)"
    assert evidence.library_proof["oneDNN"].startswith("gemm_api,,undef,src_f32")
    assert evidence.library_proof["oneDNN"].endswith("48x100:100x7")


def test_products_of_which_nothing_was_printed_are_missing():
    evidence = Evidence([Product(3, 1, 50, 100, 1000)])
    libraries.look(evidence, lambda: libraries.add(evidence, libraries.lines_of(MKL_LINE)))
    assert evidence.missing == {"libraries": "nothing shows what multiplied in 2 of 3 products"}
    libraries.on_gpu(evidence)
    assert (evidence.libraries, evidence.missing["libraries"]) == ({}, libraries.ON_GPU)


def test_a_failure_to_look_loses_nothing_else():
    evidence = Evidence([Product(3, 1, 50, 100, 1000)])

    def fail():
        raise AssertionError("Failed to set MKL into verbose mode.\nPlease consider")

    libraries.look(evidence, fail)
    assert evidence.missing == {"libraries": "AssertionError: Failed to set MKL into verbose mode."}


def test_a_framework_that_says_nothing_of_libraries_is_said_to():
    for evidence in (Evidence([Product(1, 1, 2, 3, 4)]), Evidence(missing={"products": "of a kind not known"})):
        libraries.state(evidence)
        assert evidence.missing["libraries"] == libraries.NOT_FOUND
    nothing_counted = Evidence(missing={"everything": "NumPy counts nothing"})
    libraries.state(nothing_counted)
    assert nothing_counted.missing == {"everything": "NumPy counts nothing"}  # which says it
    nothing_to_multiply = Evidence()
    libraries.state(nothing_to_multiply)
    assert nothing_to_multiply.missing == {}


def test_what_c_prints_is_captured_and_the_streams_are_given_back(capfd):
    libc = ctypes.CDLL(None)
    output = libraries.printed(lambda: (libc.puts(b"from C"), os.write(2, b"and an error\n")))
    assert sorted(output.splitlines()) == ["and an error", "from C"]
    print("after", flush=True)
    assert capfd.readouterr().out == "after\n"


PROGRAM = """\
HloModule m

%fused_computation (p0: f32[50,100], p1: f32[100,8]) -> f32[50,8] {{
  %p0 = f32[50,100]{{1,0}} parameter(0)
  %p1 = f32[100,8]{{1,0}} parameter(1)
  ROOT %dot.1 = f32[50,8]{{1,0}} dot(%p0, %p1), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

ENTRY %main (a: f32[50,100], b: f32[100,8]) -> {result} {{
  %a = f32[50,100]{{1,0}} parameter(0)
  %b = f32[100,8]{{1,0}} parameter(1)
  ROOT %r = {result} {instruction}
}}
"""
DOT = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
YNN = 'backend_config={"fusion_config":{"kind":"__ynn_fusion"}}'


@pytest.mark.parametrize(
    ("result", "instruction", "library"),
    [
        ("f32[50,1]{1,0}", DOT, "XLA"),
        ("f32[50]{0}", DOT, "XLA"),
        ("f32[50,8]{1,0}", f"fusion(%a, %b), kind=kCustom, calls=%fused_computation, {YNN}", "YNNPACK"),
        ("f32[50,8]{1,0}", "fusion(%a, %b), kind=kOutput, calls=%fused_computation", "XLA"),
        ("f32[50,8]{1,0}", 'custom-call(%a, %b), custom_call_target="__onednn$matmul"', "oneDNN"),
    ],
)
def test_xla_s_program_says_what_multiplies(result, instruction, library):
    found = hlo.evidence(PROGRAM.format(result=result, instruction=instruction))
    assert found.libraries == {library: 1}
    assert found.library_proof[library].startswith(f"r = {result} {instruction.partition('(')[0]}(%a, %b)")


def test_a_dot_by_itself_is_eigen_s_only_where_ynnpack_is_taken_out(monkeypatch):
    program = PROGRAM.format(result="f32[50,8]{1,0}", instruction=DOT)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert hlo.evidence(program).libraries == {}
    monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 {hlo.WITHOUT_YNNPACK}")
    assert hlo.evidence(program).libraries == {"Eigen": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HERE if name != "torch"])
def test_the_kernels_that_xla_generates_prove_which_dots_it_computes_itself(name, inside):
    assert inside(name, "kernels") == ["True", "False", "True", "True", "True", "True", "True", "False"]


class Silent(products.VerboseProcess):
    """A process in which oneDNN prints of nothing, or of the probe alone."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def _ask(self, request):
        return self.output if request == products.PROBE else ""


def test_silence_means_eigen_only_where_onednn_is_seen_to_print(monkeypatch):
    for name in products.PLAIN:
        monkeypatch.delenv(name, raising=False)
    asked = ("MatMul", [(2, 3), (3, 1)], (False, False), "float32")
    assert Silent("").library(*asked) is None
    assert Silent(ONEDNN_LINE).library(*asked) == ("Eigen", "no line of oneDNN for MatMul [2×3] · [3×1]")
    assert Silent(ONEDNN_LINE).library("OddMatMul", *asked[1:]) is None


def test_a_process_that_ends_is_a_reason(monkeypatch):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    monkeypatch.setattr(products, "_start", lambda variables: subprocess.Popen(command, **pipes))
    with pytest.raises(RuntimeError, match="ended with status 3"):
        products.VerboseProcess().library("MatMul", [(2, 3), (3, 1)], (False, False), "float32")


PROGRAMS = """
import json
import numpy as np
from impls.interface import Arm, Data, Program, Settings, Weights
from impls.{framework}.backend import Backend
backend = Backend()
backend.open(Settings("cpu", 1, "fp32"))
found = {{}}
for sizes in ((2, 3, 4, 8, 5), (8, 3, 16, 64, 48)):
    b, t, i, h, o = sizes
    arrays = [np.ones(shape, np.float32) for shape in ((i, h), (h, h), (h,), (h, o), (o,), (t, b, i), (t, b, o))]
    data = backend.put(Data(Weights(*arrays[:5]), *arrays[5:]))
    for execution in {executions}:
        loop = "scan" if execution == "v1" else "unrolled"
        program = Program(Arm(loop, "in_loop"), "rnn_tanh", "forward", execution)
        run = backend.prepare(program, data.weights)
        backend.wait(run(data.x, data.target))
        evidence, _ = backend.evidence(program, run, (data.x, data.target))
        known = sum(evidence.libraries.values()) == sum(product.times for product in evidence.products)
        found[f"{{execution}} {{h}}"] = [sorted(evidence.libraries), known, bool(all(evidence.library_proof.values()))]
print(json.dumps(found))
"""
EXECUTIONS = {
    "torch": {"eager": "MKL"},
    "tf": {"eager": "oneDNN", "graph": "oneDNN", "xla": None, "v1": "oneDNN"},
    "jax": {"eager": "YNNPACK", "xla": "YNNPACK"},
}


PLAIN = {"tf": {"eager": "Eigen", "graph": "Eigen", "xla": "Eigen"}, "jax": {"eager": "Eigen", "xla": "Eigen"}}


def libraries_found(framework, executions, library):
    """What a worker's programs are seen to multiply with, in the environment that its backend asks for."""
    backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    variables = backend.environment(Settings("cpu", 1, "fp32", library=library)) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", PROGRAMS.format(framework=framework, executions=list(executions))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("library", ["as_shipped", "plain"])
@pytest.mark.parametrize("name", EXECUTIONS)
def test_each_execution_s_library_is_found_in_what_it_runs_and_plain_takes_it_out(name, library):
    executions = EXECUTIONS[name] if library == "as_shipped" else PLAIN.get(name, EXECUTIONS[name])
    expected = {
        f"{execution} {h}": [[shown] if shown else [], shown is not None, True]
        for h in (8, 64)
        for execution, shown in executions.items()
    }
    assert libraries_found(name, executions, library) == expected
