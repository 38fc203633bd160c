"""Reports in HTML: what is shown, and that texts cannot become markup."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from rerank_actor.outputs.report.html import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Page,
    format_number,
    list_ticks,
    make_bars,
    make_code,
    make_curves,
    make_figures,
    make_funnel,
    make_histogram,
    make_table,
    make_timeline,
    smoothen,
)

UNSAFE = "<b onload=x>\"&'"


class Tags(HTMLParser):
    """Collects tags and texts, and fails on one that is closed wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "line", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def make_page() -> str:
    page = Page(UNSAFE, about=UNSAFE)
    page.add(
        UNSAFE,
        make_figures({UNSAFE: UNSAFE}),
        make_table([UNSAFE, "n"], [[UNSAFE, 1234], [UNSAFE * 9, 0.5]]),
        make_bars({UNSAFE: 3, "none": 0}),
        make_histogram({UNSAFE: {0: 1, 99: 3}, "two": {-20: 4}}, 0.01),
        make_histogram({}, 1),
        make_funnel(UNSAFE, 100, [(UNSAFE, 40, 60), ("b", 60, 0)]),
        make_timeline([1.0, 0.0, 5.0], [UNSAFE, "b"], UNSAFE, most=9.0, marks=[(0.5, UNSAFE, UNSAFE)]),
        make_code(UNSAFE),
    )
    return page.render()


def test_page_is_well_formed_and_texts_stay_texts() -> None:
    page = make_page()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.texts.count(UNSAFE) == 16
    assert "<b onload" not in page


def test_page_needs_no_network_and_no_script_and_follows_the_reader() -> None:
    page = make_page()
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_histogram_shows_shares_over_one_axis() -> None:
    shown = make_histogram({"left": {0: 10}, "right": {9: 1}}, 0.1)
    left, right = re.findall(r'd="([^"]+)"', shown)
    heights = [[float(top) for top in re.findall(r"V([\d.]+)H", path)] for path in (left, right)]
    assert heights[0][0] == heights[1][-1] == 8.0, "each is all of its kind"
    assert set(heights[0][1:]) == set(heights[1][:-1]) == {196.0}
    assert re.findall(r">(-?[\d.]+)</text>", shown) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert re.findall(r">(-?[\d.]+ %)</text>", shown) == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
    said = re.findall(r"<title>(.*?)</title>", shown)
    assert len(said) == 10 and said[0] == "0 to 0.1: left 100 %, right 0 %"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-12.5, 17.25, [-10, 0, 10]),
        (0, 0.0312, [0, 0.01, 0.02, 0.03]),
        (0, 8_700, [0, 2000, 4000, 6000, 8000]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert list_ticks(low, high) == ticks


def test_bars_are_to_one_scale() -> None:
    assert re.findall(r"width:([\d.]+)%", make_bars({"a": 200, "b": 50})) == ["100.00", "25.00"]


def test_numbers_are_as_people_read_them() -> None:
    assert [format_number(value) for value in (1234567, 2.0, 0.123456, -3.14159, 54321.5)] == [
        "1,234,567",
        "2",
        "0.1235",
        "-3.142",
        "54,322",
    ]


def test_curves_stay_in_their_picture_and_escape_their_names() -> None:
    picture = make_curves([3.0, 1.0, -1.0], {"<b>": [0.0, 0.5, 1.0], "other": [1.0, 1.0, 0.25]}, mark=1.0)
    root = ET.fromstring(f"<div>{picture}</div>")
    lines = [one.get("points") or "" for one in root.iter("polyline")]
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.split()]
    assert len(points) == 6
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)
    assert points[0] == (WIDTH - RIGHT, HEIGHT - BOTTOM)
    assert points[2] == (LEFT, TOP)
    assert "<b>" not in picture
    assert "no values" in make_curves([], {})


def test_funnel_narrows_from_what_there_was_to_what_is_left() -> None:
    shown = make_funnel("all", 200, [("one", 150, 50), ("none", 0, 50), ("last", 49, 1)])
    assert re.findall(r"width:([\d.]+)%", shown) == ["100.00", "25.00", "25.00", "0.50"]
    assert re.findall(r">(\u2212\d+)<", shown) == ["\u2212150", "\u22120", "\u221249"]


def test_timeline_is_smooth_and_marks_stand_in_it() -> None:
    assert smoothen([0, 0, 5, 0, 0, 10]) == [5 / 3, 5 / 4, 1, 3, 15 / 4, 10 / 3]
    picture = make_timeline([0.0, 2.0], ["a", "b"], "pairs", most=8.0, marks=[(1.0, "!", "<died>")])
    root = ET.fromstring(f"<div>{picture}</div>")
    [mark] = [one for one in root.iter("line") if one.get("class") == "mark"]
    assert float(mark.get("x1") or 0) == WIDTH - RIGHT
    assert "&lt;died&gt;" in picture and max(map(float, re.findall(r"V([\d.]+)H", picture))) <= HEIGHT - BOTTOM
    assert make_timeline([0.0], ["a"], "pairs") == make_timeline([], [], "x")


def test_nothing_is_wider_than_a_phone_by_construction() -> None:
    """Long words break, code goes on in the next line, tables scroll in themselves, pictures are as wide as the page."""
    page = make_page()
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "overflow-wrap: break-word" in style and ".scroll { overflow-x: auto" in style
    assert re.search(r"pre \{[^}]*white-space: pre-wrap;\s+overflow-wrap: anywhere", style)
    assert "svg { display: block; width: 100%; height: auto; }" in style
    assert len(re.findall("<table", page)) == len(re.findall('<div class="scroll"><table', page))
    assert not re.search(r"[^-]width: ?\d{3,}px", page)
