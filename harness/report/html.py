"""report.html: the pages, figures and complete tables of a report in one file, which needs nothing beside it.

The pages' Markdown becomes HTML, and each page a section of the file. Links between pages lead to sections, figures are
inside as SVG, and every table can be sorted and filtered (DataTables, as the itables package ships it). A policy in the
file forbids the browser any request. The same pages, figures and tables give the same bytes.
"""

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness.report.data_tables import FILTERS, DataTable
from harness.report.pages import FIRST, HTML, Pages, render

ASSETS = Path(__file__).parent / "assets"
SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "minutes": 60.0, "hours": 3600.0}
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
NUMBER = re.compile(
    r"[⚠±+~<>≤≥≈(*\s]*(?P<number>-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"(?:\s*×\s*(?P<times>\d+(?:\.\d+)?)(?!\w))?\s?(?P<unit>[A-Za-zµ%]*)"
)
ID = re.compile(r'\bid="([^"]+)"')
REFERENCE = re.compile(r'(url\(#|href="#)([^")]+)')
BEFORE_SVG = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
LEFT_OUT_OF_SVG = re.compile(r"<metadata>.*?</metadata>\s*|<style\b.*?</style>\s*", re.DOTALL)


def write(pages: Pages, out: Path, data: Sequence[DataTable] = ()) -> Path:
    """Write report.html of a report's pages, whose figures lie in `out`, into `out` and return its path.

    Raises FileNotFoundError where a page shows a figure that has not been drawn.
    """
    path = out / HTML
    path.write_text(make_html(pages, out, data), encoding="utf-8", errors="backslashreplace")
    return path


def make_html(pages: Pages, out: Path, data: Sequence[DataTable] = ()) -> str:
    """Return the text of report.html; `data` is shown in full after the pages."""
    figures = _Figures(out)
    sections = [_Section(path, set(pages), figures) for path in pages]
    bodies = [section.html(text) for section, text in zip(sections, pages.values(), strict=True)]
    first = sections[0].contents
    variables = {
        "title": escape(first[0].text if first else "Report"),
        "contents": [_nested_contents(section) for section in sections],
        "sections": [(section.id, body) for section, body in zip(sections, bodies, strict=True)],
        "data": [_data_variables(table) for table in data],
        "css": (ASSETS / "report.css").read_text(encoding="utf-8"),
        "library": datatables_source(),
        "script": (ASSETS / "report.js").read_text(encoding="utf-8"),
    }
    return render("report.html.j2", variables)


@cache
def datatables_source() -> str:
    """Return the source of DataTables as a script that leaves its constructor in `globalThis.ReportTable`.

    It is read from the itables package, which is not imported. Raises ModuleNotFoundError where that is not installed,
    and RuntimeError where its file is not a module that exports jQuery.
    """
    spec = find_spec("itables")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'itables'", name="itables")
    file = Path(spec.submodule_search_locations[0]) / "html" / "dt_bundle.js"
    source = file.read_text(encoding="utf-8")
    exports = re.search(r"\bexport\s*\{[^}]*?([\w$]+) as jQuery\b[^}]*\};?", source)
    if exports is None:
        raise RuntimeError(f"{file} exports no jQuery, so that it is not the DataTables that this was written for")
    assignment = f"globalThis.ReportTable={exports[1]}.fn.dataTable;"
    source = source[: exports.start()] + assignment + source[exports.end() :]
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def sort_value(text: str) -> float | None:
    """Return the number that a cell sorts by: its first, in its unit's base; None if the cell begins with no number.

    "1.24 [1.10, 1.40]" is 1.24, "3.4 ms" 0.0034 (s), "1.2 MB" 1.2e6, "5%" 0.05, and "12 × 5" 60.
    """
    match = NUMBER.match(text)
    if match is None:
        return None
    value = float(match["number"].replace(",", "")) * float(match["times"] or 1)
    return float(f"{value * _unit_factor(match['unit']):.12g}")  # 251 µs is 0.000251


def _unit_factor(unit: str) -> float:
    if unit == "%":
        return 0.01
    if unit[:1] in PREFIXES and unit[1:] in ("", "B", "FLOP"):
        return PREFIXES[unit[0]]
    return SECONDS.get(unit, 1.0)


@dataclass(frozen=True)
class Heading:
    """A heading of a page: its level there, its id in the file, and its text."""

    level: int
    id: str
    text: str


@dataclass
class _Figures:
    """The figures of a report; each that is shown has ids of its own, because matplotlib repeats them."""

    folder: Path
    shown: int = 0

    def svg(self, path: str) -> str:
        """Return the SVG beside a figure, given its path in the report's folder, to stand inside HTML."""
        self.shown += 1
        prefix = f"f{self.shown}-"
        text = (self.folder / path).with_suffix(".svg").read_text(encoding="utf-8")
        text = LEFT_OUT_OF_SVG.sub("", BEFORE_SVG.sub("", text, count=1))
        return REFERENCE.sub(rf"\g<1>{prefix}\g<2>", ID.sub(rf'id="{prefix}\g<1>"', text))


@dataclass
class _Section:
    """A page as a section of the file; after `html`, `contents` are its headings."""

    path: str
    paths: set[str]
    figures: _Figures
    contents: list[Heading] = field(default_factory=list)

    @property
    def id(self) -> str:
        return page_id(self.path)

    def html(self, text: str) -> str:
        """Return the page as HTML. Headings of all pages but the first are a level lower than they say."""
        parser = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = parser.parse(text)
        for index, token in enumerate(tokens):
            if token.type == "heading_open":
                self._name_heading(token, tokens[index + 1], tokens[index + 2])
            elif token.type == "inline":
                self._rewrite_inline(token)
        for table in _tables(tokens):
            _type_columns(table)
        html: str = parser.renderer.render(tokens, parser.options, {})
        return html.replace("<table>", '<div class="box"><table>').replace("</table>", "</table></div>")

    def _name_heading(self, opening: Token, inline: Token, closing: Token) -> None:
        text = _plain_text(inline)
        taken = {heading.id for heading in self.contents}
        identifier = unique = f"{self.id}--{slug(text)}"
        number = 0
        while unique in taken:
            number += 1
            unique = f"{identifier}-{number}"
        level = int(opening.tag[1])
        self.contents.append(Heading(level, unique, text))
        opening.attrSet("id", unique)
        if self.path != FIRST:
            opening.tag = closing.tag = f"h{min(6, level + 1)}"

    def _rewrite_inline(self, inline: Token) -> None:
        """Let links lead to sections, and put figures in place of images."""
        for index, child in enumerate(inline.children or []):
            if child.type == "link_open":
                child.attrSet("href", self.target(str(child.attrGet("href"))))
            elif child.type == "image":
                figure = Token("html_inline", "", 0)
                path = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), str(child.attrGet("src"))))
                label = escape(child.content)
                figure.content = (
                    f'<span class="figure" role="img" aria-label="{label}" tabindex="0">{self.figures.svg(path)}</span>'
                )
                (inline.children or [])[index] = figure

    def target(self, href: str) -> str:
        """Return where a page's link leads to in the file.

        Links to another report's first page lead to its report.html; those to anything else stay.
        """
        path, _, fragment = href.partition("#")
        if "://" in path:
            return href
        page = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), path)) if path else self.path
        if page in self.paths:
            return f"#{page_id(page)}--{fragment}" if fragment else f"#{page_id(page)}"
        folder, name = posixpath.split(page)
        return posixpath.join(folder, HTML) if name == FIRST else href


def page_id(path: str) -> str:
    """Return the id of a page's section."""
    return f"page-{slug(posixpath.splitext(posixpath.basename(path))[0])}"


def slug(text: str) -> str:
    """Return a heading's name in links, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def _plain_text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [] if child.type in ("text", "code_inline"))


def _tables(tokens: list[Token]) -> Iterator[list[tuple[Token, str]]]:
    """Yield each table as its cells in order: the opening token and the text of each."""
    cells: list[tuple[Token, str]] = []
    for index, token in enumerate(tokens):
        if token.type in ("th_open", "td_open"):
            cells.append((token, _plain_text(tokens[index + 1])))
        elif token.type == "table_close":
            yield cells
            cells = []


def _type_columns(cells: list[tuple[Token, str]]) -> None:
    """Mark each column of a table as one of numbers, whose cells then have the number that they sort by, or of text.

    A column is one of numbers where at least half of its cells that say anything begin with one.
    """
    width = sum(token.type == "th_open" for token, _ in cells)
    for column in range(width):
        (heading, _), *body = cells[column::width]
        values = [sort_value(text) for _, text in body]
        said = sum(text.strip() not in ("", "–") for _, text in body)
        is_number = 0 < said <= 2 * sum(value is not None for value in values)
        heading.attrSet("data-type", "measure" if is_number else "html")
        if is_number:
            for (token, _), value in zip(body, values, strict=True):
                token.attrSet("data-order", "" if value is None else f"{value:.12g}")


def _nested_contents(section: _Section) -> dict[str, Any]:
    """Return a page's entry in the contents list: its title and its headings of the second level, escaped."""
    first, *others = section.contents or [Heading(1, section.id, section.path)]
    parts = [(heading.id, escape(heading.text)) for heading in others if heading.level == 2]
    return {"id": section.id, "title": escape(first.text), "parts": parts}


def _data_variables(table: DataTable) -> dict[str, Any]:
    """Return a table's variables for the template; its rows as compact JSON that cannot end its script."""
    content = {"columns": table.columns, "rows": table.rows, "filters": [n for n in FILTERS if n in table.columns]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return {"name": table.name, "title": escape(table.title), "about": escape(table.about), "json": text}
