"""The nodes of a merged run: whether one of them disagrees with the others.

Nodes are machines of one kind, so that a gap should be the same on each, but for chance. A node's log ratios, one per
process, are compared with those of all other nodes' processes by Welch's t, and the p-values are corrected by Holm's
method over all nodes and gaps. Pure: the same records give the same rows.
"""

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.gaps import GAP_KEYS, paired_times
from harness.analysis.gaps import batched_pairs as pairs
from harness.records.schema import BlockRecord

NODES = [*GAP_KEYS, "node", "processes", "ratio", "others", "change", "ci_low", "ci_high", "p", "disagrees"]
FEWEST = 2  # processes on a node, and on the others, of which a spread is known


def nodes(blocks: list[BlockRecord]) -> pd.DataFrame:
    """Return a row for each node and gap of the question in which the node and the others have enough processes.

    `ratio`: the node's gap, contender over batched; `others`: that of all other nodes. `change` is ratio over others,
    with its 95% interval, which is not corrected; `p` is corrected, and `disagrees` says whether it is at most 5%.
    """
    rows = []
    if len({block.node for block in blocks}) < 2:
        return pd.DataFrame(columns=NODES)
    for key, processes in paired_times(blocks, pairs).items():
        medians = stats.row_medians([np.log(p.contender / p.baseline) for p in processes])
        for name in sorted({p.node for p in processes}):
            own = [m for m, p in zip(medians, processes, strict=True) if p.node == name]
            others = [m for m, p in zip(medians, processes, strict=True) if p.node != name]
            if min(len(own), len(others)) >= FEWEST:
                means = [stats.mean_interval(values) for values in (own, others)]
                halves = [max(high - mean, 1e-12) for mean, _, high in means]  # 0 where all agree to the last digit
                change = means[0][0] - means[1][0]
                half, p = stats.welch_interval(change, halves, (len(own), len(others)))
                ratios = [np.exp(mean) for mean, *_ in means]
                interval = np.exp([change, change - half, change + half])
                rows.append((*key[: len(GAP_KEYS)], name, len(own), *ratios, *interval, float(p)))
    frame = pd.DataFrame(rows, columns=NODES[:-1])
    frame["p"] = stats.holm_adjust(list(frame.p))
    frame["disagrees"] = frame.p <= stats.LEVEL
    return frame.sort_values([*GAP_KEYS, "node"], kind="stable", ignore_index=True)
