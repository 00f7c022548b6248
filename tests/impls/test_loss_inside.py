"""With the loss inside, all outputs [T, B, O] together never exist, forward or backward; and its weak spots."""

import pytest

from tests.conftest import HERE

pytestmark = pytest.mark.slow
CHUNK = 0.5  # of two


@pytest.mark.parametrize("framework", HERE)
def test_no_array_of_all_outputs_is_ever_computed_or_kept(framework, inside):
    """The largest array of each program, as a share of [T, B, O]; that of batched is what would be seen."""
    sizes = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in inside(framework, "largest")}
    assert sizes
    for name, share in sizes.items():
        projection = name.split()[-1]
        if projection == "batched":
            assert share >= 1, name
        elif projection == "chunked_loss_2":
            assert CHUNK <= share < 1, name
        else:
            assert share < CHUNK, name
