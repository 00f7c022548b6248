"""The example's page is what its script gives; and what a cell may hold."""

import shutil
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from scripts import example_page

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def without_windows(monkeypatch):
    monkeypatch.chdir(ROOT)
    mpl.use("agg")


def made(folder, text):
    script = folder / "made.py"
    script.write_text(text)
    return example_page.make_page(script, folder)


def test_the_example_s_page_is_what_its_script_gives(tmp_path):
    docs = ROOT / "docs"
    page = example_page.make_page(docs / "example.py", tmp_path)
    assert page == (docs / "example.md").read_text()
    assert (tmp_path / "example.png").read_bytes().startswith(PNG)
    assert (docs / "example.png").read_bytes().startswith(PNG)


def test_another_number_would_be_seen(tmp_path):
    text = (ROOT / "docs" / "example.py").read_text()
    changed = text.replace("& run.gaps.trusted", "")
    assert changed != text
    (tmp_path / "example.py").write_text(changed)
    assert example_page.make_page(tmp_path / "example.py", tmp_path) != (ROOT / "docs" / "example.md").read_text()


def test_the_example_answers_three_questions():
    text = (ROOT / "docs" / "example.md").read_text()
    assert text.count("\n## ") == 3
    assert text.count("\n| --- ") >= 3
    assert text.count("](example.png)") == 1


def test_the_script_writes_page_and_figure_beside_the_example(tmp_path, monkeypatch):
    (tmp_path / "reports").symlink_to(ROOT / "reports")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "example.py", tmp_path / "docs")
    monkeypatch.setattr(example_page, "ROOT", tmp_path)
    monkeypatch.setattr(example_page, "SCRIPT", tmp_path / "docs" / "example.py")
    example_page.main()
    assert (tmp_path / "docs" / "example.md").read_text() == (ROOT / "docs" / "example.md").read_text()
    assert (tmp_path / "docs" / "example.png").exists()


def test_a_cell_shows_its_last_value_and_cells_share_their_variables(tmp_path):
    text = "# %% [markdown]\n# # Title\n#\n#     kept\n\n"
    text += "# %%\nimport pandas\n\na = 1\n\n# %%\npandas.DataFrame({'x|y': [a]})\n"
    code = "```python\nimport pandas\n\na = 1\n```\n\n```python\npandas.DataFrame({'x|y': [a]})\n```"
    assert made(tmp_path, text) == f"# Title\n\n    kept\n\n{code}\n\n| x\\|y |\n| --- |\n| 1 |\n"


def test_a_frame_s_index_is_shown_if_it_has_a_name():
    frame = pd.DataFrame({"x": [1.5]}, index=pd.Index(["a"], name="name"))
    assert example_page.output(frame, ROOT) == "| name | x |\n| --- | --- |\n| a | 1.5 |"


def test_what_a_page_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="a cell gives a int, and a page shows frames and figures"):
        made(tmp_path, "# %%\n1 + 1\n")
    with pytest.raises(ValueError, match="a line stands before the first cell: import os"):
        made(tmp_path, "import os\n# %%\n")
    with pytest.raises(ZeroDivisionError):
        made(tmp_path, "# %%\n1 / 0\n")
