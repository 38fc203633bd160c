"""Reports for people: one HTML file with figures, tables, bars and histograms, that needs no network and no script.

Takes numbers and texts, gives a page; every text is escaped, graphics are inline SVG. Colours follow the reader's light or
dark setting, wide tables scroll in themselves, and a phone shows one column. Knows nothing of scores or jobs.
"""

import html
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

HISTOGRAM_BARS = 48
NUMBER = re.compile(r"[-+$]?[\d,]+(\.\d+)?(e[-+]\d+)?( %| x)?|-")  # as a text; a dash is one that is not known
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 220, 64, 12, 8, 24  # of a picture, and of the margins around its shapes
TICKS = 5  # of an axis, about
SMOOTHED = 2  # steps of a timeline on each side of one
POINTS_TOLD, POINT_WIDTH = 30, 12  # of a curve: points that say their values, and how wide they are to point at

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #60646c; --line: #d9d9e0; --page: #fcfcfd; --card: #f3f4f6;
  --one: #2f6fd0; --two: #d0642f; --three: #2f9d6b; }
@media (prefers-color-scheme: dark) { :root { --text: #edeef0; --soft: #b0b4ba; --line: #43484e; --page: #111113;
  --card: #1d2023; --one: #6aa3ff; --two: #ff9a62; --three: #5fd3a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.figures div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.figures b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin-top: .6rem; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .text { min-width: 14rem; }
.bar { display: grid; grid-template-columns: minmax(8rem, 14rem) 1fr 9rem; gap: .6rem; align-items: center;
  padding: .15rem 0; font-size: .92rem; } .bar i { display: block; height: .9rem; background: var(--one);
  border-radius: .2rem; min-width: 1px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.axis { stroke: var(--soft); } .grid { stroke: var(--line); stroke-dasharray: 2 3; } .mark { stroke: var(--soft); }
.cell { fill: var(--one); stroke: var(--line); }
.hover { fill: transparent; } .hover:hover { fill: var(--soft); fill-opacity: .25; }
details { border-bottom: 1px solid var(--line); padding: .2rem 0; } summary { cursor: pointer; padding: .3rem 0; }
.series { fill-opacity: .3; stroke-width: 1.5; }
.s0 { fill: var(--one); stroke: var(--one); } .s1 { fill: var(--two); stroke: var(--two); }
.s2 { fill: var(--three); stroke: var(--three); }
.curve { fill: none; stroke-width: 2; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin: 0 .35rem 0 .9rem; }
.k0 { background: var(--one); } .k1 { background: var(--two); } .k2 { background: var(--three); }
.funnel i { justify-self: center; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; }
.good { color: var(--three); } .bad { color: var(--two); }
@media (max-width: 40rem) { svg text { font-size: 20px; }
  .bar { grid-template-columns: 1fr 6.5rem; } .bar span:first-child { grid-column: 1 / -1; } }
"""


@dataclass
class Page:
    """A report under way: a title, a line about it, and sections."""

    title: str
    about: str = ""
    blocks: list[str] = field(default_factory=list)

    def add(self, heading: str, *blocks: str) -> None:
        """Add a section of blocks made by the functions below."""
        self.blocks += [f"<h2>{html.escape(heading)}</h2>", *blocks]

    def fold(self, heading: str, note: str, *blocks: str) -> None:
        """Add blocks that are shown when the reader opens them; `note` says what they come to."""
        summary = f'<summary><b>{html.escape(heading)}</b> <span class="soft">{html.escape(note)}</span></summary>'
        self.blocks += [f"<details>{summary}", *blocks, "</details>"]

    def render(self) -> str:
        """Return the page."""
        title = html.escape(self.title)
        about = f'<p class="soft">{html.escape(self.about)}</p>' if self.about else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{about}\n"
            + "\n".join(self.blocks)
            + "\n</body>\n</html>\n"
        )


def make_text(words: str) -> str:
    """Return a paragraph."""
    return f'<p class="soft">{html.escape(words)}</p>'


def make_figures(figures: Mapping[str, str]) -> str:
    """Return the figures that matter most, large, each with its name."""
    tiles = "".join(f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>" for name, value in figures.items())
    return f'<div class="figures">{tiles}</div>'


def make_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; numbers stand to the right, and a column with long texts keeps room for them."""
    kinds = [' class="number"' if rows and _reads_as_number(value) else "" for value in (rows[0] if rows else header)]
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(header, kinds, strict=True))
    body = "".join("<tr>" + "".join(map(_make_cell, row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float)


def _reads_as_number(value: object) -> bool:
    return _is_number(value) or (isinstance(value, str) and NUMBER.fullmatch(value) is not None)


def _make_cell(value: object) -> str:
    text = format_number(value) if _is_number(value) else str(value)
    kind = ' class="number"' if _reads_as_number(value) else ' class="text"' if len(text) > 40 else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def make_bars(values: Mapping[str, int]) -> str:
    """Return a horizontal bar for each value, all on one scale."""
    most = max([1, *values.values()])
    return "".join(
        f'<div class="bar"><span>{html.escape(name)}</span><i style="width:{100 * value / most:.2f}%"></i>'
        f'<span class="number">{value:,}</span></div>'
        for name, value in values.items()
    )


def make_funnel(whole: str, total: int, steps: Sequence[tuple[str, int, int]]) -> str:
    """Return what is left after each step, as bars that narrow towards the end.

    Args:
        whole: what there was before the first step.
        total: how much of it.
        steps: what each is called, what it removed and what it left.
    """
    levels = [(whole, total, ""), *((name, left, f"\u2212{removed:,}") for name, removed, left in steps)]
    most = max(1, *(left for _, left, _ in levels))
    return "".join(
        f'<div class="bar funnel"><span>{html.escape(name)}</span><i style="width:{100 * left / most:.2f}%"></i>'
        f'<span class="number">{left:,} <span class="soft">{removed}</span></span></div>'
        for name, left, removed in levels
    )


def make_code(text: str) -> str:
    """Return a text to copy, with its lines as they are; long ones go on in the next line."""
    return f"<pre>{html.escape(text)}</pre>"


def make_histogram(
    series: Mapping[str, Mapping[int, int]],
    bin_width: float = 1.0,
    *,
    compute_edge: Callable[[float], float] | None = None,
) -> str:
    """Return the shares of up to three distributions over one axis.

    Args:
        series: by name, the number of values in each bin; bin n begins at n times the bin's width.
        bin_width: of all bins.
        compute_edge: where a bin begins, given its number, for bins of other widths.
    """
    compute_edge = compute_edge or (lambda place: place * bin_width)
    used = [number for bins in series.values() for number in bins]
    if not used:
        return make_text("no values")
    first, last = min(used), max(used) + 1
    step = max(1, math.ceil((last - first) / HISTOGRAM_BARS))
    number_of_bars = math.ceil((last - first) / step)
    bars = {name: _gather(bins, first, step, number_of_bars) for name, bins in series.items()}
    most = max(max(shares) for shares in bars.values()) or 1.0
    edges = [compute_edge(first + number * step) for number in range(number_of_bars + 1)]
    shapes = _draw_grid(most, lambda share: f"{100 * share:g} %")
    shapes += "".join(_draw_series(place, shares, most) for place, shares in enumerate(bars.values()))
    shapes += _draw_hover(
        f"{format_tick(low)} to {format_tick(high)}: "
        + ", ".join(f"{name} {100 * shares[number]:.3g} %" for name, shares in bars.items())
        for number, (low, high) in enumerate(itertools.pairwise(edges))
    )
    return _frame(series, shapes, _place_ticks(edges))


def make_timeline(
    values: Sequence[float],
    ticks: Sequence[str],
    name: str,
    *,
    most: float | None = None,
    marks: Sequence[tuple[float, str, str]] = (),
) -> str:
    """Return a value over time: steps of equal length, the mean over a few of them as a curve, and marks.

    Args:
        values: one a step, from the left.
        ticks: what stands below the axis, the first at its left end and the last at its right.
        name: of the value, with its unit.
        most: upper end of the axis; None takes the largest value.
        marks: places from 0 to 1, what stands above the line there, and what it says to who points at it.
    """
    most = max(max(values, default=0.0), most or 0.0)
    if most <= 0:
        return make_text("no values")
    floor, width = HEIGHT - BOTTOM, WIDTH - LEFT - RIGHT
    shapes = _draw_grid(most, lambda value: f"{value:,g}") + _draw_series(0, values, most)
    smooth = smoothen(values)
    points = " ".join(
        f"{LEFT + (number + 0.5) / len(smooth) * width:.1f},{floor - value / most * (floor - TOP):.1f}"
        for number, value in enumerate(smooth)
    )
    shapes += f'<polyline class="curve s0" points="{points}"/>'
    shapes += _draw_hover(f"{format_tick(value)} {name}" for value in values)
    for place, sign, words in marks:
        x = LEFT + place * width
        shapes += f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}"/>'
        shapes += f'<text x="{x + 2:.1f}" y="{TOP + 8}">{html.escape(sign)}</text>'
        shapes += _draw_value(x - POINT_WIDTH / 2, POINT_WIDTH, words)
    shares = [number / max(1, len(ticks) - 1) for number in range(len(ticks))]
    return _frame([f"{name}, at most {format_tick(max(values))}"], shapes, list(zip(shares, ticks, strict=True)))


def smoothen(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and those up to `SMOOTHED` before and behind it, as far as there are any."""
    return [
        sum(near) / len(near)
        for near in (values[max(0, at - SMOOTHED) : at + SMOOTHED + 1] for at in range(len(values)))
    ]


def _gather(bins: Mapping[int, int], first: int, step: int, number_of_bars: int) -> list[float]:
    total = sum(bins.values()) or 1
    shares = [0.0] * number_of_bars
    for number, count in bins.items():
        shares[(number - first) // step] += count / total
    return shares


def _draw_series(index: int, shares: Sequence[float], most: float) -> str:
    floor, width = HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) / len(shares)
    path = f"M{LEFT} {floor}"
    for number, share in enumerate(shares):
        top = floor - share / most * (floor - TOP)
        path += f"V{top:.1f}H{LEFT + (number + 1) * width:.1f}"
    return f'<path class="series s{index}" d="{path}V{floor}Z"/>'


def make_curves(values: Sequence[float], series: Mapping[str, Sequence[float]], mark: float | None = None) -> str:
    """Return up to three curves of shares over one axis, from 0 at the bottom to 1 at the top.

    Args:
        values: of the points, rising or falling.
        series: by name, a share in [0, 1] at each value.
        mark: a value to show by an upright line.
    """
    if not values:
        return make_text("no values")
    first, last = min(values), max(values)
    span, floor = (last - first) or 1.0, HEIGHT - BOTTOM

    def to_x(value: float) -> float:
        return LEFT + (value - first) / span * (WIDTH - LEFT - RIGHT)

    shapes = _draw_grid(1.0, lambda share: f"{share:g}")
    for number, shares in enumerate(series.values()):
        points = " ".join(f"{to_x(x):.1f},{floor - y * (floor - TOP):.1f}" for x, y in zip(values, shares, strict=True))
        shapes += f'<polyline class="curve s{number}" points="{points}"/>'
    if mark is not None:
        shapes += f'<line class="mark" x1="{to_x(mark):.1f}" x2="{to_x(mark):.1f}" y1="{TOP}" y2="{floor}"/>'
    told = max(1, math.ceil(len(values) / POINTS_TOLD))
    for value, *shares in list(zip(values, *series.values(), strict=True))[::told]:
        said = ", ".join(f"{name} {share:.4f}" for name, share in zip(series, shares, strict=True))
        shapes += _draw_value(to_x(value) - POINT_WIDTH / 2, POINT_WIDTH, f"{format_number(value)}: {said}")
    return _frame(series, shapes, _place_ticks([first, last]))


def make_grid(cells: Sequence[Sequence[int]], down: str, across: str) -> str:
    """Return counts as squares, the darker the more of their row, the first row at the top.

    Args:
        cells: as many in each row.
        down: what the rows are.
        across: what the columns are.
    """
    side, shapes = (HEIGHT - BOTTOM - TOP) / max(1, len(cells)), ""
    for row, counts in enumerate(cells):
        for place, count in enumerate(counts):
            share = count / (sum(counts) or 1)
            at = f'x="{LEFT + place * side:.1f}" y="{TOP + row * side:.1f}" width="{side:.1f}" height="{side:.1f}"'
            words = f"{down} {row + 1}, {across} {place + 1}: {count:,} ({100 * share:.3g} %)"
            shapes += (
                f'<rect class="cell" {at} style="fill-opacity:{share:.3f}"><title>{html.escape(words)}</title></rect>'
            )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{down}, {across}", quote=True)}"'
    x, y = LEFT + side * max(map(len, cells), default=0) + 10, TOP + 14
    labels = f'<text x="{x:.1f}" y="{y}">down: {html.escape(down)}</text>'
    labels += f'<text x="{x:.1f}" y="{y + 20}">across: {html.escape(across)}</text>'
    return f"<svg {size}>{shapes}{labels}</svg>"


def list_ticks(low: float, high: float) -> list[float]:
    """Return round values from low to high, which is above it: multiples of 1, 2 or 5 and a power of ten."""
    least = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    return [
        round(number * step, 12) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _place_ticks(edges: Sequence[float]) -> list[tuple[float, str]]:
    """Return ticks as places on an axis, from 0 to 1, with what stands there: round ones where the axis is even."""
    low, high = edges[0], edges[-1]
    if high <= low:
        return [(0, format_tick(low))]
    last = len(edges) - 1
    if all(abs((edge - low) / (high - low) - place / last) < 1e-3 for place, edge in enumerate(edges)):
        return [((value - low) / (high - low), f"{value:,g}") for value in list_ticks(low, high)]
    return [
        (place / last, format_tick(edges[place])) for place in sorted({last * quarter // 4 for quarter in range(5)})
    ]


def _draw_grid(most: float, write: Callable[[float], str]) -> str:
    """Return lines across a picture at round values up to `most`, with these on the left."""
    floor, lines = HEIGHT - BOTTOM, ""
    for value in list_ticks(0, most):
        y = floor - value / most * (floor - TOP)
        lines += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        lines += f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{write(value)}</text>'
    return lines


def _draw_hover(words: Iterable[str]) -> str:
    """Return what says the values of each step of a picture to who points at it."""
    said = list(words)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(said))
    return "".join(_draw_value(LEFT + number * width, width, text) for number, text in enumerate(said))


def _draw_value(x: float, width: float, words: str) -> str:
    size = f'x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - BOTTOM - TOP}"'
    return f'<rect class="hover" {size}><title>{html.escape(words)}</title></rect>'


def _frame(series: Iterable[str], shapes: str, ticks: Sequence[tuple[float, str]]) -> str:
    """Return shapes over an axis with ticks, below the names of their series."""
    drawn = ""
    for share, words in ticks:
        anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        drawn += f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{html.escape(words)}</text>'
    label = html.escape(", ".join(series), quote=True)
    keys = "".join(f'<span class="key k{number}"></span>{html.escape(name)}' for number, name in enumerate(series))
    floor = HEIGHT - BOTTOM
    return (
        f'<p class="soft">{keys}</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{shapes}'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>{drawn}</svg>'
    )


def format_tick(value: float) -> str:
    """Return a number for an axis: three digits that count, small ones rounded to 0.01."""
    rounded = round(value, 2) if abs(value) < 10 else round(value, 1) if abs(value) < 100 else round(value)
    return f"{rounded:,g}" if abs(rounded) < 1e6 else f"{rounded:.3g}"


def format_number(value: float) -> str:
    """Return a number as people read it: whole ones with commas, others with four digits that count."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
