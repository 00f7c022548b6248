"""What a call computes: the arithmetic of its outputs, by what the oracle multiplies, and what is made of counts."""

import numpy as np
import pytest

from harness.analysis.operations import LEFT_OUT, NOT_MOVED, Work, least_operations, work_from_evidence
from harness.study.data import data_for
from harness.study.study import Workload
from harness.verify.output_check import form_of
from impls import reference
from impls.evidence import Evidence, Product
from impls.interface import Arm
from tests.conftest import data_of


class Counting(np.ndarray):
    """An array that adds up the multiplications of its matrix products whose operands are not all zeros."""

    multiplied = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(one) if isinstance(one, np.ndarray) else one for one in inputs]
        if ufunc is np.matmul and all(one.any() for one in plain):
            Counting.multiplied += plain[0].size * plain[1].shape[-1]
        options = {name: tuple(map(np.asarray, value)) if name == "out" else value for name, value in options.items()}
        found = getattr(ufunc, method)(*plain, **options)
        return found.view(Counting) if isinstance(found, np.ndarray) else found


SIZES = [(3, 5, 2, 7, 4), (1, 5, 2, 7, 4), (3, 1, 2, 7, 4), (3, 5, 1, 7, 4), (3, 5, 2, 1, 4), (3, 5, 2, 7, 1)]


@pytest.mark.parametrize("sizes", [*SIZES, (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("name", ["unrolled_none", "unrolled_in_loop", "scan_batched", "given_batched"])
def test_the_least_of_a_forward_pass_is_what_the_oracle_multiplies(name, sizes):
    workload = Workload(name="w", **dict(zip("BTIHO", sizes, strict=True)))
    arm = Arm(*name.split("_", 1))
    data = data_for(arm, data_of(workload, "float64"))
    data = data._replace(x=data.x.view(Counting), weights=type(data.weights)(*(a.view(Counting) for a in data.weights)))
    Counting.multiplied = 0
    reference.run(data, workload.cell, "forward", form_of(name))
    assert 2 * Counting.multiplied == least_operations(workload, "forward", arm)


@pytest.mark.parametrize(("cell", "gates"), [("rnn_tanh", 1), ("gru", 3), ("lstm", 4)])
def test_a_training_step_adds_the_gradients_of_weights_and_states(cell, gates):
    sizes = Workload(name="w", B=3, T=5, I=2, H=7, O=4, cell=cell)
    wide, once = gates * 7, 3 * 5 * 7 * 4
    loop = 3 * (5 * 2 * wide + 4 * 7 * wide)
    back = 3 * (5 * 2 * wide + 2 * 4 * 7 * wide)
    assert least_operations(sizes, "train", Arm("scan", "in_loop")) == 2 * (loop + back + 3 * once)
    assert least_operations(sizes, "train", Arm("scan", "none")) == 2 * (loop + back)
    assert least_operations(sizes, "train", Arm("given", "vmap")) == 2 * 2 * once


def found(issued=(), written=(), **missing):
    return Evidence(list(issued), list(written), missing=missing)


SMALL, LARGE = Product(3, 1, 1, 3, 5), Product(3, 1, 1, 5, 5)  # 90 and 150 operations


@pytest.mark.parametrize(
    ("evidence", "least", "expected"),
    [
        (found([SMALL, LARGE]), 200, Work(6, 240, 4 * 3 * (3 + 15 + 5 + 5 + 25 + 5), {})),
        (found([SMALL, LARGE], [SMALL, LARGE]), 240, Work(6, 240, 4 * 3 * (3 + 15 + 5 + 5 + 25 + 5), {})),
        (found([], [SMALL, LARGE]), 240, Work(0, 240, None, {"product_bytes": NOT_MOVED})),
        (found([LARGE], [SMALL, LARGE]), 200, Work(3, 240, None, {"product_bytes": NOT_MOVED})),
        (found([LARGE]), 200, Work(3, None, None, {"operations": LEFT_OUT})),
        (found([]), 1, Work(0, None, None, {"operations": LEFT_OUT})),
        (found([LARGE], products="it is one call"), 200, Work(None, None, None, {"products": "it is one call"})),
        (found([LARGE], operations="it does not run"), 100, Work(3, None, None, {"operations": "it does not run"})),
        (found([LARGE], operations="it does not run"), 150, Work(3, 150, 4 * 3 * 35, {})),
        (found(everything="nothing counts"), 200, Work(None, None, None, {"everything": "nothing counts"})),
    ],
)
def test_operations_are_whole_or_unknown(evidence, least, expected):
    assert work_from_evidence(evidence, least, 4) == expected
