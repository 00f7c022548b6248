"""report.html: one file with all that the pages say, whose tables sort and filter, and which asks the network nothing.

The pages are made up, and the figures as matplotlib writes them. Tests of a browser use Debian's Chromium; without it
they are skipped, unless FUSEGAP_BROWSER is set: then it must be here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from harness import report
from harness.analysis.changes import CHANGES
from harness.analysis.gaps import GAPS
from harness.analysis.tables import EVIDENCE, IDENTITY, TIMES
from harness.cli import app as cli
from harness.report import html
from harness.report.data_tables import data_tables, trim
from harness.report.style import draw_styled
from tests.made import lines
from tests.report.test_several import block, put

ROOT = Path(__file__).parents[2]
LARGEST = ROOT / "reports" / "2026-11-26-amd-epyc-2-cores"
MOST_BYTES = 8_000_000
PAGES = {
    "report.md": """# The title <of> all

Text with `code`, <b>no tag</b> and [a page](appendix/gaps.md), [a part](appendix/gaps.md#a-part),
[a file](gaps.csv), [a site](https://example.org/x).

| what | ratio | time | rounds |
| --- | --- | --- | --- |
| a | **1.24 [1.10, 1.40]** | 3.4 ms | 12 × 5 |
| b | 0.90 [0.80, 1.02] | 251 µs | 5 × 100 |
| c | – | – | – |
| d | 10 [9, 11] | 1.2 s | 1 × 9 |

![one figure](figures/one.png)
""",
    "appendix/gaps.md": """# Gaps

[Back to the report](../report.md)

## A part

![the same figure](../figures/one.png)

![another](../figures/two.png)

## A part

| | |
| --- | --- |
| name | value |
""",
}


def draw():
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [1, 2], marker="o")
    axes.set_title("a title")
    return figure


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """A report's folder with two figures."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "figures").mkdir()
    for name in ("one", "two"):
        draw_styled(draw, folder / "figures" / name)
    return folder


def row(columns, **values):
    usual = {"framework": "jax", "device": "cpu", "threads": 1, "execution": "xla", "precision": "fp32"}
    usual |= {"workload": "book", "pass": "forward", "recurrence": "scan", "projection": "batched"}
    return {name: (usual | values).get(name) for name in columns}


def made_tables():
    """Tables with 60 gaps, of which two have an interval that does not hold 1 and one has none."""
    usual = {"contender": "in_loop", "baseline": "batched", "processes": 5, "rounds": 41.5, "trusted": True, "needs": 7}
    ratios = [(1.0769, 1.0101, 1.1512), (0.5, 0.4, 0.6), (2.0, float("nan"), float("nan"))]
    ratios += [(1 + number / 1000, 0.5, 1.5) for number in range(57)]
    gaps = [
        row(
            GAPS,
            **usual,
            **dict(zip(("ratio", "ci_low", "ci_high"), values, strict=True)),
            framework=("jax", "torch", "tf")[number % 3],
            threads=1 + number % 2,
            verdict=("slower", "faster")[number] if number < 2 else "inconclusive",
            direction=("longer", "shorter")[number] if number < 2 else "unknown",
        )
        for number, values in enumerate(ratios)
    ]
    times = [
        row(TIMES, process=0, median_s=0.001, first_call_s=0.5, status="ok"),
        row(TIMES, process=1, median_s=0.004, status="ok"),
        row(TIMES, process=2, status="failed", reason="</script><i>it broke</i>"),
        row(TIMES, projection="in_loop", status="not_reached", reason="no time"),
    ]
    return SimpleNamespace(
        gaps=pd.DataFrame(gaps),
        changes=pd.DataFrame(columns=CHANGES),
        times=pd.DataFrame(times, columns=TIMES),
        evidence=pd.DataFrame([row(EVIDENCE, products=41, kernel_names="1×<add>")]).astype({"products": "Int64"}),
        identity=pd.DataFrame([row(IDENTITY, rel_error=3.118671e-16, bitwise_equal_to_batched=True)]),
    )


@pytest.fixture(scope="module")
def text(figures):
    return html.make_html(PAGES, figures, data_tables(made_tables()))


class Elements(HTMLParser):
    """The elements of an HTML file, as (tag, attributes), and the text of its style and script elements."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def loaded(text):
    """What a browser would load: addresses in attributes and in styles. A link that a reader clicks is none."""
    found = [
        attributes[name]
        for tag, attributes in Elements(text).elements
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action")
        if tag != "a" and attributes.get(name)
    ]
    styles = " ".join(re.findall(r"<style>.*?</style>|style=\"[^\"]*\"|url\([^)]*\)", text, re.S))
    return [*found, *re.findall(r"url\(([^)#][^)]*)\)|@import", styles)]


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("1.24 [1.10, 1.40]", 1.24),
        ("0.5 (one process)", 0.5),
        ("3.4 ms", 0.0034),
        ("251 µs", 0.000251),
        ("-3.1 µs [-4, 5 µs] (+9%)", -3.1e-6),
        ("952 µs, 1.7 [0.4, 6.4], xla scan in_loop", 0.000952),
        ("2 s", 2),
        ("12 × 5", 60),
        ("5 × 14, 478 more", 70),
        ("1×[50×100×1]", 1),
        ("60 · 60 · 41", 60),
        ("1,234 calls", 1234),
        ("10 of 12", 10),
        ("±7.6%", 0.076),
        ("⚠ 1.2", 1.2),
        ("2.3e-15", 2.3e-15),
        ("421 kB", 421e3),
        ("1.23 M · 2", 1.23e6),
        ("5 minutes", 300),
        ("–", None),
        ("– · – · 9", None),
        ("", None),
        ("jax eager, 1 thread", None),
    ],
)
def test_a_cell_sorts_by_its_first_number_in_its_unit(said, value):
    assert html.sort_value(said) == value


def test_columns_of_numbers_have_what_they_sort_by_and_the_bold_is_kept(text):
    headings = [attributes["data-type"] for attributes in Elements(text).of("th")]
    assert headings == ["html", "measure", "measure", "measure", "html", "html"]
    orders = [attributes.get("data-order") for attributes in Elements(text).of("td")]
    assert orders[:12] == [None, "1.24", "0.0034", "60", None, "0.9", "0.000251", "500", None, "", "", ""]
    assert '<td data-order="1.24"><strong>1.24 [1.10, 1.40]</strong></td>' in text


def test_pages_are_sections_and_links_between_them_lead_there(text):
    elements = Elements(text)
    assert "<title>The title &lt;of&gt; all</title>" in text
    assert [attributes["id"] for attributes in elements.of("section")] == ["page-report", "page-gaps", "data"]
    links = [attributes["href"] for attributes in elements.of("a")]
    assert {"#page-gaps", "#page-report", "#data-gaps", "gaps.csv", "https://example.org/x"} <= set(links)
    for link in ('"#page-gaps">a page', '"#page-gaps--a-part">a part', '"#page-report">Back to the report'):
        assert f"<a href={link}</a>" in text
    assert [link[1:] for link in links if link.startswith("#") and link[1:] not in elements.ids()] == []
    assert {"page-gaps--a-part", "page-gaps--a-part-1"} <= set(elements.ids())


def test_no_id_is_there_twice_and_every_reference_in_a_figure_has_its_own(text, figures):
    ids = Elements(text).ids()
    assert len(ids) == len(set(ids))
    assert len(Elements(text).of("svg")) == 3
    references = re.findall(r"(?:url\(#|xlink:href=\"#)([^\")]+)", text)
    assert references
    assert set(references) <= set(ids)
    both = "".join((figures / "figures" / f"{name}.svg").read_text() for name in ("one", "two"))
    raw = re.findall(r'\bid="([^"]+)"', both)
    assert len(raw) > len(set(raw)), "matplotlib no longer repeats ids, and nothing is seen here"


def test_nothing_is_loaded_and_the_file_says_so(text):
    assert set(loaded(text)) == {"data:,", *(link for link in loaded(text) if link.startswith("#"))}
    assert "default-src 'none'" in text
    for fault in ('<img src="x.png">', '<link href="//x/y.css">', "<style>a{background:url(x.png)}</style>"):
        assert set(loaded(text + fault)) - set(loaded(text))


def test_tags_in_a_pages_text_are_text(text):
    assert "&lt;b&gt;no tag&lt;/b&gt;" in text


def test_a_figure_that_was_not_drawn_is_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one\.svg"):
        html.make_html(PAGES, tmp_path)


def test_the_same_pages_give_the_same_bytes(text, figures):
    assert html.make_html(PAGES, figures, data_tables(made_tables())) == text


def data_of(text, name):
    (content,) = re.findall(rf'<script type="application/json" id="rows-{name}">(.*?)</script>', text, re.S)
    data = json.loads(content)
    return [dict(zip(data["columns"], values, strict=True)) for values in data["rows"]], data


def test_complete_tables_have_trimmed_digits_and_the_bold_of_intervals_that_do_not_hold_1(text):
    rows, data = data_of(text, "gaps")
    assert data["filters"] == ["framework", "execution", "workload", "pass", "threads", "verdict"]
    assert [gap["ratio"] for gap in rows[:4]] == [
        ["**1.08 [1.01, 1.15]**", 1.077],
        ["**0.5 [0.4, 0.6]**", 0.5],
        ["2.00 (one process)", 2],
        ["1.0 [0.5, 1.5]", 1],
    ]
    assert rows[0] | {"rounds": 41.5, "A/A holds 1": "yes", "processes needed": 7} == rows[0]
    assert "In all rows: device cpu, precision fp32, baseline batched." in text
    assert data_of(text, "identity")[0][0]["rel error"] == 3.12e-16
    assert data_of(text, "evidence")[0][0]["products"] == 41
    assert "rows-changes" not in text, "a table without rows"


def test_a_programs_processes_are_one_row_with_all_that_befell_them(text):
    (program,), data = data_of(text, "times")
    assert program["time"] == ["2.5 ms", 0.0025]
    assert (program["shortest"], program["longest"]) == (["1 ms", 0.001], ["4 ms", 0.004])
    assert program["processes"] == 2
    assert (program["status"], program["reason"]) == ("ok; failed", "</script><i>it broke</i>")
    assert data["filters"][-1] == "status"


def test_what_is_not_finite_is_missing():
    assert [trim(value, 3) for value in (float("inf"), float("nan"), 0.12345, 12345.0)] == [None, None, 0.123, 12300]


def test_no_text_ends_a_script(text):
    """A reason of the made-up times tries to."""
    assert "<i>it broke" not in text
    scripts = Elements(text).of("script")
    assert [script.get("type") for script in scripts] == ["application/json"] * 4 + ["module"] * 2


def test_the_library_is_read_and_not_imported():
    code = "import sys, harness.report.html as html; html.datatables_source(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "'harness.report.html'" in done.stdout
    assert "'itables'" not in done.stdout


@pytest.mark.parametrize("found", [None, SimpleNamespace(submodule_search_locations=None)])
def test_without_the_library_there_is_a_clear_error(found, monkeypatch):
    monkeypatch.setattr(html, "find_spec", lambda name: found)
    with pytest.raises(ModuleNotFoundError, match="itables"):
        html.datatables_source.__wrapped__()


def test_another_library_than_the_one_it_was_written_for_is_refused(tmp_path, monkeypatch):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "dt_bundle.js").write_text("export{a as DataTable};")
    monkeypatch.setattr(html, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(RuntimeError, match="exports no jQuery"):
        html.datatables_source.__wrapped__()


def test_a_report_of_several_leads_to_the_report_of_each(figures):
    pages = {"report.md": "# Two runs\n\n- [a](a/report.md)\n- [b](b/report.md#part)\n"}
    links = [attributes["href"] for attributes in Elements(html.make_html(pages, figures)).of("a")]
    assert links == ["#page-report", "a/report.html", "b/report.html"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run's folder: a few blocks of committed records."""
    heading, *records = lines(ROOT / "reports" / "2026-11-24-amd-epyc-2-cores")
    return put(tmp_path_factory.mktemp("runs") / "run", heading, filter(block, records))


def test_a_run_has_the_file_unless_it_is_left_out(small_run, tmp_path):
    """Also where an earlier report had one."""
    path = report.write(small_run, tmp_path / "out").parent / "report.html"
    made = path.read_text()
    pages = sorted(page.stem for page in (tmp_path / "out").rglob("*.md"))
    sections = [attributes["id"] for attributes in Elements(made).of("section")]
    assert sorted(sections) == sorted(["data", *(f"page-{name}" for name in pages)])
    assert set(loaded(made)) == {"data:,", *(link for link in loaded(made) if link.startswith("#"))}
    ids = Elements(made).ids()
    assert len(ids) == len(set(ids))
    assert len(data_of(made, "gaps")[0]) == len(pd.read_csv(tmp_path / "out" / "gaps.csv"))
    done = CliRunner().invoke(cli.app, ["report", str(small_run), "--out", str(tmp_path / "out"), "--no-html"])
    assert done.exit_code == 0
    assert not path.exists()


@pytest.mark.parametrize("flags", [[], ["--no-html"]])
def test_a_measured_run_has_the_file_unless_it_is_left_out(flags, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(report, "write", lambda folder, html: written.append(html) or folder)
    monkeypatch.setattr(cli, "_measure_and_report", lambda files, measure: ([], files.write(files.out)))
    monkeypatch.setattr("harness.records.store.budgets", lambda records: [0])
    CliRunner().invoke(cli.app, ["run", "--processes", "1", *flags, "--out", str(tmp_path)])
    assert written == [not flags]


# With a browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, which stores its console and its requests."""
    if not (CHROMIUM and DRIVER):
        reason = "Debian's chromium and chromium-driver are not installed"
        pytest.fail(reason) if os.environ.get("FUSEGAP_BROWSER") else pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))  # the path keeps selenium from fetching one
    yield driver
    driver.quit()


def show(driver, file, width=1280, scheme="light", media=""):
    """Open a file in a window of a width, with a colour scheme, and forget what the browser logged before.

    It waits for the page's own word that its program has ended: on a loaded machine the driver's `get` came back before
    there was a row (seen in CI). Raises TimeoutException where the word does not come.
    """
    from selenium.webdriver.support.ui import WebDriverWait

    window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature], "media": media})
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(file.as_uri())
    ready = "return document.documentElement.dataset.ready === 'yes'"
    WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(ready))


def requests(driver):
    """What the page asked for besides itself and what it holds: address -> what blocked it, "" where nothing did."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    failed = [m["params"] for m in messages if m["method"] == "Network.loadingFailed"]
    blocked = {failure["requestId"]: failure.get("blockedReason", "") for failure in failed}
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = {request["request"]["url"]: blocked.get(request["requestId"], "") for request in sent}
    inside = ("data:", "chrome:")
    return {u: why for u, why in asked.items() if not u.startswith(inside) and not u.endswith("/report.html")}


def errors(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def column(driver, table, number):
    """The texts that a table shows in a column."""
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].innerText)"
    )
    return driver.execute_script(script, table, number)


def click_heading(driver, table, number):
    driver.execute_script("document.querySelectorAll(arguments[0] + ' thead th')[arguments[1]].click()", table, number)


def overflow(driver):
    """How many pixels the page is wider than the window."""
    return driver.execute_script("const page = document.documentElement; return page.scrollWidth - page.clientWidth")


def background(driver):
    """The mean of the page's background colour, from 0 to 255."""
    colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    channels = [int(channel) for channel in re.findall(r"\d+", colour)[:3]]
    return sum(channels) / 3


def choose(driver, table, name, value):
    script = """const list = document.querySelector(arguments[0]).closest('.dt-container')
        .querySelector(`select[data-column="${arguments[1]}"]`);
        list.value = arguments[2]; list.dispatchEvent(new Event('change'));"""
    driver.execute_script(script, table, name, value)


def type_filter(driver, table, text):
    script = """const field = document.querySelector(arguments[0]).closest('.dt-container')
        .querySelector('.dt-search input'); field.value = arguments[1]; field.dispatchEvent(new Event('input'));"""
    driver.execute_script(script, table, text)


@pytest.fixture
def page(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


GAPS_TABLE, SMALL = 'table[data-source="rows-gaps"]', "#page-report table"
RATIO = 7  # its place in the table of gaps


@pytest.mark.slow
def test_in_a_browser_a_click_on_a_heading_sorts(browser, page):
    show(browser, page)
    assert column(browser, SMALL, 0) == ["a", "b", "c", "d"], "before a click, the report's order"
    for number, rising in ((1, "badc"), (2, "badc"), (3, "dabc")):
        click_heading(browser, SMALL, number)
        assert column(browser, SMALL, 0) == list(rising)
        click_heading(browser, SMALL, number)
        assert column(browser, SMALL, 0) == [*rising[:3][::-1], "c"], "what is missing stays last"
    click_heading(browser, GAPS_TABLE, RATIO)
    assert column(browser, GAPS_TABLE, RATIO)[0] == "0.5 [0.4, 0.6]"
    click_heading(browser, GAPS_TABLE, RATIO)
    assert column(browser, GAPS_TABLE, RATIO)[:2] == ["2.00 (one process)", "1.08 [1.01, 1.15]"]
    bold = browser.execute_script(f"return document.querySelectorAll('{GAPS_TABLE} strong').length")
    assert bold == 1, "of the rows shown"
    assert browser.execute_script("return document.querySelectorAll('main table i, main table add').length") == 0


@pytest.mark.slow
def test_in_a_browser_lists_and_words_choose_rows(browser, page):
    show(browser, page)
    type_filter(browser, SMALL, "251")
    assert column(browser, SMALL, 0) == ["b"]
    info = f"return document.querySelector('{GAPS_TABLE}').closest('.dt-container').querySelector('.dt-info').innerText"
    assert "of 60" in browser.execute_script(info)
    choose(browser, GAPS_TABLE, "framework", "torch")
    assert set(column(browser, GAPS_TABLE, 0)) == {"torch"}
    choose(browser, GAPS_TABLE, "verdict", "faster")
    assert column(browser, GAPS_TABLE, RATIO) == ["0.5 [0.4, 0.6]"]
    choose(browser, GAPS_TABLE, "verdict", "")
    choose(browser, GAPS_TABLE, "framework", "")
    choose(browser, GAPS_TABLE, "threads", "2")
    assert "of 30" in browser.execute_script(info)
    type_filter(browser, GAPS_TABLE, "shorter")
    assert column(browser, GAPS_TABLE, RATIO) == ["0.5 [0.4, 0.6]"]


@pytest.mark.slow
def test_in_a_browser_no_error_and_no_request(browser, page, text):
    show(browser, page)
    assert (requests(browser), errors(browser)) == ({}, [])
    planted = "http://127.0.0.1:9/planted.png"
    page.write_text(text.replace("<main>", f'<main><img src="{planted}">'))
    show(browser, page)
    assert requests(browser) == {planted: "csp"}, "the file's policy forbids it"
    assert "planted.png" in " ".join(errors(browser))
    page.write_text(page.read_text().replace("Content-Security-Policy", "x-none"))
    show(browser, page)
    assert requests(browser) == {planted: ""}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser_the_page_is_no_wider_than_the_window(browser, page, text, width):
    show(browser, page, width)
    assert overflow(browser) == 0
    boxes = "return Math.max(...[...document.querySelectorAll('table')].map(t => t.scrollWidth))"
    assert browser.execute_script(boxes) > width / 2, "there are tables that could have been too wide"
    page.write_text(text.replace("<main>", '<main><div style="width: 2000px">wide</div>'))
    show(browser, page, width)
    assert overflow(browser) > 0


@pytest.mark.slow
def test_in_a_browser_dark_is_dark_and_figures_stay_on_a_light_card(browser, page):
    show(browser, page, scheme="dark")
    assert background(browser) < 60
    card = browser.execute_script("return getComputedStyle(document.querySelector('.figure')).backgroundColor")
    assert card == "rgb(255, 255, 255)"
    show(browser, page)
    assert background(browser) > 220


@pytest.mark.slow
def test_in_a_browser_paper_has_every_row_and_no_controls(browser, page):
    show(browser, page, media="print")
    rows = f"return document.querySelectorAll('{GAPS_TABLE} tbody tr').length"
    assert browser.execute_script(rows) == 25
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(rows) == 60
    visible = """return [...document.querySelectorAll('nav, input, select, button')]
        .filter(e => e.getClientRects().length).length"""
    assert browser.execute_script(visible) == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(rows) == 25
    show(browser, page)
    assert browser.execute_script(visible) > 0


@pytest.mark.slow
def test_the_largest_report_is_small_enough_and_whole_in_a_browser(browser, tmp_path):
    path = report.write(LARGEST, tmp_path / "out").parent / "report.html"
    assert path.stat().st_size <= MOST_BYTES
    for width in WIDTHS:
        show(browser, path, width)
        assert (overflow(browser), requests(browser), errors(browser)) == (0, {}, [])
    shown = (
        f"return document.querySelector('{GAPS_TABLE}').closest('.dt-container').querySelector('.dt-info').innerText"
    )
    gaps = pd.read_csv(path.parent / "gaps.csv")
    assert f"of {len(gaps):,}" in browser.execute_script(shown)
