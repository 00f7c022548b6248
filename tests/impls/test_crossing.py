"""The cheapest cut of a graph, against trying every set of nodes."""

import random
from itertools import chain, combinations

import pytest

from impls.jax.crossing import cheapest_cut


def separates(cut, edges, starts, ends):
    """Whether every path from a start to an end goes through the cut."""
    reached, stack = set(), list(starts - cut)
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack += [after for before, after in edges if before == node and after not in cut]
    return not reached & ends


def draw_graph(seed):
    draw = random.Random(seed)
    nodes = range(draw.randrange(2, 8))
    costs = {node: draw.choice((0, 1, 2, 5, 8)) for node in nodes}
    edges = [pair for pair in combinations(nodes, 2) if draw.random() < 0.5]
    return (
        costs,
        edges,
        {node for node in nodes if draw.random() < 0.3},
        {node for node in nodes if draw.random() < 0.3},
    )


@pytest.mark.parametrize("seed", range(100))
def test_no_set_of_nodes_that_separates_is_cheaper(seed):
    costs, edges, starts, ends = draw_graph(seed)
    cut = cheapest_cut(costs, edges, starts, ends)
    assert separates(cut, edges, starts, ends)
    sets = chain.from_iterable(combinations(costs, count) for count in range(len(costs) + 1))
    least = min(sum(costs[node] for node in nodes) for nodes in sets if separates(set(nodes), edges, starts, ends))
    assert sum(costs[node] for node in cut) == least


def test_of_equal_ones_it_is_the_nearest_to_the_ends():
    edges = [("a", "b"), ("b", "c"), ("c", "d")]
    assert cheapest_cut({"a": 3, "b": 2, "c": 2, "d": 3}, edges, {"a"}, {"d"}) == {"c"}


def test_a_node_that_is_a_start_and_an_end_is_in_it():
    assert cheapest_cut({"a": 3, "b": 1}, [("a", "b")], {"a"}, {"a", "b"}) == {"a"}
    assert cheapest_cut({"a": 3}, [], set(), {"a"}) == set()
