"""A study: its workloads, its file, its flags and its sweep; and what is refused in a sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.study.study import CALIBRATING, NAMED, SCALES, Study, Workload, load_study, parse_workload, points_around
from tests.analysis.test_forecast import BOOK


def test_a_sweep_changes_one_size_at_a_time_and_begins_with_fewer_steps():
    points = points_around(BOOK)
    assert [point.name for point in points[:CALIBRATING]] == ["book-centre", "book-T5"]
    for point in points[1:]:
        changed = [size for size in "BTIHO" if getattr(point, size) != getattr(BOOK, size)]
        assert len(changed) == 1
        assert point.name == f"book-{changed[0]}{getattr(point, changed[0])}"
    assert {"book-B1", "book-T80", "book-H400", "book-O1000"} <= {point.name for point in points}
    assert len({point.name for point in points}) == len(points) == 13


def test_points_that_no_workload_can_have_are_left_out():
    points = points_around(Workload(name="w", B=1, T=1, I=1, H=1, O=65536))
    assert {point.O for point in points} == {65536}
    assert all(point.B >= 1 for point in points)
    assert len({point.T for point in points[:CALIBRATING]}) == 2


def test_a_study_of_all_has_a_sweep_and_others_where_they_ask_for_it():
    assert load_study(None, None, {}).swept == points_around(BOOK)
    assert load_study(None, None, {"frameworks": ["torch"]}).swept == points_around(BOOK)
    assert load_study(None, None, {"sweep": "none"}).swept == []
    assert load_study(None, None, {"workloads": ["vocab"]}).swept == load_study(None, "quick", {}).swept == []
    assert len(load_study(None, None, {"sweep": "B=2,T=8,I=1,H=4,O=1"}).swept) > 10
    with pytest.raises(UsageError, match="did you mean book"):
        load_study(None, None, {"sweep": "bok"})
    twice = {"name": "book-T5", "B": 1, "T": 5, "I": 1, "H": 4, "O": 1}
    with pytest.raises(UsageError, match="book-T5 has the name of a point of the sweep"):
        load_study(None, None, {"workloads": [twice], "sweep": "book"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bok", "did you mean book"),
        ("B=0,T=1,I=1,H=1,O=1", "greater than or equal to 1"),
        ("B=-1,T=1,I=1,H=1,O=1", "not a whole number"),
        ("B=1,T=1,I=1,H=1", "lacks O"),
        ("B=1,B=1,T=1,I=1,H=1,O=1", "twice"),
        ("B=1,T=1,I=1,H=1,O=1,cell=rnn_tan", "did you mean rnn_tanh"),
        ("B=1,T=1,I=1,H=1,Q=1", "unknown size"),
    ],
)
def test_workloads_that_can_not_be(text, why):
    with pytest.raises(UsageError, match=why):
        load_study(None, None, {"workloads": [text]})


def test_sizes_make_a_workload():
    found = parse_workload("B=7,T=300,I=2,H=64,O=1")
    assert (found.B, found.T, found.I, found.H, found.O, found.cell) == (7, 300, 2, 64, 1, "rnn_tanh")
    assert parse_workload("book") == NAMED["book"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("BTIHO=,0123456789-. cel_rntahu"), max_size=40))
def test_any_text_is_a_workload_or_a_sentence(text):
    try:
        said = load_study(None, None, {"workloads": [text]}).workloads[0]
    except UsageError as refused:
        said = str(refused)
    assert isinstance(said, Workload) or "\n" not in said.strip()


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("framework = ['tf']", "unknown key"),
        ('"a\\nb" = 1', r"a\\nb: unknown key"),
        ("processes = '3'", "valid integer"),
        ("processes = 0", "greater than or equal to 1"),
        ("projections = ['in_lop']", "did you mean in_loop"),
        ("passes = []", "empty"),
        ("passes = ['train', 'train']", "twice"),
        ("label = 'slow'", "label must be one of"),
        ("= 3", "not TOML"),
        ("weights = ''", "weights is given with nothing in it"),
        ("inputs = ' '", "inputs is given with nothing in it"),
        ("sweep = ''", "sweep is given with nothing in it"),
        ("frameworks = ['']", "frameworks is given with nothing in it"),
        ("workloads = ['book', '']", "workloads is given with nothing in it"),
        ("threads = ['one']", "threads: takes 'all' and whole numbers"),
        ("threads = [0]", "threads: takes 'all' and whole numbers"),
        ("threads = [true]", "threads: takes 'all' and whole numbers"),
        ("workloads = [{name = 'a', B = 1}]", "workloads.T: Field required"),
        (
            "workloads = [{name = 'a', B = 1.0, T = 1, I = 1, H = 1, O = 1}]",
            "workloads.B: Input should be a valid integer",
        ),
        (
            "workloads = [{name = 'a', B = true, T = 1, I = 1, H = 1, O = 1}]",
            "workloads.B: Input should be a valid inte",
        ),
        (
            "workloads = [{name = 'a', B = '1', T = 1, I = 1, H = 1, O = 1}]",
            "workloads.B: Input should be a valid inte",
        ),
        ("workloads = [{name = 'a', B = 70000, T = 1, I = 1, H = 1, O = 1}]", "workloads.B: Input should be less than"),
        (
            "workloads = [{name = 'a', B = 1, T = 1, I = 1, H = 1, O = 1, q = 1}]",
            "unknown key; the keys are name, B, T",
        ),
        ("[[workloads]]\nname = 'a'\n[[workloads]]\nname = 'b'", "workloads.B: Field required"),
        ("[study]\nseed = 1", "study: unknown key"),
        ("seed = 2020-01-01", "seed: Input should be a valid integer"),
        ("seed = " + "9" * 5000, "not TOML: Exceeds the limit"),
        ("seed = " + "[" * 5000, "nested too deeply"),
        ("budget_s = nan", "budget_s: "),
        ("#" * 2_000_000, "no study file: it has more than"),
    ],
)
def test_study_files_that_can_not_be(toml, why, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(toml)
    with pytest.raises(UsageError, match=why):
        load_study(path, None, {})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("processes = 3".encode("utf-16"), "which is UTF-8 text"),
        ("processes = 3".encode("utf-32"), "which is UTF-8 text"),
        (b"a = '\xff'", "which is UTF-8 text"),
        (b"\x00" * 10, "not TOML"),
    ],
)
def test_study_files_of_other_bytes(content, why, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=why):
        load_study(path, None, {})


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfprocesses = 3\n", b"\xef\xbb\xbfprocesses = 3\r\nseed = 1\r\n", b"seed = 1\rprocesses = 3"],
    ids=["byte order mark", "and CRLF", "CR"],
)
def test_study_files_as_other_editors_write_them(content, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    assert load_study(path, None, {}).processes == 3


def test_a_folder_is_no_study_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_study(tmp_path, None, {})


def test_no_limit_can_be_written_in_toml(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("budget_s = inf")
    assert load_study(path, None, {}).budget_s is None


def test_a_flag_for_the_scale_overrides_the_files_label(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("label = 'rigorous'")
    assert load_study(path, None, {}).label == "rigorous"
    assert load_study(path, "quick", {}).label == "quick"


def test_flags_override_the_file_and_the_file_overrides_the_scale(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("processes = 4\nrounds = 9\nworkloads = ['book', 'B=1,T=2,I=3,H=4,O=5']\n")
    study = load_study(path, "quick", {"rounds": 8})
    assert (study.processes, study.rounds, study.budget_s) == (4, 8, SCALES["quick"]["budget_s"])
    assert [w.T for w in study.workloads] == [20, 2]
    assert Study(sweep="book", peaks=True) == load_study(None, None, {})
