"""matplotlib and the style of all figures, which is this project's whatever matplotlib configuration the user has.

On import, matplotlib reads `matplotlibrc` (from the current folder, MATPLOTLIBRC, or a folder in HOME), MPLBACKEND, and
a list of the system's fonts that it stores in HOME. A backend that is not available, or a file that is not text, makes
the import fail. Importing it here reads none of these and stores nothing.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IGNORED = ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR")
STYLE: Any = {"svg.hashsalt": "fusegap", "font.family": "DejaVu Sans", "font.size": 9}


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Remove the user's matplotlib variables, and restrict matplotlib to the fonts that it ships; restore on exit."""
    variables = dict(os.environ)
    for name in IGNORED:
        os.environ.pop(name, None)
    os.environ["MPL_IGNORE_SYSTEM_FONTS"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)


@contextmanager
def _change_folder(folder: Path) -> Iterator[None]:
    """Change the current folder, and return to the previous one on exit, even if it has been removed meanwhile."""
    descriptor = os.open(".", os.O_PATH)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(descriptor)
        os.close(descriptor)


def _import_matplotlib() -> Any:
    """Import matplotlib with its own defaults. Raises ImportError where it is not installed."""
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    data_folder = Path(spec.submodule_search_locations[0]) / "mpl-data"  # matplotlib looks in the current folder first
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    with _clean_environment(), _change_folder(data_folder):
        import matplotlib

        # Read nothing from HOME and store nothing there.
        matplotlib.get_cachedir = matplotlib.get_configdir = lambda: os.devnull
        log.setLevel(logging.ERROR)  # matplotlib would warn about that
        import matplotlib.font_manager

        log.setLevel(level)
    return matplotlib


mpl = _import_matplotlib()
DEFAULTS = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}


@contextmanager
def project_style() -> Iterator[None]:
    """Apply this project's style within the `with` statement, and restore the previous style on exit."""
    with mpl.rc_context(DEFAULTS | STYLE):
        yield


def draw_styled(draw: Callable[[], Any], path: Path, svg: bool = True) -> None:
    """Draw a figure in this project's style, and save it with the same bytes each time.

    `draw` returns the figure. `path` has no suffix: the figure is saved as PNG, and with `svg` as SVG too. Without it,
    the SVG that an earlier report left is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with project_style():
        figure = draw()
        if svg:
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        else:
            path.with_suffix(".svg").unlink(missing_ok=True)
        figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
