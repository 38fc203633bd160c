"""Files as users have them mean the same to all that read them: scoring, candidates, texts by id, known pairs and qrels."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from rerank_actor import storage
from rerank_actor.bitext.ingest import ReadSpec, read_candidates
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.selection.labelled_pairs import load_labelled, read_labelled
from rerank_actor.bitext.sources import list_sources
from rerank_actor.errors import InputError, RerankError
from rerank_actor.inputs.batches import read_batches
from rerank_actor.inputs.formats import detect_format
from rerank_actor.inputs.listing import list_input
from rerank_actor.inputs.rankings.qrels import load_qrels
from rerank_actor.inputs.rows import LIMITS, ReadLimits, Unit
from rerank_actor.inputs.shards import read_rows, scan_shard
from rerank_actor.inputs.spec import InputSpec, SourceSpec
from rerank_actor.inputs.text_sources import SourcePiece, TextSource
from rerank_actor.inputs.text_sources import list_sources as find_text_sources
from rerank_actor.storage.utf8 import is_unicode

NAMES = ("source", "target", "label")
PAIRS = [
    ("Guten Tag, Welt", "Good day, world", "1"),
    ('Sag "ja" bitte', 'Say "yes" please', "0"),
    ("Ein Satz \u00e4", "A sentence \u4f60", "1"),
]
ROWS = [pair[:2] for pair in PAIRS]


@dataclass
class Outcome:
    """What a reader makes of files: whole rows, lines that are broken, and rows whose text is not Unicode."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    not_unicode: int = 0


def write_text(kind: str, rows: list[tuple[str, ...]], names: tuple[str, ...] = NAMES) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
    if kind == "tsv":
        return "".join("\t".join(row) + "\n" for row in (names, *rows)).encode()
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator="\n").writerows([names, *rows])
    return sink.getvalue().encode()


def write_parquet(rows: list[tuple[str, ...]]) -> bytes:
    sink = io.BytesIO()
    columns = zip(*rows, strict=True) if rows else [()] * 3
    pq.write_table(pa.table([pa.array(column, pa.string()) for column in columns], names=NAMES), sink)
    return sink.getvalue()


def read_as_shards(path: Path, limits: ReadLimits = LIMITS) -> Outcome:
    outcome = Outcome()
    spec = InputSpec(uris=(str(path),), output=str(path.parent / "out"), unit_rows=1)
    spec = replace(spec, texts=replace(spec.texts, query_column="source", document_column="target"))
    for item in list_input(spec).shards:
        layout, row = scan_shard(item, spec, limits=limits), 0
        for block in layout.blocks:
            unit = Unit("", item.uri, item.size, item.etag, row, block.num_rows, block.byte_start, block.number)
            rows = read_rows(unit, spec, layout.columns, limits)
            row += block.num_rows
            for fault, *texts in zip(rows.faults, rows.texts["source"], rows.texts["target"], strict=True):
                if fault is not None:
                    outcome.broken.append(int(fault.rpartition("line ")[2].rstrip(")")))
                elif all(is_unicode(text) for text in texts):
                    outcome.rows.append(tuple(texts))
                else:
                    outcome.not_unicode += 1
    return outcome


def read_as_candidates(path: Path, limits: ReadLimits = LIMITS) -> Outcome:
    folder = path.parent / "candidates"
    job = BitextJob(
        input=[str(path)], output=str(path.parent / "out"), engine="fake", lang_pair="deu-eng", identifier="none"
    ).normalized()
    for source in list_sources(job):
        read_candidates(source, replace(ReadSpec.of_job(job, str(folder)), limits=limits))
    rows = [row for file in sorted(folder.glob("lang_pair=*/*.bin")) for row in pq.read_table(file).to_pylist()]
    whole = [row for row in rows if row["dropped"] is None]
    bad = [row for row in rows if row["dropped"] == "not valid Unicode"]
    broken = [row["input_line"] for row in rows if row not in whole and row not in bad]
    return Outcome([(row["source"], row["target"]) for row in whole], broken, len(bad))


def find_source(path: Path) -> TextSource:
    return find_text_sources([SourceSpec("query", (str(path),), "source", "target")], "/nowhere")[0]


def read_as_texts(path: Path, limits: ReadLimits = LIMITS) -> Outcome:
    outcome = Outcome()
    source = find_source(path)
    for item in source.objects:
        piece = SourcePiece(item.uri, item.size, item.etag)
        outcome.broken += [
            batch.numbers[row] for batch, _ in source.read_batches(piece, limits) for row in sorted(batch.faults)
        ]
        *tables, counts = source.read(piece)
        for row in [row for table in tables for row in table.to_pylist()]:
            if row["fault"] is None:
                outcome.rows.append((row["key"], row["text"]))
        outcome.not_unicode += counts["without_id"]
    return outcome


def read_as_labelled(path: Path, limits: ReadLimits = LIMITS) -> Outcome:
    files = sorted(item.uri for item in storage.list_objects(str(path)))
    try:
        load_labelled(files, limits=limits)
    except InputError as error:
        if "holds no pair" not in str(error):
            raise
    table = read_labelled(files, "source", "target", "deu-eng", {}).get("deu-eng")
    return Outcome(
        [tuple(row) for row in zip(*(table[name].to_pylist() for name in NAMES[:2]), strict=True)] if table else []
    )


READERS: list[Callable[..., Outcome]] = [read_as_shards, read_as_candidates, read_as_texts, read_as_labelled]
LENIENT = READERS[:3]  # known pairs refuse what is broken with its line


def store(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize(
    ("packing", "change"),
    [
        ("", lambda data: b"\xef\xbb\xbf" + data),
        ("", lambda data: data.replace(b"\n", b"\r\n")),
        ("", lambda data: data.removesuffix(b"\n")),
        ("", lambda data: b"\n" + data.replace(b"\n", b"\n\n\r\n")),
        (".gz", gzip.compress),
        (".gz", lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:])),
        (".bz2", lambda data: bz2.compress(data[:40], 1) + bz2.compress(data[40:])),
        (".xz", lambda data: lzma.compress(data[:40]) + lzma.compress(b"") + bytes(8) + lzma.compress(data[40:])),
        (".zst", zstandard.compress),
        (".zst", lambda data: zstandard.compress(data[:40]) + zstandard.compress(data[40:])),
    ],
)
def test_file_of_any_editor_and_packer_gives_the_rows_that_were_written(
    tmp_path: Path, read: Callable[..., Outcome], kind: str, packing: str, change: Callable[[bytes], bytes]
) -> None:
    path = store(tmp_path / f"in/rows.{kind}{packing}", change(write_text(kind, PAIRS)))
    assert read(path) == Outcome(ROWS)


@pytest.mark.parametrize("read", READERS)
def test_folder_of_mixed_formats_gives_the_rows_of_all(tmp_path: Path, read: Callable[..., Outcome]) -> None:
    store(tmp_path / "in/a.jsonl", write_text("jsonl", PAIRS))
    store(tmp_path / "in/b.csv.gz", gzip.compress(write_text("csv", PAIRS)))
    store(tmp_path / "in/c.tsv.zst", zstandard.compress(write_text("tsv", PAIRS)))
    store(tmp_path / "in/d.parquet", write_parquet(PAIRS))
    store(tmp_path / "in/e.ndjson", write_text("jsonl", PAIRS))
    store(tmp_path / "in/f.json", b"")
    assert sorted(read(tmp_path / "in").rows) == sorted(ROWS * 5)


BROKEN = {
    "jsonl": (b'{"source": "a"', b"[1, 2]", b"7", b'{"source": "a", "target": "b"} {"source": "c"}'),
    "csv": (b"short", b"a,b,1,more", b'"a"",b'),
    "tsv": (b"short", b"a\tb\t1\tmore"),
}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_broken_lines_are_named_and_never_dropped(tmp_path: Path, kind: str) -> None:
    first, second, *others = write_text(kind, PAIRS).splitlines(keepends=True)
    broken = BROKEN[kind][:2]
    data = b"".join([first, second, b"\n", *(line + b"\n" for line in broken), *others])
    path = store(tmp_path / f"in/rows.{kind}", data)
    for read in LENIENT:
        assert read(path) == Outcome(ROWS, [4, 5]), read
    with pytest.raises(InputError, match=rf"rows.{kind}, line 4: (line is not a JSON object|row has another number)"):
        read_as_labelled(path)
    assert next(iter(find_source(path).read(SourcePiece(str(path), len(data), "")))).num_rows == len(ROWS)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_text_that_is_not_unicode_is_marked_and_never_a_question_mark(tmp_path: Path, kind: str) -> None:
    data = write_text(kind, [*PAIRS, ("XX", "bad", "0")]).replace(b"XX", b"caf\xe9")
    if kind == "jsonl":
        data += b'{"source": "lone \\ud800", "target": "x", "label": "1"}\n'
    path = store(tmp_path / f"in/rows.{kind}", data)
    for read in LENIENT:
        assert read(path) == Outcome(ROWS, not_unicode=2 if kind == "jsonl" else 1), read
    line = 4 if kind == "jsonl" else 5
    with pytest.raises(InputError, match=f"line {line}: not valid Unicode"):
        read_as_labelled(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_file_without_rows_is_none_and_no_error(tmp_path: Path, read: Callable[..., Outcome], kind: str) -> None:
    data = write_parquet([]) if kind == "parquet" else write_text(kind, [])
    assert read(store(tmp_path / f"in/rows.{kind}", data)) == Outcome()
    if kind != "parquet":
        assert read(store(tmp_path / f"in/rows.{kind}", b"")) == Outcome()


MANY = write_text("jsonl", [(f"Satz {i * 7919}", f"sentence {i * 7919}", "01"[i % 2]) for i in range(3000)])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("cut.jsonl.gz", gzip.compress(MANY)[:-900], "cannot be read"),
        ("cut.jsonl.zst", zstandard.compress(MANY)[:-900], "cannot be read"),
        ("cut.parquet", write_parquet(PAIRS)[:-9], "cannot be read"),
        ("plain.jsonl.gz", MANY, "its name ends in .gz, its content is not packed so"),
        ("gz.jsonl.zst", gzip.compress(MANY), "its name ends in .zst, its content is packed as .gz"),
        ("packed.jsonl", gzip.compress(MANY), "packed as .gz, which its name does not say"),
        ("packed.csv", lzma.compress(MANY), "packed as .xz, which its name does not say"),
        ("rows.jsonl.lzma", lzma.compress(MANY, lzma.FORMAT_ALONE), "is packed as .lzma, which is not read; unpack it"),
        ("cut.csv.xz", lzma.compress(MANY)[:-9], "cannot be read"),
        ("cut.jsonl.xz", lzma.compress(MANY)[:-900], "cannot be read"),
        ("more.jsonl.xz", lzma.compress(MANY) + b"and more", "cannot be read"),
        ("second.jsonl.xz", lzma.compress(MANY) + lzma.compress(MANY)[:9], "cannot be read"),
        ("plain.csv.xz", MANY, "its name ends in .xz, its content is not packed so"),
        ("cut.csv.bz2", bz2.compress(MANY)[:-9], "cannot be read"),
        ("plain.csv.bz2", MANY, "its name ends in .bz2, its content is not packed so"),
        ("rows.zip", b"PK\x03\x04", "is packed as .zip"),
        ("array.json", b'[ {"source": "a", "target": "b"}]', "is one JSON array, not JSON lines"),
        ("pretty.json", b'{\n  "source": "a",\n  "target": "b"\n}\n', "objects over several lines"),
        ("doubled.csv", b"source,target,label,source\na,b,1,c\n", "more than one column `source`"),
        ("doubled.tsv", b"source\ttarget\ttarget\na\tb\tc\n", "more than one column `target`"),
        ("mac.csv", b"source,target,label\ra,b,1\rc,d,0\r", "lines that end with a carriage return alone"),
        ("mac.tsv", b"source\ttarget\tlabel\ra\tb\t1\r", "lines that end with a carriage return alone"),
        ("mac.jsonl", MANY[:300].replace(b"\n", b"\r"), "carriage return alone|without line ends"),
        ("wide.jsonl", MANY.decode().encode("utf-16"), "is UTF-16, not UTF-8; change it .iconv"),
        ("wide.tsv", "source\ttarget\na\tb\n".encode("utf-16-le"), "is UTF-16LE, not UTF-8"),
        ("page.csv", b"<!DOCTYPE html>\n<html>, x\n", "is a page of HTML"),
        ("rows.csv", write_parquet(PAIRS), "is Parquet; name it .parquet"),
        ("lfs.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        ("joined.jsonl", b'{"source": "a"}{"source": "b"}', "JSON objects without line ends"),
        ("lists.jsonl", b'["a", "b"]\n["c", "d"]\n', "JSON arrays, not objects"),
        ("table.jsonl", b"source,target,label\na,b,1\n", "none of its first lines is an object"),
        ("quoted.tsv", b'source\ttarget\tlabel\n"a ""b"""\tc\t1\n', "in quotes.*--quoting csv .* --quoting none"),
        ("long.jsonl", MANY + b'{"source": "' + b"x" * 4000 + b'"}\n', "a line of more than"),
        ("long.tsv", b"source\ttarget\tlabel\na\tb\t1\n" + b"x" * 4000, "a line of more than"),
        ("long.csv", b"source,target,label\na,b,1\n" + b"x" * 4000, "a line of more than"),
    ],
)
def test_file_that_is_not_what_it_should_be_is_refused_by_name(
    tmp_path: Path, read: Callable[..., Outcome], name: str, data: bytes, reason: str
) -> None:
    path = store(tmp_path / "in" / name, data)
    with pytest.raises(RerankError, match=reason) as found:
        read(path, limits=ReadLimits(line_bytes=2000, range_bytes=1000))
    assert str(path) in str(found.value)
    if name.endswith(("lzma", "zip")):  # nor is it skipped beside others
        store(tmp_path / "in/good.jsonl", write_text("jsonl", PAIRS))
        with pytest.raises(InputError, match=reason):
            read(tmp_path / "in")


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".xz"])
def test_qrels_are_read_as_text_is(tmp_path: Path, packing: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress}[packing]
    data = b"\xef\xbb\xbfquery-id\tcorpus-id\tscore\r\nq1\td1\t1\r\n\r\nq2\td2\t0\r\n"
    path = store(tmp_path / f"qrels.tsv{packing}", pack(data))
    assert load_qrels(str(path), 1).to_pylist() == [{"query_id": "q1", "document_id": "d1"}]
    for line, reason in ((b"q3\td3\n", "is no judgement"), (b"q\xff\td\t1\n", "not valid Unicode")):
        with pytest.raises(InputError, match=f"line 5 .*{reason}"):
            load_qrels(str(store(path, pack(data + line))), 1)
    many = b"".join(b"q%d\td%d\t1\n" % (number, number * 7919) for number in range(3, 900))
    if packing:
        with pytest.raises(InputError, match=f"--qrels {path}: cannot be read"):
            load_qrels(str(store(path, pack(data + many)[:-30])), 1)
    with pytest.raises(InputError, match=r"qrels.txt.lzma: is packed as .lzma"):
        load_qrels(str(store(tmp_path / "qrels.txt.lzma", data)), 1)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_batches_are_bounded_and_count_lines_through(tmp_path: Path, kind: str) -> None:
    pairs = [(f"a{i}", "b" * (i % 50), "1") for i in range(500)]
    data = write_parquet(pairs) if kind == "parquet" else write_text(kind, pairs)
    path = store(tmp_path / f"rows.{kind}", data)
    file = storage.StoredObject(str(path), len(data), "")
    form: Any = detect_format(str(path))[0]
    for limits in (ReadLimits(batch_rows=7), ReadLimits(batch_bytes=300)):
        batches = list(read_batches(file, form, limits=limits))
        assert max(batch.num_rows for batch in batches) <= 60 and len(batches) > 8
        assert [value for batch in batches for value in batch.values("source")] == [pair[0] for pair in pairs]
        first = 2 if kind in ("csv", "tsv") else 1
        assert [number for batch in batches for number in batch.numbers] == list(range(first, first + 500))


def test_json_objects_of_other_keys_keep_the_columns_that_were_seen(tmp_path: Path) -> None:
    path = store(tmp_path / "rows.jsonl", b'{"a": 1}\n{"b": {"c": "\xc3\xa4"}}\n{broken\n')
    file = storage.StoredObject(str(path), path.stat().st_size, "")
    first, second, third = read_batches(file, "jsonl", limits=ReadLimits(batch_rows=1))
    assert [batch.names for batch in (first, second, third)] == [("a",), ("a", "b"), ("a", "b")]
    assert (second.values("a"), second.values("b"), third.values("b")) == ([None], [{"c": "\u00e4"}], [None])
    assert second.to_table()[0].to_pylist() == [{"b": '{"c": "\u00e4"}'}]
    assert (third.faults, third.to_table()[0].num_rows) == ({0: "line is not a JSON object"}, 1)
