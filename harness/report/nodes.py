"""The nodes of a merged run: what intervals are over, and which node disagrees with the others."""

from harness.analysis.tables import Tables
from harness.report.figures import configuration_name, contender_label
from harness.report.markdown import Row, interval, table


def section(tables: Tables) -> Row | None:
    """Return what the report says of nodes, or None for a run that was not merged from shards."""
    if not tables.header.shards:
        return None
    names = sorted({block.node for block in tables.blocks if block.node})
    disagreements = tables.nodes[tables.nodes.disagrees.astype(bool)]
    unit = (
        f"on {len(names)} nodes ({', '.join(names)}): each node's processes are averaged first, intervals are "
        "Student's t over nodes, and what a table counts as processes are nodes"
        if len(names) > 1
        else f"on one node ({', '.join(names)})"
    )
    sentence = f"Merged from {len(tables.header.shards)} shards, measured {unit}. {_disagreement(tables)}".strip()
    rows = [
        [
            row["node"],
            f"{configuration_name(row)} {row['recurrence']}, {row['workload']} {row['pass']}",
            contender_label(row["contender"]),
            f"{row['ratio']:.3g}",
            f"{row['others']:.3g}",
            interval(row["change"], row["ci_low"], row["ci_high"]),
        ]
        for row in disagreements.to_dict("records")
    ]
    head = ["node", "gap", "contender", "its ratio", "the others'", "one over the other"]
    return {
        "sentence": sentence,
        "shards": table(["shard", "nodes"], [[s.shard, ", ".join(s.nodes)] for s in tables.header.shards]),
        "table": table(head, rows) if rows else "",
        "compared": len(tables.nodes),
    }


def _disagreement(tables: Tables) -> str:
    """Say which nodes disagree with the others, "" where none could be compared."""
    if tables.nodes.empty:
        return ""
    disagreements = tables.nodes[tables.nodes.disagrees]
    if disagreements.empty:
        return "No node disagrees with the others at any gap (Welch's t at 5%, Holm-corrected)."
    counts = disagreements.groupby("node").size()
    parts = [f"{name} at {count} of its {(tables.nodes.node == name).sum()} gaps" for name, count in counts.items()]
    return f"**A node disagrees with the others**: {'; '.join(parts)} ([which](appendix/nodes.md))."
