"""Delivery and calibration: files read back by other readers, Unicode traps, known pairs, the report."""

import csv
import gzip
import html
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_inputs import make_row, read_delivered, write_scored

from rerank_actor.bitext.language_pairs import parse_pair
from rerank_actor.bitext.languages import find_language
from rerank_actor.bitext.selection.calibration import estimate_share, trace_curve
from rerank_actor.bitext.selection.labelled_pairs import load_labelled
from rerank_actor.bitext.selection.report import render_report
from rerank_actor.bitext.selection.writers import build_objects
from rerank_actor.commands.bitext import bitext
from rerank_actor.errors import InputError

LANG = "{http://www.w3.org/XML/1998/namespace}lang"
TRAPS = [
    ("Zwei\tTabs\r\nund Zeilen", "Two\ttabs\r\nand lines"),
    ("كان سامي يريد المال\u200f.", "Sami \u202bjust\u202c wanted money."),
    ("これはペンです。", "นี่คือปากกา"),
    ("cafe\u0301 ne\u0308e", "नमस्ते दुनिया"),
    ("\uff26\uff55\uff4c\uff4c width", "家\U000e0100 und 👩\u200d👩\u200d👧 🇩🇪"),
    ("<seg>&amp; 'quote' \"double\" ]]>", "a < b && c > d"),
    ("Steuer\x00zeichen\x0b\x1b[0m", "C1 \x85 and \u2028 separators\u2029"),
    ("\ufeffBOM davor \ufffe", "\ue000 private, \U0010ffff last"),
    ('"quoted"', "it's 'so'"),
]
PAIR = parse_pair("deu-eng", {}, "here")


def make_table() -> tuple[pa.Table, np.ndarray]:
    scores = np.linspace(3, -1, len(TRAPS))
    return pa.table({"source": [pair[0] for pair in TRAPS], "target": [pair[1] for pair in TRAPS]}), scores


def build(kind: Any) -> tuple[dict[str, bytes], int]:
    table, scores = make_table()
    return build_objects(kind, table, scores, ("source", "target"), PAIR)


def flatten(text: str) -> str:
    """What line formats make of a text, written another way than the code does."""
    marks = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"}
    return re.sub("\0+", " ", "".join("\0" if one in marks else one for one in text))


def test_tsv_is_read_back_line_by_line_by_any_reader() -> None:
    objects, altered = build("tsv")
    text = objects["tsv"].decode()
    assert altered == sum(flatten(side) != side for pair in TRAPS for side in pair) == 4
    expected = [[flatten(side) for side in pair] for pair in TRAPS]
    for lines in (text.removesuffix("\n").split("\n"), text.splitlines()):
        fields = [line.split("\t") for line in lines]
        assert [one[1:] for one in fields] == expected
        assert [float(one[0]) for one in fields] == make_table()[1].astype(np.float32).tolist()
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row[1:] for row in rows] == expected


def test_moses_sides_have_a_line_for_each_pair() -> None:
    objects, _ = build("moses")
    assert sorted(objects) == ["deu", "eng"]
    sides = [objects[code].decode().splitlines() for code in ("deu", "eng")]
    assert list(zip(*sides, strict=True)) == [(flatten(a), flatten(b)) for a, b in TRAPS]


def test_tmx_is_valid_xml_that_gives_the_texts_back() -> None:
    objects, altered = build("tmx")
    root = ET.fromstring(objects["tmx"])
    assert (root.tag, root.get("version")) == ("tmx", "1.4")
    header = root.find("header")
    assert header is not None
    needed = ("creationtool", "creationtoolversion", "segtype", "o-tmf", "adminlang", "srclang", "datatype")
    assert all(header.get(name) for name in needed)
    assert header.get("srclang") == "de"
    units = root.findall("body/tu")
    assert [[one.get(LANG) for one in unit.findall("tuv")] for unit in units] == [["de", "en"]] * len(TRAPS)
    found = [tuple(one.text for one in unit.findall("tuv/seg")) for unit in units]
    forbidden = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]+")
    assert found == [tuple(forbidden.sub(" ", side) for side in pair) for pair in TRAPS]
    assert altered == 2
    assert [float(unit.findtext("prop") or "") for unit in units] == make_table()[1].astype(np.float32).tolist()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_in_every_format(text: str) -> None:
    table = pa.table({"source": [text], "target": ["x"]})

    def write(kind: Any) -> dict[str, bytes]:
        return build_objects(kind, table, np.zeros(1), ("source", "target"), PAIR)[0]

    seg = ET.fromstring(write("tmx")["tmx"]).find("body/tu/tuv/seg")
    assert seg is not None
    assert (seg.text or "") == re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]+", " ", text)
    assert write("tsv")["tsv"].decode().splitlines() == [f"0.0\t{flatten(text)}\tx"]
    assert pq.read_table(pa.BufferReader(write("parquet")["parquet"]))["source"].to_pylist() == [text]


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("deu", "de"),
        ("eng", "en"),
        ("de", "de"),
        ("zho_Hans", "zh-Hans"),
        ("ast", "ast"),
        ("cmn", "cmn"),
        ("pt_BR", "pt-BR"),
        ("iw", "he"),
    ],
)
def test_tmx_names_languages_by_their_shortest_code(code: str, tag: str) -> None:
    language = find_language(code, {})
    assert language is not None
    assert language.tag == tag


def test_delivered_files_hold_the_same_pairs_in_every_format(tmp_path: Path, local_ray: str) -> None:
    rows = [make_row(a, b, 9.0 - place, input_line=place) for place, (a, b) in enumerate(TRAPS)]
    texts, numbers = dict.fromkeys(("source", "target", "margin"), pa.string()), ("forward_logit", "backward_logit")
    schema = pa.schema({**texts, **dict.fromkeys(numbers, pa.float32()), "input_line": pa.int64()})
    rows = [{**{name: row.get(name) for name in schema.names}, "margin": "kept"} for row in rows]
    scored = write_scored(tmp_path / "scored", rows, part_rows=4, schema=schema)
    flags = ["--scored", str(scored), "--deliver", str(tmp_path / "out"), "--formats", "parquet,tsv", "moses", "tmx"]
    assert bitext([*flags, "--part-rows", "5"]) == 0
    delivered = read_delivered(tmp_path / "out")
    assert [(row["source"], row["target"], row["input_line"]) for row in delivered] == [
        (*pair, place) for place, pair in enumerate(TRAPS)
    ]
    assert delivered[0]["input_margin"] == "kept"
    assert delivered[0]["margin"] is None
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("[!_]*/*/*"))
    assert names == [
        f"{kind}/lang_pair=deu-eng/{name}"
        for kind, suffixes in (
            ("moses", ("deu", "eng")),
            ("parquet", ("parquet",)),
            ("tmx", ("tmx",)),
            ("tsv", ("tsv",)),
        )
        for name in ("_SUCCESS", *(f"part-0000{number}.{suffix}" for number in (0, 1) for suffix in suffixes))
    ]
    table = ds.dataset(tmp_path / "out/parquet", partitioning="hive").to_table()
    assert set(table["lang_pair"].to_pylist()) == {"deu-eng"}
    lines = (tmp_path / "out/tsv/lang_pair=deu-eng/part-00001.tsv").read_text().split("\n")[:-1]
    assert [line.split("\t")[1:] for line in lines] == [[flatten(a), flatten(b)] for a, b in TRAPS[4:]]
    assert len(ET.parse(tmp_path / "out/tmx/lang_pair=deu-eng/part-00000.tmx").getroot().findall("body/tu")) == 4
    numbers = json.loads((tmp_path / "out/_select/lang_pair=deu-eng/result.json").read_text())
    assert numbers["counts"]["altered_tsv"] == 4
    assert not list((tmp_path / "out").rglob("*tmp*"))


# Calibration


def test_curve_by_hand() -> None:
    curve = trace_curve(np.array([4.0, 3.0, 3.0, 1.0, 0.0]), np.array([1, 1, 0, 1, 0]))
    assert curve is not None
    assert curve.thresholds.tolist() == [3.5, 2.0, 0.5, 0.0]
    assert curve.precision.tolist() == [1, 2 / 3, 3 / 4, 3 / 5]
    assert curve.recall.tolist() == [1 / 3, 2 / 3, 1, 1]
    assert curve.f1.tolist() == pytest.approx([2 / 4, 4 / 6, 6 / 7, 6 / 8])
    assert curve.at(curve.best)["threshold"] == 0.5
    assert trace_curve(np.array([1.0, 2.0]), np.array([1, 1])) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_every_threshold_gives_what_the_curve_says(items: list[tuple[int, bool]]) -> None:
    values, labels = np.array([one[0] for one in items], float), np.array([one[1] for one in items], int)
    curve = trace_curve(values, labels)
    if curve is None:
        assert labels.min() == labels.max()
        return
    for place, threshold in enumerate(curve.thresholds):
        kept = values >= threshold
        assert curve.kept[place] == kept.sum()
        assert curve.precision[place] == pytest.approx(labels[kept].mean())
        assert curve.recall[place] == pytest.approx(labels[kept].sum() / labels.sum())
    assert curve.f1[curve.best] == curve.f1.max()


def test_infinite_margins_are_above_every_threshold() -> None:
    curve = trace_curve(np.array([np.inf, 2.0, 1.0, -np.inf]), np.array([1, 1, 0, 0]))
    assert curve is not None
    assert np.isfinite(curve.thresholds).all()
    assert curve.at(curve.best)["threshold"] == 1.5
    assert curve.f1[curve.best] == 1


def test_interval_is_wilsons() -> None:
    found = estimate_share(9, 10)
    assert found is not None
    assert (found["low"], found["high"]) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert estimate_share(0, 0) is None


@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "header.tsv", "csv", "jsonl", "parquet"])
def test_known_pairs_are_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    rows = [("Guten Tag.", "Good day.", 1), ('Sag "ja", bitte', "Say yes", 0)]
    path = tmp_path / f"known.{kind}"
    tsv = "".join(f"{a}\t{b}\t{label}\n" for a, b, label in rows)
    if kind.startswith("tsv"):
        path.write_bytes(gzip.compress(tsv.encode()) if kind.endswith(".gz") else tsv.encode())
    elif kind == "header.tsv":
        path.write_text("source\ttarget\tlabel\n" + tsv)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("target", "label", "source"), *((b, label, a) for a, b, label in rows)])
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"source": a, "target": b, "label": bool(c)}) + "\n" for a, b, c in rows))
    else:
        pq.write_table(pa.table(dict(zip(("source", "target", "label"), zip(*rows, strict=True), strict=True))), path)
    known = load_labelled([str(path)])
    plain = tmp_path / "plain.tsv"
    plain.write_text(tsv)
    assert known.digest == load_labelled([str(plain)]).digest
    assert sorted(known.labels.tolist()) == [0, 1]
    assert known.sources is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\t1\na\tb\n", "some pairs have a label and others none|has the label none, and 1"),
        ("a\tb\t1\nc\td\tmaybe\n", r"line 2: label is neither 1 nor 0"),
        ("a\tb\t1\nc\td\t2\n", r"line 2: label is neither 1 nor 0"),
        ("a\tb\t1\nx\ty\t0\nA \tb.\t0\n", r"line 3: the pair has the label 0, and 1 in .*line 1"),
        ("a\tb\tc\td\n", r"line 1: has 4 fields"),
        ("a\t\t1\n", r"line 1: a side is empty"),
        ("a\tb\t0\n", "all pairs are labelled wrong"),
        ("", "holds no pair"),
    ],
)
def test_known_pairs_that_say_nothing_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "known.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_labelled([str(path)])


@pytest.mark.parametrize(("right", "wrong"), [("1.0", "0.0"), ("True", "False"), ("right", "wrong"), ("pos", "neg")])
def test_known_pairs_are_labelled_in_numbers_or_words(tmp_path: Path, right: str, wrong: str) -> None:
    path = tmp_path / "known.tsv"
    path.write_text(f"a\tb\t{wrong}\nc\td\t{right}\n")
    words = load_labelled([str(path)])
    path.write_text("a\tb\t0\nc\td\t1\n")
    assert words.digest == load_labelled([str(path)]).digest


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_known_pairs_that_are_packed_are_read_to_their_end_or_refused(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    lines = [f"source {i}\ttarget {i * 7919}\t{i % 2}\n".encode() for i in range(5000)]
    halves = [compress(b"".join(part)) for part in (lines[:2500], lines[2500:])]
    path = tmp_path / f"known.tsv.{ending}"
    path.write_bytes(b"".join(halves))
    assert len(load_labelled([str(path)]).pairs) == 5000
    path.write_bytes(halves[0][: len(halves[0]) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_labelled([str(path)])


def make_candidates(seed: int = 0, number: int = 80) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return scored pairs of which those with the same number are right, and the right ones."""
    draw = np.random.default_rng(seed)
    rows, right = [], []
    for place in range(number):
        for other in {place, *draw.integers(0, number, 3).tolist()}:
            mean = 3 if other == place else -3
            forward, backward = (float(value) for value in draw.normal(mean, 2, 2))
            rows.append(make_row(f"Satz Nummer {place}.", f"sentence number {other}.", forward, backward))
        right.append((f"Satz Nummer {place}.", f"sentence number {place}."))
    return rows, right


def test_calibration_prints_a_table_and_sets_the_threshold(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, right = make_candidates()
    scored = write_scored(tmp_path / "scored", rows, part_rows=70)
    known = tmp_path / "gold.tsv"
    known.write_text("".join(f"{a}\t{b}\n" for a, b in right[:40]))
    flags = ["--scored", str(scored), "--deliver", str(tmp_path / "out"), "--calibration", str(known)]
    assert bitext([*flags, "--threshold", "auto", "--margin", "auto", "--mode", "all"]) == 0
    printed = capfd.readouterr().out
    for kind in ("forward", "backward", "combined", "margin"):
        assert re.search(rf"{kind} .*best", printed)
    assert printed.rstrip().endswith(str(tmp_path / "out"))
    numbers = json.loads((tmp_path / "out/_select/lang_pair=deu-eng/result.json").read_text())
    # Without labels every other candidate of a known side is wrong.
    sources, targets = ({pair[side] for pair in right[:40]} for side in (0, 1))
    near = [row for row in rows if row["source"] in sources or row["target"] in targets]
    assert numbers["counts"]["known_right"] == 40
    assert numbers["counts"]["known_wrong"] == len(near) - 40
    values = (
        np.array([(row["forward_logit"], row["backward_logit"]) for row in near], np.float32).astype(float).mean(axis=1)
    )
    labels = np.array([(row["source"], row["target"]) in right for row in near], int)
    scores = [2 * (labels[values >= level]).sum() / ((values >= level).sum() + 40) for level in numbers_between(values)]
    best = numbers["calibration"]["combined"]["best"]
    assert best["f1"] == pytest.approx(max(scores))
    assert best["threshold"] == pytest.approx(numbers_between(values)[int(np.argmax(scores))], abs=1e-5)
    kept = read_delivered(tmp_path / "out")
    assert min(row["combined_score"] for row in kept) >= best["threshold"] - 1e-6
    margin = numbers["calibration"]["margin"]["best"]["threshold"]
    assert all(row["margin"] is None or row["margin"] >= margin - 1e-5 for row in kept)
    pairs = [(row["source"], row["target"]) for row in kept]
    told = [(pair in right) for pair in pairs if pair[0] in sources or pair[1] in targets]
    assert numbers["estimated_precision"]["value"] == pytest.approx(sum(told) / len(told))
    assert numbers["estimated_recall"]["value"] == pytest.approx(sum(told) / 40)


def test_calibrating_only_prints_the_same_table_and_delivers_nothing(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, right = make_candidates(number=30)
    scored = write_scored(tmp_path / "scored", rows)
    known = tmp_path / "gold.tsv"
    known.write_text("".join(f"{a}\t{b}\n" for a, b in right))
    flags = ["--scored", str(scored), "--deliver", str(tmp_path / "out"), "--calibration", str(known)]
    assert bitext([*flags, "--calibrate-only"]) == 0
    table = capfd.readouterr().out.rpartition("└")[0]
    assert "│ best │" in table
    left = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert left == ["_select/calibration.html"]
    assert "<polyline" in (tmp_path / "out/_select/calibration.html").read_text()
    assert bitext([*flags, "--mode", "intersection"]) == 0
    assert capfd.readouterr().out.startswith(table)


def numbers_between(values: np.ndarray) -> np.ndarray:
    ordered = np.unique(values)[::-1]
    return np.append((ordered[:-1] + ordered[1:]) / 2, ordered[-1])


def test_auto_without_known_pairs_of_a_language_pair_fails_that_pair_alone(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, right = make_candidates(number=15)
    scored = write_scored(tmp_path / "scored", rows)
    write_scored(scored, [make_row("Un autre.", "Another.", 1)], pair="fra-eng")
    known = tmp_path / "gold.tsv"
    known.write_text("".join(f"{a}\t{b}\t1\n" for a, b in right) + "Satz Nummer 1.\tno such\t0\n")
    flags = ["--scored", str(scored), "--deliver", str(tmp_path / "out"), "--calibration", str(known)]
    assert bitext([*flags, "--threshold", "auto"]) == 1
    assert "--threshold auto: 0 known right and 0 known wrong pairs" in capfd.readouterr().err
    assert not (tmp_path / "out/tsv/lang_pair=fra-eng").exists()


def test_report_shows_every_language_pair_without_network_or_markup_from_texts(tmp_path: Path, local_ray: str) -> None:
    rows, right = make_candidates(number=20)
    scored = write_scored(tmp_path / "scored", rows)
    write_scored(scored, make_candidates(1, 12)[0], pair="fra-eng")
    known = tmp_path / "gold.tsv"
    known.write_text("".join(f"{a}\t{b}\n" for a, b in right))
    flags = ["--scored", str(scored), "--deliver", str(tmp_path / "out"), "--calibration", str(known)]
    assert bitext(flags) == 0
    page = (tmp_path / "out/_select/report.html").read_text()
    assert page.count("<summary><b>deu-eng</b>") == page.count("<summary><b>fra-eng</b>") == 1
    assert page.count("<polyline") == 2 * 4 * 3
    assert not re.search(r"https?://|<script|src=", page)
    assert "nan" not in page.lower().replace("finance", "")
    report = json.loads((tmp_path / "out/_select/report.json").read_text())["lang_pairs"]
    assert [one["lang_pair"] for one in report] == ["deu-eng", "fra-eng"]
    results = [tmp_path / f"out/_select/lang_pair={one['lang_pair']}/result.json" for one in report]
    texts: list[str] = []
    for one, result in zip(report, results, strict=True):
        assert f"{one['counts']['kept']:,}" in page
        lowest = json.loads(result.read_text())["lowest"]
        scores = [score for score, _, _ in lowest]
        assert 0 < len(scores) <= 12 and scores == sorted(scores)
        texts += [html.escape(text) for pair in lowest for text in pair[1:]]
    assert all(text in page for text in texts)
    assert bitext([*flags, "--examples", "0"]) == 0
    for file in [*results, *(tmp_path / "out/_select").glob("report.*")]:
        assert not any(text in file.read_text() for text in texts)
    hostile = json.loads(json.dumps(report))
    hostile[0]["unscored_reasons"] = {"<b>bold</b>": 3}
    assert "<b>bold" not in render_report(hostile, "out")
