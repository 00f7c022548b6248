"""What is counted in HLO, on a small program written out here; and what is made of counts."""

from dataclasses import replace

import pytest

from impls import hlo
from impls.evidence import Evidence, Product, flops, issued, moved_bytes
from tests.conftest import HERE

HLO = """\
HloModule jit_forward, is_scheduled=true, entry_computation_layout={(f32[5,3,2]{2,1,0})->f32[5,3,4]{2,1,0}}

%fused_computation (param_0: f32[3,7], param_1: f32[7,4]) -> f32[3,4] {
  %param_0 = f32[3,7]{1,0} parameter(0)
  %param_1 = f32[7,4]{1,0} parameter(1)
  ROOT %dot.3 = f32[3,4]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body.1 (arg: (s32[], f32[3,7], f32[7,7], f32[7,4])) -> (s32[], f32[3,7], f32[7,7], f32[7,4]) {
  %arg = (s32[], f32[3,7]{1,0}, f32[7,7]{1,0}, f32[7,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %h = f32[3,7]{1,0} get-tuple-element(%arg), index=1
  %w = f32[7,7]{1,0} get-tuple-element(%arg), index=2
  %v = f32[7,4]{1,0} get-tuple-element(%arg), index=3
  %dot.1 = f32[3,7]{1,0} dot(%h, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="a"}
  %fusion.1 = f32[3,4]{1,0} fusion(%dot.1, %v), kind=kOutput, calls=%fused_computation
  ROOT %out = (s32[], f32[3,7]{1,0}, f32[7,7]{1,0}, f32[7,4]{1,0}) tuple(%i, %dot.1, %w, %v)
}

%cond.1 (arg.1: (s32[], f32[3,7], f32[7,7], f32[7,4])) -> pred[] {
  %arg.1 = (s32[], f32[3,7]{1,0}, f32[7,7]{1,0}, f32[7,4]{1,0}) parameter(0)
  ROOT %lt = pred[] constant(false)
}

ENTRY %main.9 (p0: (s32[], f32[3,7], f32[7,7], f32[7,4]), p1: f32[5,3,7], p2: f32[5,7,4]) -> f32[5,3,4] {
  %p0 = (s32[], f32[3,7]{1,0}, f32[7,7]{1,0}, f32[7,4]{1,0}) parameter(0)
  %p1 = f32[5,3,7]{2,1,0} parameter(1)
  %p2 = f32[5,7,4]{2,1,0} parameter(2)
  %while.1 = (s32[], f32[3,7]{1,0}, f32[7,7]{1,0}, f32[7,4]{1,0}) while(%p0), condition=%cond.1, body=%body.1, KNOWN
  ROOT %dot.9 = f32[5,3,4]{2,1,0} dot(f32[5,3,7]{2,1,0} %p1, f32[5,7,4]{2,1,0} %p2), lhs_batch_dims={0}, \
lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
}
"""
TRIPS = 'backend_config={"known_trip_count":{"n":"20"},"known_init_step":{"init":"0","step":"1"}}'


def test_a_loop_s_products_are_counted_as_often_as_it_runs_and_a_fusion_s_too():
    found = hlo.evidence(HLO.replace("KNOWN", TRIPS))
    assert found.products == [Product(20, 1, 3, 7, 4), Product(20, 1, 3, 7, 7), Product(1, 5, 3, 7, 4)]
    assert found.kernels == {"dot": 21, "fusion": 20}
    assert (found.fusions, found.loops, found.missing) == (20, [20], {})


def test_each_instruction_that_is_a_product_has_its_sizes_and_a_fusion_those_of_the_dot_in_it():
    computations, _, _ = hlo.parsed(HLO.replace("KNOWN", TRIPS))
    found = hlo.products_by_instruction(computations)
    assert found == {"dot.3": (1, 3, 7, 4), "dot.1": (1, 3, 7, 7), "fusion.1": (1, 3, 7, 4), "dot.9": (5, 3, 7, 4)}


def test_newer_texts_name_the_elements_of_a_tuple_by_their_place():
    """XLA of JAX 0.11: %arg#1 is what get-tuple-element(%arg), index=1 was."""
    newer = HLO.replace("dot(%h, %w)", "dot(%arg#1, %arg#2)").replace("fusion(%dot.1, %v)", "fusion(%dot.1, %arg#3)")
    assert newer != HLO
    found, expected = (hlo.evidence(text.replace("KNOWN", TRIPS)) for text in (newer, HLO))
    assert found.library_proof == {"XLA": "fusion.1 = f32[3,4]{1,0} fusion(%dot.1, %arg#3)"}
    assert replace(found, library_proof=expected.library_proof) == expected


def test_an_element_of_a_tuple_s_shape_is_found_in_tuples_of_tuples_too():
    shape = "(f32[3,7]{1,0}, (s32[], f32[5,3]{1,0:T(8,128)}), /*index=2*/f32[2]{0})"
    assert hlo.element(shape, "#0") == "f32[3,7]{1,0}"
    assert hlo.element(shape, "#1#1") == "f32[5,3]{1,0:T(8,128)}"
    assert hlo.element(shape, "#2") == "f32[2]{0}"
    assert hlo.element("f32[4]{0}", "") == "f32[4]{0}"


def test_a_loop_of_unknown_length_is_said_to_be_one():
    found = hlo.evidence(HLO.replace(", KNOWN", ""))
    assert found.missing == dict.fromkeys(("products", "kernels", "fusions"), hlo.UNKNOWN_TRIPS)


def test_a_loop_s_length_may_be_known_to_the_program_it_was_made_from():
    text = HLO.replace("KNOWN", 'metadata={op_type="StatelessWhile" op_name="gradient/while"}')
    assert hlo.evidence(text, {"gradient/while": 7}).loops == [7]
    assert hlo.evidence(text, {"while": 7}).missing


def test_which_branch_runs_is_not_known():
    conditional = "%c = f32[3,7]{1,0} conditional(%p, %h, %h), branch_computations={%a, %b}"
    found = hlo.evidence(HLO.replace("KNOWN", TRIPS).replace("%i = s32[]", f"{conditional}\n  %i = s32[]"))
    assert found.missing["products"] == hlo.UNKNOWN_BRANCH


@pytest.mark.parametrize(
    "line",
    [
        "  %d = f32[3,7]{1,0} $ dot(%h, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "  %d: f32[3,7]{1,0} = dot(%h, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "  dot(%h, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "%d = f32[3,7]{1,0} dot(%h, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    ],
)
def test_an_instruction_that_is_not_understood_is_said_to_be_missing(line):
    found = hlo.evidence(HLO.replace("KNOWN", TRIPS).replace("  ROOT %out", f"{line}\n  ROOT %out"))
    assert found.missing.keys() == {"products", "kernels", "fusions", "loops"}
    assert found.missing["products"].startswith(
        f"1 of the program's lines cannot be read, the first of them: {line[:9].strip()}"
    )


def test_a_computation_whose_heading_is_not_understood_is_missing_with_its_lines():
    computation = "computation <body.2> returns f32[3,7] {\n  %d = f32[3,7] dot(%h, %w)\n}\n\nENTRY"
    found = hlo.evidence(HLO.replace("KNOWN", TRIPS).replace("ENTRY", computation))
    assert found.products == [Product(20, 1, 3, 7, 4), Product(20, 1, 3, 7, 7), Product(1, 5, 3, 7, 4)]
    assert "the first of them: computation <body.2>" in found.missing["products"]


def test_lines_beside_the_computations_are_no_instructions():
    """As JAX 0.10 has them."""
    tables = 'FileNames\n1 "model.py"\n\nStackFrames\n1 {file_location_id=1 parent_frame_id=1}\n\n'
    text = HLO.replace("KNOWN", TRIPS).replace("%fused_computation (", f"{tables}%fused_computation (")
    assert hlo.evidence(text).missing == {}


def test_a_library_s_product_is_one():
    line = 'f32[5,3,4]{2,1,0} custom-call(%p1, %p2), custom_call_target="__onednn$matmul"'
    text = HLO[: HLO.index("f32[5,3,4]{2,1,0} dot(f32")] + line + "\n}\n"
    text = text.replace("p1: f32[5,3,7], p2: f32[5,7,4]) -> f32[5,3,4]", "p1: f32[15,7], p2: f32[7,4]) -> f32[15,4]")
    text = text.replace("f32[5,3,7]{2,1,0} parameter(1)", "f32[15,7]{1,0} parameter(1)")
    text = text.replace("f32[5,7,4]{2,1,0} parameter(2)", "f32[7,4]{1,0} parameter(2)").replace(
        "f32[5,3,4]", "f32[15,4]"
    )
    found = hlo.evidence(text.replace("KNOWN", TRIPS))
    assert Product(1, 1, 15, 7, 4) in found.products
    assert found.kernels["custom-call __onednn$matmul"] == 1


def test_a_library_s_batched_product_is_one_too():
    line = '%g.1 = (f32[5,3,4]{2,1,0}, s8[9]{0}) custom-call(%p1, %p2), custom_call_target="__cublas$gemm"'
    text = HLO.replace("KNOWN", TRIPS).replace("  ROOT %dot.9", f"  {line}\n  ROOT %dot.9")
    assert Product(2, 5, 3, 7, 4) in hlo.evidence(text).products  # beside the dot of the same shape


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("%c.1 = f32[5,3,4]{2,1,0} convolution(%p1, %p2), window={size=3}", "convolution"),
        (
            '%c.1 = f32[5,3,4]{2,1,0} custom-call(%p1, %p2), custom_call_target="__cudnn$convForward"',
            "__cudnn$convForward",
        ),
    ],
)
def test_a_product_of_an_unknown_kind_is_said_to_be_missing(line, name):
    found = hlo.evidence(HLO.replace("KNOWN", TRIPS).replace("  ROOT %dot.9", f"  {line}\n  ROOT %dot.9"))
    assert found.missing == {"products": f"{hlo.UNKNOWN_PRODUCT}: {name}"}


@pytest.mark.parametrize("name", [name for name in HERE if name != "torch"])
def test_a_frameworks_product_of_an_unknown_kind_is_said_to_be_missing(name, inside):
    """PyTorch's have a test of their own."""
    first, second, known = inside(name, "products")
    assert "operands are not known" in first
    assert "operands are not known" in second
    assert known == "None"


def test_operations_bytes_and_calls_of_products():
    products = [Product(3, 1, 2, 5, 7), Product(1, 4, 2, 5, 7)]
    assert flops(products) == 3 * 2 * 70 + 4 * 2 * 70
    assert moved_bytes(products, 4) == 4 * 7 * (10 + 35 + 14)
    assert issued(products) == 4
    assert [str(product) for product in products] == ["3×[2×5×7]", "1×4·[2×5×7]"]


@pytest.mark.parametrize("text", ["", "HloModule empty"])
def test_no_program_is_no_evidence(text):
    assert hlo.evidence(text) == Evidence(missing={"everything": hlo.NO_PROGRAM})


@pytest.mark.skipif("torch" not in HERE, reason="it is about PyTorch")
def test_operations_are_those_that_torch_s_own_counter_has(inside):
    """Another way to count: at each operation's dispatch, where the harness reads the profiler."""
    counts = [line.split() for line in inside("torch", "operations")]
    assert len(counts) == 12
    assert [theirs for theirs, _ in counts] == [ours for _, ours in counts]
    assert len({ours for _, ours in counts}) > 3
