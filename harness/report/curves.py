"""The figure of a training: losses beside the notebook's, and each trajectory's difference from the float64 oracle."""

from typing import Any

import numpy as np

from harness.analysis.trajectories import EVERY, NOTEBOOK, FormTrajectory, relative_differences
from harness.records.training import OracleLosses
from harness.report.figures import COLOURS, program_style
from harness.study.parts import BATCHED

MARKS_EACH = 8  # on a line
DASHES = {"in_loop": "-", BATCHED: (0, (3, 1.5))}
NAMES = {"in_loop": "notebook, wrapper (in_loop)", BATCHED: "notebook, reshape (batched)"}
MARKS: dict[str, dict[str, Any]] = {  # the circles are drawn over the squares
    "in_loop": {"marker": "o", "color": COLOURS["in_loop"], "markersize": 4.5, "zorder": 4},
    BATCHED: {"marker": "s", "color": "black", "markersize": 7.5, "zorder": 3},
}
SMOOTH = 25  # steps in the window of a difference's running median


def draw(lines: list[FormTrajectory], oracle: OracleLosses) -> Any:
    """Return the figure of losses and of differences from the oracle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_losses(left, lines, oracle)
    _draw_differences(right, lines, oracle)
    left.legend(frameon=False)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_losses(axes: Any, lines: list[FormTrajectory], oracle: OracleLosses) -> None:
    """Draw the trajectories of losses, the oracle's and the notebook's."""
    for line in lines:
        colour = program_style(line.configuration.configuration.framework, line.configuration.configuration.execution)[
            "color"
        ]
        axes.plot(line.losses, color=colour, linestyle=DASHES[line.form], linewidth=0.8)
    axes.plot(oracle.losses, color="black", linewidth=0.6, label="float64 oracle, over all others")
    count = len(oracle.losses)
    for form, values in NOTEBOOK.items():
        # The notebook prints after the step.
        steps = [1 + EVERY * index for index in range(len(values)) if EVERY * index < count]
        style = MARKS[form] | {"linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.5}
        axes.plot(steps, values[: len(steps)], label=NAMES[form], **style)
    axes.set(yscale="log", xlabel="steps taken", ylabel="mean squared error of the step's batch")
    axes.grid(color="#f0f0f0")
    axes.set_title("Losses", loc="left", fontweight="bold")


def _draw_differences(axes: Any, lines: list[FormTrajectory], oracle: OracleLosses) -> None:
    """Draw the running median of each trajectory's relative difference from the oracle's.

    A colour is a framework, a mark an execution, and dashes are for `batched`.
    """
    true = oracle.losses
    between = max(1, len(true) // MARKS_EACH)
    for index, line in enumerate(lines):
        style = _style(line) | {"linestyle": DASHES[line.form], "linewidth": 1.1, "markersize": 4}
        style["markevery"] = (between * index // len(lines), between)  # lines have their marks at different steps
        axes.plot(running_median(relative_differences(line.losses, true)), label=f"{line.name} {line.form}", **style)
    axes.plot(
        running_median(relative_differences(oracle.float32, true)),
        color="black",
        linewidth=1.4,
        label="oracle's own float32",
    )
    axes.set(yscale="log", xlabel="steps taken", ylabel="relative difference from the float64 oracle")
    axes.grid(color="#f0f0f0")
    axes.set_title(f"Divergence (running median of {SMOOTH} steps)", loc="left", fontweight="bold")


def _style(line: FormTrajectory) -> dict[str, Any]:
    """Return the colour and the mark of a trajectory's program."""
    configuration = line.configuration.configuration
    return program_style(configuration.framework, configuration.execution)


def running_median(differences: np.ndarray) -> np.ndarray:
    """Return the running median of SMOOTH steps, fewer at the ends. Shape [N], as the input."""
    half = SMOOTH // 2
    return np.array([np.median(differences[max(0, step - half) : step + half + 1]) for step in range(len(differences))])
