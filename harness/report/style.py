"""matplotlib, and the style of all figures: this project's, whatever configuration the user has for his own.

What matplotlib reads when it is imported: `matplotlibrc` of the current folder, of MATPLOTLIBRC and of a folder in
HOME, MPLBACKEND, and a list of the system's fonts, which it keeps in HOME. A backend that is not there, or a file that
is not text, ends the import. Here it finds none of them and keeps nothing.
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
def _environment() -> Iterator[None]:
    """Without the user's variables, and with one that has matplotlib know only the fonts that it brings."""
    before = dict(os.environ)
    for name in IGNORED:
        os.environ.pop(name, None)
    os.environ["MPL_IGNORE_SYSTEM_FONTS"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """With another current folder; the one before may have been removed meanwhile."""
    before = os.open(".", os.O_PATH)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _import() -> Any:
    """matplotlib with its own defaults. Raises ImportError where it is not installed."""
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    own = Path(spec.submodule_search_locations[0]) / "mpl-data"  # the first place it looks in is the current folder
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    with _environment(), _inside(own):
        import matplotlib

        # Nothing is read from HOME, or left there.
        matplotlib.get_cachedir = matplotlib.get_configdir = lambda: os.devnull
        log.setLevel(logging.ERROR)  # it would warn of that
        import matplotlib.font_manager

        log.setLevel(level)
    return matplotlib


mpl = _import()
DEFAULTS = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this project's style, and leave the one before as it was."""
    with mpl.rc_context(DEFAULTS | STYLE):
        yield


def draw_styled(draw: Callable[[Path], None], path: Path) -> None:
    """Draw a figure into a path without ending, in this project's style."""
    with styled():
        draw(path)
