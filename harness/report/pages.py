"""The pages of a report: the first, which answers, and those of the appendix, which have the complete tables."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.report.markdown import Row

FIRST = "report.md"
HTML = "report.html"  # all pages in one file
PROBLEMS = 12  # lines of what went wrong that are on the first page
Pages = dict[str, str]  # path in the report's folder -> text


@dataclass(frozen=True)
class AppendixPage:
    """A page of the appendix: its name, its title, what it has, and whether a report with these variables has it."""

    name: str
    title: str
    about: str
    is_needed: Callable[[Row], bool]

    @property
    def path(self) -> str:
        """Return the page's path in the report's folder."""
        return f"appendix/{self.name}.md"


APPENDIX = (
    AppendixPage(
        "compiling",
        "What compiling does to the gap of the same loop",
        "eager and compiled, both unrolled",
        lambda v: v["compiling"] is not None and bool(v["compiling"]["same"]),
    ),
    AppendixPage("gaps", "Gaps by workload and pass", "every ratio with its times", lambda v: bool(v["sections"])),
    AppendixPage(
        "steps",
        "Each gap as the product of its steps",
        "out of the loop, one call, one product",
        lambda v: v["decomposition"] is not None,
    ),
    AppendixPage(
        "frameworks",
        "Framework against framework, with more threads",
        "the fastest program of each",
        lambda v: v["frameworks"] is not None and any(v["frameworks"]["others"].values()),
    ),
    AppendixPage("evidence", "What one call does", "products, kernels, fusions", lambda v: bool(v["sections"])),
    AppendixPage(
        "libraries",
        "Which library multiplies, at what rate",
        "with the line that proves it",
        lambda v: bool(v["libraries"]),
    ),
    AppendixPage(
        "predictions", "Costs, sizes and predictions", "what each form adds", lambda v: v["prediction"] is not None
    ),
    AppendixPage("prototypes", "Prototypes", "what a framework marks as one", lambda v: bool(v["prototypes"])),
    AppendixPage("identity", "Do all compute the same?", "errors against the oracle", lambda v: True),
    AppendixPage("controls", "The control", "the batched arm against itself", lambda v: True),
    AppendixPage(
        "fronts",
        "Time against peak memory",
        "every form, and which are on the front",
        lambda v: v["fronts"] is not None and bool(v["fronts"]["tables"]),
    ),
    AppendixPage(
        "nodes", "Shards and nodes", "whether a node disagrees with the others", lambda v: v["nodes"] is not None
    ),
    AppendixPage("memory", "Does the allocator decide?", "page faults", lambda v: bool(v["memory"])),
    AppendixPage("samples", "What the samples were like", "drift, modes, outliers, overheads", lambda v: True),
    AppendixPage("first-calls", "What one first call costs", "and when it breaks even", lambda v: bool(v["sections"])),
    AppendixPage("not-measured", "What was not measured, and why", "each kind of cell", lambda v: True),
    AppendixPage(
        "experiments",
        "Experiments beside this run",
        "what the scripts found",
        lambda v: bool(v["idiomatic"] or v["kills"] or v["apart"]),
    ),
    AppendixPage("settings", "Method and settings", "of this run", lambda v: True),
)


def render_pages(variables: Row) -> Pages:
    """Return every page of a report, the first one first."""
    appendix = [page for page in APPENDIX if page.is_needed(variables)]
    variables = variables | {"appendix": appendix, "PROBLEMS": PROBLEMS}
    first = {FIRST: render(f"{FIRST}.j2", variables)}
    return first | {page.path: render(f"{page.path}.j2", variables) for page in appendix}


def render(template: str, variables: Row) -> str:
    """Render a template of this package with the given variables."""
    return _environment().get_template(template).render(variables)


@cache
def _environment() -> Environment:
    """Return what the templates are compiled in, once in a process."""
    return Environment(
        loader=PackageLoader("harness.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
