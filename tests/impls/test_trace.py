"""What a GPU did, from a profiler's rows made up here; no GPU is needed, and no number of one is claimed."""

from types import SimpleNamespace

import pytest

from impls import trace
from impls.evidence import Evidence

STREAM = ("/device:GPU:0", "Stream #14(Compute)")
ROWS = [
    (*STREAM, "sm80_xmma_gemm_f32f32", 3000.0),
    (*STREAM, "sm80_xmma_gemm_f32f32", 2000.0),
    (*STREAM, "loop_add_fusion", 500.0),
    ("/device:GPU:0", "XLA Ops", "dot.3", 9999.0),  # the same again, as XLA calls it
    ("/host:CPU", "python", "cuGraphLaunch", 70.0),
    ("/host:CPU", "python", "sm80_xmma_gemm_f32f32", 80.0),
]


def test_kernels_are_those_of_the_streams_and_their_time_is_the_devices():
    found = Evidence()
    trace.add(found, ROWS)
    assert found.device_kernels == {"sm80_xmma_gemm_f32f32": 2, "loop_add_fusion": 1}
    assert found.device_ns == 5500
    assert found.graph_launches == 1
    assert not found.missing


def test_xlas_profiler_cannot_tell_how_many_graphs_a_call_launches():
    found = Evidence()
    trace.profile(found, lambda: ROWS)
    assert found.device_ns == 5500
    assert found.graph_launches is None
    assert found.missing == {"graph_launches": trace.NO_GRAPHS}


def test_a_profiler_that_sees_nothing_or_fails_is_a_reason_and_no_number():
    def fails():
        raise OSError("libcupti.so: not found\nmore")

    for rows, why in ((lambda: ROWS[-2:], trace.NOTHING_RAN), (fails, "OSError: libcupti.so: not found")):
        found = Evidence()
        trace.profile(found, rows)
        assert (found.device_ns, found.graph_launches, found.device_kernels) == (None, None, {})
        assert found.missing == {"device_kernels": why}


def test_torchs_events_are_rows():
    def event(name, device, took, annotation=False):
        return SimpleNamespace(
            name=lambda: name,
            device_type=lambda: device,
            duration_ns=lambda: took,
            is_user_annotation=lambda: annotation,
        )

    events = [
        event("triton_poi_fused_tanh_0", "cuda", 10),
        event("cudaGraphLaunch", "cpu", 99),
        event("[memory]", "cuda", 0),
        event("a step", "cuda", 1000, annotation=True),
    ]
    found = Evidence()
    trace.add(found, trace.of_kineto(events, "cuda"))
    assert (found.device_kernels, found.device_ns, found.graph_launches) == ({"triton_poi_fused_tanh_0": 1}, 10, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ampere_sgemm_128x64_nn", "gemm"),
        ("void gemv2T_kernel_val<int, int, float>", "gemm"),
        ("nvjet_sm90_sss_64x64", "gemm"),
        ("sm80_xmma_gemm_batched_f32", "batched gemm"),
        ("void cudnn::rnn::persistRNN", "cuDNN"),
        ("elemWiseRNNcell", "cuDNN"),
        ("triton_poi_fused_add_tanh_0", "fused"),
        ("loop_add_fusion", "fused"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("void at::native::vectorized_elementwise_kernel<4>", "other"),
    ],
)
def test_kernels_are_sorted_by_their_names(name, kind):
    assert trace.kind(name) == kind


def test_kinds_are_counted():
    assert trace.kinds({"sgemm": 2, "hgemm": 1, "Memset (Device)": 4}) == {"copy": 4, "gemm": 3}
