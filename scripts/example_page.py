"""Make docs/example.md and its figure from docs/example.py, by running the script's cells in order.

    python scripts/example_page.py

A code cell gives the value of its last expression, as in a notebook: a frame becomes a table, a figure an image. The
page is made here and not by jupytext and nbconvert, which would bring a Jupyter kernel and dozens of packages, and put
HTML tables into Markdown.
"""

import ast
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from harness.report.markdown import table

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "example.py"
MARKER = "# %%"
MARKDOWN = "# %% [markdown]"


def make_page(script: Path, folder: Path) -> str:
    """Run a script's cells and return its page; the figure goes into `folder`, under the script's name."""
    variables: dict[str, Any] = {}
    parts = []
    for marker, text in cells(script.read_text(encoding="utf-8")):
        if marker == MARKDOWN:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in text.splitlines()))
        else:
            parts.append(f"```python\n{text}\n```")
            value = run_cell(text, variables)
            parts += [] if value is None else [output(value, folder / f"{script.stem}.png")]
    return "\n\n".join(parts) + "\n"


def cells(text: str) -> list[tuple[str, str]]:
    """Return the marker and the text of each cell. Raises ValueError where lines stand before the first."""
    pairs: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(MARKER):
            pairs.append((line, []))
        elif not pairs:
            raise ValueError(f"a line stands before the first cell: {line}")
        else:
            pairs[-1][1].append(line)
    return [(marker, "\n".join(lines).strip()) for marker, lines in pairs]


def run_cell(text: str, variables: dict[str, Any]) -> Any:
    """Run a code cell in a script's variables; return the value of its last statement, None if it is no expression.

    It takes exec and eval, because nothing else gives the value of a statement; what they run is this repository's.
    """
    body = ast.parse(text).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), variables)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), variables) if last else None


def output(value: Any, image: Path) -> str:
    """Return a cell's value as Markdown; a figure is saved as `image`. Raises TypeError for any other value."""
    if isinstance(value, Figure):
        value.savefig(image, dpi=120)
        plt.close(value)
        return f"![{value.axes[0].get_title()}]({image.name})"
    if isinstance(value, pd.DataFrame):
        frame = value.reset_index() if any(value.index.names) else value
        return table(list(frame.columns), frame.itertuples(index=False))
    raise TypeError(f"a cell gives a {type(value).__name__}, and a page shows frames and figures")


def main() -> None:
    mpl.use("agg")
    os.chdir(ROOT)
    SCRIPT.with_suffix(".md").write_text(make_page(SCRIPT, SCRIPT.parent), encoding="utf-8")


if __name__ == "__main__":
    main()
