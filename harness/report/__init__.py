"""The report, a pure function of a run's records. The same records give the same bytes."""

import csv
import gc
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.analysis.loading import read_tables
from harness.analysis.tables import Tables
from harness.errors import UsageError
from harness.machine import folders
from harness.records.store import FILE, PACKED
from harness.report import (
    comparison,
    compiling,
    decomposition,
    figures,
    frameworks,
    fronts,
    libraries,
    nodes,
    prediction,
    scatter,
    summary,
    sweeps,
)
from harness.report.pages import APPENDIX, FIRST, HTML, Pages, render_pages


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Turn the garbage collector off inside the context.

    The records are millions of objects without cycles, and the collector would search them all.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@no_garbage_collection()
def write(folder: Path, out: Path | None = None, html: bool = True) -> Path:
    """Write report.md, appendix/, figures/, the tables and environment.json for the records in `folder`.

    With `html`, report.html too. They go into `out` (by default `folder`). Returns the path of report.md. Raises
    UsageError if the records cannot be read or `out` cannot be used.
    """
    with figures.drawers_started() as drawers:
        run_tables = read_tables(folder)
        if out and os.path.realpath(out) != os.path.realpath(folder):
            make_folders([out])
        else:
            folders.check_writable(folder)
        with folders.add_path_to_errors(out or folder):
            return write_report(run_tables, folder, out or folder, html, drawers)


def write_report(
    run_tables: Tables, folder: Path, out: Path, html: bool, drawers: ProcessPoolExecutor | None = None
) -> Path:
    """Write a run's report into `out`, with `html` also as report.html, and return the path of report.md.

    The results of scripts that lie beside the records are read from `folder`. `drawers`: processes for the figures.
    """
    pages = body(run_tables, folder, out, html, drawers)
    path = write_pages(pages, out)
    if html:
        write_html(pages, out, run_tables)
    return path


def write_html(pages: Pages, out: Path, run_tables: Tables | None = None) -> None:
    """Write report.html of a report's pages, and of a run's complete tables where there is one run, into `out`."""
    from harness.report import data_tables, html  # late: a report without HTML needs neither

    html.write(pages, out, data_tables.data_tables(run_tables) if run_tables else ())


def make_folders(destinations: list[Path]) -> None:
    """Make the folders that reports go into.

    Raises UsageError, before it makes any folder, if one of them holds another run's records.
    """
    for folder in destinations:
        if any(os.path.lexists(folder / name) for name in (FILE, PACKED)):
            raise UsageError(f"{folder} holds a run's records and is not among what is reported: give another --out")
    for folder in destinations:
        folders.make_folder(folder)


def body(run_tables: Tables, folder: Path, out: Path, svg: bool, drawers: ProcessPoolExecutor | None = None) -> Pages:
    """Return the pages of a run's report, and write its figures, tables and environment.json into `out`.

    The results of scripts that lie beside the records are read from `folder`. `svg`: whether figures are SVG too.
    `drawers`: processes for the figures.
    """
    with figures.in_background(out / "figures", svg, drawers) as background:
        figure_names, drawings = figures.forest_plots(run_tables)
        background.draw(drawings)  # first, because they wait for no other tables than the gaps
        devices = comparison.shared_gaps({"": run_tables}) if comparison.has_both_devices(run_tables) else None
        if devices is not None:
            background.draw(comparison.drawings(devices, {run_tables.study.margin}))
        scatter_drawings, sweep_drawings = scatter.drawings(run_tables), sweeps.drawings(run_tables)
        background.draw(scatter_drawings | compiling.drawings(run_tables) | decomposition.drawings(run_tables))
        background.draw(sweep_drawings | fronts.drawings(run_tables))
        background.run(run_tables.files(out))
        stated = {"basis", "environments", "weights", "study", "command"}
        facts = run_tables.header.model_dump(mode="json", include=stated, exclude_unset=True)
        (out / "environment.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return make_pages(run_tables, folder, figure_names, list(sweep_drawings), devices, list(scatter_drawings))


def make_pages(
    run_tables: Tables,
    folder: Path,
    figure_names: figures.FigureNames,
    sweep_figure_names: list[str],
    devices: comparison.ComparedGaps | None,
    scatter_figure_names: Sequence[str] = (),
) -> Pages:
    """Return the text and tables of a report as Markdown, which refers to its figures by name.

    `devices` compares the run's CPU with its GPU; None where the run does not have both.
    """
    script_results = {name: _read_script_result(folder / f"{name}.json") for name in ("kills", "apart", "repeat")}
    variables = summary.context(run_tables, figure_names, _read_idiomatic(folder), script_results)
    variables["comparison"] = comparison.context(devices) if devices is not None else None
    variables["prediction"] = prediction.context(run_tables, sweep_figure_names)
    variables["compiling"] = compiling.section(run_tables)
    variables["decomposition"] = decomposition.section(run_tables)
    variables["libraries"] = libraries.section(run_tables)
    variables["library_sentence"] = libraries.summary(run_tables)
    variables["frameworks"] = frameworks.section(run_tables)
    variables["fronts"] = fronts.section(run_tables)
    variables["nodes"] = nodes.section(run_tables)
    variables["scatters"] = list(scatter_figure_names)
    return render_pages(variables)


def write_pages(pages: Pages, out: Path) -> Path:
    """Write a report's pages into `out`, and return the first one's path.

    The pages and the report.html that an earlier report had are removed.
    """
    for name in (HTML, *(page.path for page in APPENDIX)):
        (out / name).unlink(missing_ok=True)
    for name, text in pages.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_markdown(text, out, name)
    return out / FIRST


def write_markdown(text: str, out: Path, name: str = FIRST) -> Path:
    """Write the report's text to a file in `out` and return its path."""
    path = out / name
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path's bytes may not decode to text
    return path


def _read_script_result(file: Path) -> Any:
    """Return the result that a script wrote beside the records, or None if there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _read_idiomatic(folder: Path) -> list[dict[str, str]]:
    """Return the rows that scripts/idiomatic.py wrote beside the records; none if there is no such file."""
    file = folder / "idiomatic.csv"
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.exists() else []
