"""The cheapest set of values that cuts a dataflow graph in two: a minimum cut whose capacities are on the nodes."""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)
Residual = dict[Hashable, dict[Hashable, int]]  # from, to -> what may still flow
SOURCE, SINK = "source", "sink"


def cheapest_cut(
    costs: Mapping[Node, int], edges: Iterable[tuple[Node, Node]], starts: Iterable[Node], ends: Iterable[Node]
) -> set[Node]:
    """Return the nodes of least total cost that every path from `starts` to `ends` goes through.

    `costs`: of each node, not negative. A start or an end may itself be in the cut. Of several cheapest cuts it is the
    one nearest to the ends. By Ford and Fulkerson 1956, with shortest augmenting paths (Edmonds and Karp 1972). Each
    node is an edge from its entry to its exit, with its cost as the capacity.
    """
    unlimited = sum(costs.values()) + 1
    residual: Residual = {SOURCE: {}, SINK: {}}
    for node, cost in costs.items():
        connect(residual, (node, 0), (node, 1), cost)
    for origin, result in edges:
        connect(residual, (origin, 1), (result, 0), unlimited)
    for node in starts:
        connect(residual, SOURCE, (node, 0), unlimited)
    for node in ends:
        connect(residual, (node, 1), SINK, unlimited)
    while path := shortest_path(residual):
        flow = min(residual[before][after] for before, after in path)
        for before, after in path:
            residual[before][after] -= flow
            residual[after][before] += flow
    end_side = leading_to_sink(residual)
    return {node for node in costs if (node, 1) in end_side and (node, 0) not in end_side}


def connect(residual: Residual, before: Hashable, after: Hashable, capacity: int) -> None:
    """Add an edge of a capacity, and its reverse of none."""
    residual.setdefault(before, {})[after] = capacity
    residual.setdefault(after, {}).setdefault(before, 0)


def shortest_path(residual: Residual) -> list[tuple[Hashable, Hashable]]:
    """Return the edges of a shortest path from source to sink on which something may still flow, or none."""
    origins: dict[Hashable, Hashable] = {SOURCE: SOURCE}
    queue: deque[Hashable] = deque([SOURCE])
    while queue and SINK not in origins:
        node = queue.popleft()
        for after, capacity in residual[node].items():
            if capacity and after not in origins:
                origins[after] = node
                queue.append(after)
    path: list[tuple[Hashable, Hashable]] = []
    end: Hashable = SINK
    while end in origins and end != SOURCE:
        path.append((origins[end], end))
        end = origins[end]
    return path


def leading_to_sink(residual: Residual) -> set[Hashable]:
    """Return the nodes from which something may still flow to the sink."""
    reached: set[Hashable] = {SINK}
    queue: deque[Hashable] = deque([SINK])
    while queue:
        node = queue.popleft()
        for before in residual[node]:  # every edge has its reverse
            if before not in reached and residual[before][node]:
                reached.add(before)
                queue.append(before)
    return reached
