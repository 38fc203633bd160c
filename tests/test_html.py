"""Reports in HTML: what is shown, and that texts cannot become markup."""

import re
from html.parser import HTMLParser

from rerank_actor.html import Page, format_number, make_bars, make_figures, make_histogram, make_table

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
    )
    return page.render()


def test_page_is_well_formed_and_texts_stay_texts() -> None:
    page = make_page()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.texts.count(UNSAFE) == 10
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
    assert re.findall(r">(-?[\d.]+)</text>", shown) == ["0", "0.25", "0.5", "0.75", "1"]


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
