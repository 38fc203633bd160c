"""Layouts of corpora as they are downloaded: which files are candidates, what their columns are, and what is refused."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT

from rerank_actor.bitext.candidate_columns import _to_number
from rerank_actor.bitext.ingest import ReadSpec, read_candidates
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.run import _load_record
from rerank_actor.bitext.sources import list_sources
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.job_file import check_job
from rerank_actor.progress import Reporter

PAIRS = [("Hello world.", "Hola mundo."), ("The cat sleeps.", "El gato duerme."), ("I like bread.", "Me gusta el pan.")]
SIDES = ["".join(pair[side] + "\n" for pair in PAIRS) for side in (0, 1)]
CASES = ROOT.parent / "shared/cases/mining"


class Told(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str) -> None:
        self.lines.append(message)


def make_job(folder: Path, *inputs: Path, **values: Any) -> BitextJob:
    files = [str(path) for path in inputs or [folder]]
    given = {"input": files, "output": str(folder.parent / "out"), "engine": "fake", "identifier": "none", **values}
    return check_job(BitextJob, given).normalized()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_rows(path: Path, *fields: str) -> Path:
    """Write a TSV of three pairs whose fields stand in some order, `SRC` for the source and `TRG` for the target."""
    rows = ["\t".join(field.replace("SRC", a).replace("TRG", b) for field in fields) for a, b in PAIRS]
    return write(path, "".join(row + "\n" for row in rows))


def read_all(job: BitextJob, reporter: Told | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return the candidates of a job by language pair."""
    spec = ReadSpec.of_job(job, f"{job.output}/_candidates")
    for source in list_sources(job, reporter):
        read_candidates(source, spec)
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(Path(spec.folder).glob("lang_pair=*/*.bin")):
        found.setdefault(path.parent.name.removeprefix("lang_pair="), []).extend(
            pq.ParquetFile(path).read().to_pylist()
        )
    return found


def name_pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for row in rows]


def test_opus_folder_has_its_scores_and_the_rest_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for code, text in zip(("en", "pt_br"), SIDES, strict=True):
        write(folder / f"OpenSubtitles.en-pt_br.{code}", text)
    write(folder / "OpenSubtitles.en-pt_br.scores", "1.07\n1.06\n\n")
    names = ("README", "LICENSE", "OpenSubtitles.en-pt_br.ids", "_old/x.en-de.tsv")
    for name in names:
        write(folder / name, "x")
    told = Told()
    found = read_all(make_job(folder), told)
    assert name_pairs(found["en-pt_BR"]) == PAIRS
    assert [row["candidate_score"] for row in found["en-pt_BR"]] == [1.07, 1.06, None]
    [line] = told.lines
    assert line.startswith("left out: 3 none of candidates by their names (the first: ")
    assert "; 1 hidden, with names that begin with _ or . (the first: " in line
    assert all(name in line for name in ("LICENSE", "_old/x.en-de.tsv"))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["x.en-de.en", "x.en-de.en.gz", "x.en-de.de"], "source"),
        (["x.en-de.en", "x.en-de.de", "x.en-de.deu.zst"], "target"),
        (["x.en-de.en", "x.en-de.de", "x.en-de.scores", "x.en-de.scores.gz"], "scores"),
        (["eng-deu/train.src", "eng-deu/train.trg", "eng-deu/train.tgt"], "target"),
    ],
)
def test_two_files_that_would_be_one_side_are_refused(tmp_path: Path, names: list[str], what: str) -> None:
    for name in names:
        write(tmp_path / "in" / name, "1.5\n" if "scores" in name else "a line\n")
    with pytest.raises(InputError, match=f"would be the {what} of one Moses pair"):
        list_sources(make_job(tmp_path / "in"))


def test_sides_are_found_by_language_and_not_by_the_spelling_of_its_code(tmp_path: Path) -> None:
    for name, text in zip(("en", "es"), SIDES, strict=True):
        write(tmp_path / "in" / f"x.en-es.{name}", text)
    [source] = list_sources(make_job(tmp_path / "in", lang_pair="spa-eng"))
    assert [file.uri.rpartition(".")[2] for file in source.files] == ["es", "en"]


def test_sides_that_are_no_text_are_rows_with_their_reason(tmp_path: Path) -> None:
    """JSON text in the place of a text would be scored, and delivered as training data."""
    rows = [
        {"source": "good friend", "target": "buon amico"},
        {"source": ["hello my friend"], "target": "ciao amico mio"},
        {"source": {"text": "hello my friend"}, "target": "ciao amico mio"},
        {"source": "true story", "target": True},
        {"source": "five", "target": 5},
        {"source": None, "target": "niente"},
    ]
    write(tmp_path / "in/en-it.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    found = read_all(make_job(tmp_path / "in"))["en-it"]
    reasons = [None, *["source is not text"] * 2, *["target is not text"] * 2, "source is empty"]
    assert [row["dropped"] for row in found] == reasons
    assert name_pairs(found)[0] == ("good friend", "buon amico")
    assert {row["source"] for row in found[1:3]} == {row["target"] for row in found[3:5]} == {None}
    pq.write_table(pa.table({"source": ["five"], "target": [5]}), tmp_path / "in/en-it.parquet")
    with pytest.raises(InputError, match="column `target` is int64, expected text"):
        read_all(make_job(tmp_path / "in"))


def test_scores_of_another_length_are_refused_with_the_line(tmp_path: Path) -> None:
    for name, text in (("en", SIDES[0]), ("es", SIDES[1]), ("scores", "1\n2\n")):
        write(tmp_path / f"in/x.en-es.{name}", text)
    with pytest.raises(InputError, match=r"line 3: has no partner, because .*x\.en-es\.scores ends after 2 lines"):
        read_all(make_job(tmp_path / "in"))


def test_candidates_that_were_read_without_the_scores_beside_them_stay(tmp_path: Path) -> None:
    for name, text in (("en", SIDES[0]), ("es", SIDES[1])):
        write(tmp_path / f"in/x.en-es.{name}", text)
    job = make_job(tmp_path / "in")
    read_all(job)
    write(tmp_path / "in/x.en-es.scores", "1\n2\n3\n")
    [source] = list_sources(job)
    spec = ReadSpec.of_job(job, f"{job.output}/_candidates")
    record = _load_record(source, spec)
    assert record is not None
    assert record["partitions"] == {"en-es": {"rows": 3, "shards": 1}}
    write(tmp_path / "in/x.en-es.es", SIDES[1] + "!\n")
    with pytest.raises(OutputConflictError, match="changed since"):
        _load_record(list_sources(job)[0], spec)


@pytest.mark.parametrize("name", ["c.en-pt_BR.tsv", "c.en-pt-BR.tsv"])
def test_candidates_that_were_read_under_a_shortened_pair_are_refused(tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path / "in", write_rows(tmp_path / "in" / name, "SRC", "TRG"))
    [source] = list_sources(job)
    spec = ReadSpec.of_job(job, f"{job.output}/_candidates")
    cut = list_sources(make_job(tmp_path / "in", lang_pair="en-pt"))[0].pair
    read_candidates(replace(source, pair=cut), spec)
    with pytest.raises(OutputConflictError, match="is en-pt_BR, and its candidates were read as en-pt;"):
        _load_record(source, spec)


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("eng_Latn-spa_Latn/allenai.nllb.eng_Latn", "eng_Latn-spa_Latn/allenai.nllb.spa_Latn"), "eng_Latn-spa_Latn"),
        (("eng-spa/train.src.gz", "eng-spa/train.trg.gz"), "eng-spa"),
        (("en-zh-TW/dev.en", "en-zh-TW/dev.zh_tw"), "en-zh_TW"),
        (("lang_pair=en-es/x.src", "lang_pair=en-es/x.tgt"), "en-es"),
    ],
)
def test_moses_files_have_the_language_pair_of_their_folder(tmp_path: Path, names: tuple[str, str], pair: str) -> None:
    for name, text in zip(names, SIDES, strict=True):
        write(tmp_path / "in" / name, text)
    write(tmp_path / "in" / names[0].replace("train.src", "train.id"), "" if "src.gz" in names[0] else SIDES[0])
    found = read_all(make_job(tmp_path / "in"))
    assert {name: name_pairs(rows) for name, rows in found.items()} == {pair: PAIRS}


def test_folder_says_the_language_pair_only_where_columns_do_not(tmp_path: Path) -> None:
    header = "source_language\ttarget_language\tsource\ttarget\n"
    write(tmp_path / "in/en-es/a.tsv", header + "de\tfr\tGuten Tag\tBonjour\n")
    write_rows(tmp_path / "in/en-es/b.tsv", "SRC", "TRG")
    write_rows(tmp_path / "in/my-app/c.de-en.tsv", "SRC", "TRG")
    assert sorted(read_all(make_job(tmp_path / "in"))) == ["de-en", "de-fr", "en-es"]


@pytest.mark.parametrize(
    ("folder", "flags", "row"),
    [
        ("source_language=en/target_language=pt%5FBR", {}, {}),
        ("crawl=x/src=en/tgt=pt-br", {"source_language_column": "src", "target_language_column": "tgt"}, {}),
        ("source_language=en", {}, {"target_language": "pt_BR"}),
        ("lang_pair=en-pt%5FBR", {}, {}),
    ],
)
def test_folders_of_language_columns_tell_the_language_pair(
    tmp_path: Path, folder: str, flags: dict[str, str], row: dict[str, str]
) -> None:
    lines = [json.dumps({"source": a, "target": b, **row}) + "\n" for a, b in PAIRS]
    write(tmp_path / f"in/{folder}/part-0.jsonl", "".join(lines))
    found = read_all(make_job(tmp_path / "in", **flags))
    assert {name: name_pairs(rows) for name, rows in found.items()} == {"en-pt_BR": PAIRS}


def test_folders_of_language_columns_that_hold_no_language_are_told(tmp_path: Path) -> None:
    write_rows(tmp_path / "in/source_language=en/target_language=qqq1/part-0.tsv", "SRC", "TRG")
    with pytest.raises(InputError, match="language code `qqq1` is unknown"):
        list_sources(make_job(tmp_path / "in"))


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        (("SRC", "TRG", "1.08"), "source,target,score"),
        (("http://a", "https://b/c", "SRC", "TRG", "0.7"), "-,-,source,target,score"),
        (("SRC", "TRG", "1.1", "0.9", "0.8", "crawl", "http://a", "crawl", "-"), "source,target,score,-,-,-,-,-,-"),
    ],
)
def test_file_without_header_is_refused_with_the_columns_to_type(
    tmp_path: Path, fields: tuple[str, ...], columns: str
) -> None:
    for name in ("c.en-es.tsv", "en-es.gz"):
        path = write_rows(tmp_path / "in" / name, *fields)
        with pytest.raises(InputError, match=rf"{len(fields)} fields \(.*--columns={columns}$") as refused:
            list_sources(make_job(tmp_path / "in", path))
        assert "Hello" not in str(refused.value), "no text of a pair is shown"
        rows = read_all(make_job(tmp_path / "in", path, columns=columns))["en-es"]
        assert name_pairs(rows)[:3] == PAIRS
        assert {row["candidate_score"] for row in rows} == {float(fields[columns.split(",").index("score")])}
        assert {*rows[0]} == {"source", "target", "candidate_score", "input_file", "input_line", "dropped"}


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        (("deu", "eng", "SRC", "TRG"), "source_language,target_language,source,target"),
        (("shop.example/x", "SRC", "b.example.co.uk/?p=1", "TRG"), "-,source,-,target"),
        (("1276", "SRC", "2481", "TRG"), "-,source,-,target"),
        (("doc-1", "SRC", "TRG"), "-,source,target"),
        (("SRC", "SRC", "TRG"), None),
        (("1", "SRC", "TRG", "0.5"), None),
    ],
)
def test_columns_are_advised_only_where_they_can_be_nothing_else(
    tmp_path: Path, fields: tuple[str, ...], columns: str | None
) -> None:
    path = write_rows(tmp_path / "in/c.deu-eng.tsv", *fields)
    with pytest.raises(InputError, match=r"\(.*(text|label).*\)") as refused:
        list_sources(make_job(path.parent))
    advised = str(refused.value).partition("--columns=")[2]
    assert advised == (columns or "")
    if columns is not None:
        assert name_pairs(read_all(make_job(path.parent, columns=columns))["deu-eng"]) == PAIRS
    write(path, path.read_text().partition("\n")[0])
    with pytest.raises(InputError, match="look what each is") as refused:
        list_sources(make_job(path.parent))
    assert "--columns=" not in str(refused.value), "one row tells nothing"


@pytest.mark.parametrize("ids", [["1048585", "2"], ["0.5", "1"], ["https://a.org/x", "b.org/y"]])
def test_texts_with_an_id_each_are_no_pairs_without_a_word(tmp_path: Path, ids: list[str]) -> None:
    path = write(tmp_path / "in/c.en-es.tsv", "".join(f"{one}\ta text of it\n" for one in ids))
    with pytest.raises(InputError, match=r"2 fields .*of which one is no text.*--columns=source,target"):
        list_sources(make_job(path.parent))
    assert len(read_all(make_job(path.parent, columns="source,target"))["en-es"]) == len(ids)


def test_whole_numbers_before_two_texts_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "in/c.en-es.tsv", "".join(f"{row}\t{a}\t{b}\n" for row, (a, b) in enumerate(PAIRS, 7)))
    told = "is a score .--columns=score,source,target. or none .--columns=-,source,target"
    with pytest.raises(InputError, match=told):
        list_sources(make_job(path.parent))
    assert name_pairs(read_all(make_job(path.parent, columns="-,source,target"))["en-es"]) == PAIRS
    write(path, path.read_text() + "0.5\tBye\tAdios\nx\tWell\tBueno\n")
    rows = read_all(make_job(path.parent, output=str(tmp_path / "scored")))["en-es"]
    assert [row["candidate_score"] for row in rows] == [7, 8, 9, 0.5, None]


def test_rows_of_a_file_without_header_are_not_compared_with_one(tmp_path: Path) -> None:
    path = write(tmp_path / "in/c.en-es.tsv", "Hello\tHola\t1\nBye\tAdios\nWell\tBueno\t1\t2\n")
    rows = read_all(make_job(path.parent, columns="source,target,note"))["en-es"]
    assert [row["dropped"] for row in rows] == [
        None,
        *["row has another number of fields than the file has columns"] * 2,
    ]
    assert rows[0]["note"] == "1"


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (
            "src_url\ttrg_url\tsrc_text\ttrg_text\tbicleaner",
            "--source-column src_text --target-column trg_text --score-column",
        ),
        ("en\tes", "--source-column en --target-column es"),
        ("src\ttgt", "--source-column src --target-column tgt"),
        ("English\tspanish", "--source-column English --target-column spanish"),
        ("sentence1\tsentence2", "--source-column sentence1 --target-column sentence2"),
    ],
)
def test_header_with_other_names_is_refused_with_the_flags_to_type(tmp_path: Path, header: str, told: str) -> None:
    fields = ["u", "v", "SRC", "TRG", "0.7"] if "url" in header else ["SRC", "TRG"]
    rows = write_rows(tmp_path / "in/c.en-es.tsv", *fields).read_text()
    path = write(tmp_path / "in/c.en-es.tsv", f"{header}\n{rows}")
    with pytest.raises(InputError, match=f"line 1: is a header without .*{told}"):
        list_sources(make_job(path.parent))
    with pytest.raises(InputError, match="line 1: is a header; leave --columns out"):
        list_sources(make_job(path.parent, columns=",".join(["-"] * len(fields[:-2]) + ["source", "target"])))
    flags = dict(zip(("source_column", "target_column"), told.split()[1::2], strict=False))
    assert name_pairs(read_all(make_job(path.parent, **flags))["en-es"]) == PAIRS


def test_row_with_the_word_source_is_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "in/c.en-es.tsv", "source\tfuente\ntarget\tobjetivo\n")
    assert name_pairs(read_all(make_job(path.parent))["en-es"]) == [("source", "fuente"), ("target", "objetivo")]


def test_columns_that_the_file_has_not_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in/c.en-es.tsv", "SRC", "TRG", "1.0")
    with pytest.raises(InputError, match="has 3 fields, and --columns names 2"):
        list_sources(make_job(path.parent, columns="source,target"))
    write(path, "source\ttarget\nHello\tHola\n")
    with pytest.raises(InputError, match="leave --columns out"):
        list_sources(make_job(path.parent, columns="source,target"))
    for values, told in (({"columns": "a,a"}, "twice"), ({"columns": "a", "format": "laser"}, "is for CSV and TSV")):
        with pytest.raises(Exception, match=told):
            make_job(path.parent, **values)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_translations_of_datasets_are_taken_apart(tmp_path: Path, kind: str) -> None:
    rows = [{"id": str(place), "translation": {"en": a, "es": b}} for place, (a, b) in enumerate(PAIRS)]
    path = tmp_path / f"in/train.{kind}"
    if kind == "jsonl":
        rows[1]["translation"] = dict(reversed(rows[1]["translation"].items()))  # type: ignore[union-attr]
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = read_all(make_job(path.parent))
    assert {name: name_pairs(rows) for name, rows in found.items()} == {"en-es": PAIRS}
    assert [row["id"] for row in found["en-es"]] == ["0", "1", "2"]
    turned = read_all(make_job(path.parent, lang_pair="spa-eng", output=str(tmp_path / "turned")))
    assert name_pairs(turned["spa-eng"]) == [pair[::-1] for pair in PAIRS]
    with pytest.raises(InputError, match="has the languages en, es, and not fr-en"):
        read_all(make_job(path.parent, lang_pair="fr-en"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("more", "flags", "kept"),
    [
        ({"source": "europarl"}, {"drop_columns": ["source"]}, {}),
        ({"source": "europarl"}, {"rename_columns": {"source": "corpus"}}, {"corpus": "europarl"}),
        ({"source": "a", "target": "b"}, {"drop_columns": ["target"], "rename_columns": {"source": "x"}}, {"x": "a"}),
        ({"source": "a", "target": "b"}, {"drop_columns": ["translation"], "lang_pair": "en-es"}, {"source": "a"}),
    ],
)
def test_translations_beside_a_column_called_like_a_side_want_a_flag(
    tmp_path: Path, kind: str, more: dict[str, str], flags: dict[str, Any], kept: dict[str, str]
) -> None:
    rows = [{"translation": {"en": a, "es": b}, **more} for a, b in PAIRS]
    path = tmp_path / f"in/train.{kind}"
    path.parent.mkdir()
    if kind == "jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    if "target" in more:  # both sides: what is read, as it has always been
        assert name_pairs(read_all(make_job(path.parent, lang_pair="en-es"))["en-es"]) == [("a", "b")] * len(PAIRS)
    else:
        words = r"has `translation` beside `source`.*--drop-columns.*--drop-columns translation"
        with pytest.raises(InputError, match=words):
            read_all(make_job(path.parent, lang_pair="en-es"))
    found = read_all(make_job(path.parent, **flags))["en-es"]
    assert all(row.items() >= kept.items() for row in found)
    assert (name_pairs(found) == PAIRS) is ("translation" not in flags.get("drop_columns", []))


def test_translation_that_is_none_is_a_row_with_its_reason(tmp_path: Path) -> None:
    lines = [
        '{"translation": null}',
        '{"translation": {"en": "Hi \\ud800", "es": "Hola"}}',
        '{"translation": ["a", "b"]}',
    ]
    good = json.dumps({"translation": {"en": "Hello world", "es": "Hola mundo"}})
    path = write(tmp_path / "in/x.jsonl", "\n".join([*lines, good]))
    rows = read_all(make_job(path.parent))["en-es"]
    lost = "translation is no object of two languages and their texts"
    assert [row["dropped"] for row in rows] == [lost, "not valid Unicode", lost, None]


def test_what_is_no_format_of_candidates_is_told(tmp_path: Path) -> None:
    tmx = write(tmp_path / "in/x.en-es.tmx", '<?xml version="1.0"?><tmx/>')
    with pytest.raises(InputError, match=r"x\.en-es\.tmx: TMX is not read; write its segments as TSV"):
        list_sources(make_job(tmx.parent))
    for number in range(3):
        write_rows(tmp_path / f"many/part{number}.en-es.txt", "SRC", "TRG")
    with pytest.raises(InputError, match=r"part0\.en-es\.txt: the name does not tell its format"):
        list_sources(make_job(tmp_path / "many"))
    write_rows(tmp_path / "many/part.en-es.tsv", "SRC", "TRG")
    with pytest.raises(InputError, match=r"3 files not named like candidates .*part0\.en-es\.txt"):
        list_sources(make_job(tmp_path / "many"))


def test_languages_of_columns_are_those_of_the_name_or_told(tmp_path: Path) -> None:
    header = "source_language\ttarget_language\tsource\ttarget\n"
    path = write(tmp_path / "in/c.en-pt_BR.tsv", f"{header}eng\tpt-br\tHello\tOi\nen\tpt\tWell\tBem\n")
    with pytest.raises(InputError, match="line 3: column target_language has `pt`, and the file's name says en-pt_BR"):
        read_all(make_job(path.parent))
    assert len(read_all(make_job(path.parent, lang_pair="en-pt_BR"))["en-pt_BR"]) == 2
    path = path.rename(path.with_name("c.tsv"))
    found = read_all(make_job(path.parent, output=str(tmp_path / "other")))
    assert {name: len(rows) for name, rows in found.items()} == {"eng-pt_BR": 1, "en-pt": 1}


def test_sides_without_a_language_pair_are_told(tmp_path: Path) -> None:
    for name, text in zip(("train.src", "train.trg"), SIDES, strict=True):
        write(tmp_path / "in" / name, text)
    with pytest.raises(InputError, match="is one side of a Moses pair by its name, and nothing says which languages"):
        list_sources(make_job(tmp_path / "in"))
    assert name_pairs(read_all(make_job(tmp_path / "in", lang_pair="en-es"))["en-es"]) == PAIRS


def test_name_of_two_readings_is_refused_with_both(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "in/c.en-pt-br.tsv", "SRC", "TRG")
    with pytest.raises(InputError, match="its name may mean en-pt_BR or en_PT-br; give --lang-pair"):
        read_all(make_job(path.parent))
    assert list(read_all(make_job(path.parent, lang_pair="en-pt_br"))) == ["en-pt_BR"]
    for code, text in zip(("en", "pt-br"), SIDES, strict=True):
        write(tmp_path / f"moses/c.en-pt-br.{code}", text)
    write_rows(tmp_path / "moses/d.en-es.tsv", "SRC", "TRG")
    with pytest.raises(InputError, match="its name may mean en-pt_BR or en_PT-br; rename it so, or give --lang-pair"):
        list_sources(make_job(tmp_path / "moses"))


@pytest.mark.parametrize("name", ["x.en-es.tsv.gz", "x.en-es.tsv.xz", "x.en-es.tsv", "x.en-es.en", "x.en-es.scores"])
def test_file_that_is_packed_otherwise_than_its_name_says_is_told(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "in/x.en-es.en", SIDES[0])
    write(tmp_path / "in/x.en-es.es", SIDES[1])
    path.with_name(name).write_bytes(SIDES[0].encode() if name.endswith(".gz") else b"\xfd7zXZ\0 packed\n")
    with pytest.raises(InputError, match=r"not packed so: rename it|packed as \.xz"):
        read_all(make_job(path.parent))


@pytest.mark.parametrize(
    ("case", "partitions"),
    [
        ("opus-moses", ["en-es"]),
        ("opennllb-moses", ["eng_Latn-spa_Latn"]),
        ("tatoeba-challenge", ["eng-spa"]),
        ("flores-codes", ["eng_Latn-zho_Hans"]),
        ("hf-translation", ["en-es"]),
        ("region-codes", ["en-es_419", "en-iw", "en-pt_BR", "en-zh_CN", "en-zh_Hant", "eng-sr_Latn"]),
    ],
)
@pytest.mark.skipif(not CASES.exists(), reason="needs the cases that lie beside the checkout")
def test_cases_are_read_as_they_lie(tmp_path: Path, case: str, partitions: list[str]) -> None:
    found = read_all(make_job(tmp_path / "in", CASES / f"bitext-{case}"))
    assert sorted(found) == partitions
    assert all(len(rows) == (6 if name in ("en-pt_BR", "en-zh_CN") else 3) for name, rows in found.items())


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["0.5", "nan", "", None, "inf", "x"]),
        pa.array(["0.5", "nan", "", None, "inf", "x"]).dictionary_encode(),
        pa.array([0.5, math.nan, None, None, math.inf, None]),
    ],
    ids=["text", "dictionary", "numbers"],
)
def test_candidate_scores_that_are_no_finite_numbers_are_none(column: pa.Array) -> None:
    numbers, faulty = _to_number(column)
    assert numbers.to_pylist() == [0.5, None, None, None, None, None]
    assert faulty == (set() if pa.types.is_floating(column.type) else {5})
