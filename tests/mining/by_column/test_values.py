"""Mining by column: each value as if its rows were mined alone, with rules of its own, in a folder of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mining_in_process import make_job, mine_here, mine_in_process
from mining_inputs import FINGERPRINT, make_pairs, read_mined, scatter, sort_rows

from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.mining.output import check_mined
from rerank_actor.publishing.card import make_card
from rerank_actor.publishing.contents import list_contents

RULES = {"absolute_margin": None, "false_negatives": "report", "num_negatives": 3, "depth": "auto"}
FOLDERS = {"a": "set=a", "b c/d": "set=b%20c%2Fd", None: "set=__HIVE_DEFAULT_PARTITION__"}


def write_sets(folder: Path, *, scattered: bool = True) -> dict[Any, list[dict[str, Any]]]:
    """Write pairs of three sets, whose queries have the same ids; returns them by set."""
    sets = {}
    for number, name in enumerate(FOLDERS):
        rows = make_pairs(5, 9, seed=number)
        sets[name] = [{**row, "query": f"{name}: {row['query']}", "set": name} for row in rows]
        for row in sets[name][:3]:  # one set has a query with more positives, which widens the window of its own alone
            row["label"] = int(number == 1 or row["label"])
    rows = [row for own in sets.values() for row in own]
    rows = scatter(rows) if scattered else rows
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), 31)):
        table = pa.Table.from_pylist(rows[start : start + 31])
        pq.write_table(table.replace_schema_metadata(FINGERPRINT), folder / f"part-{number:05d}.parquet")
    return sets


@pytest.mark.parametrize(("unit_bytes", "hashes"), [(2000, 10**9), (2000, 0), (10**9, 10**9)])
def test_each_value_is_mined_as_its_rows_are_alone(tmp_path: Path, unit_bytes: int, hashes: int) -> None:
    sets = write_sets(tmp_path / "scored")
    own = {"b c/d": {"num_negatives": 1, "skip-top": 1}, "a": {"absolute_margin": "1@logit"}}
    flags = {**RULES, "query_id_column": "query_id", "space": "logit"}
    job = make_job(tmp_path / "scored", tmp_path / "mined", **flags, by="set", rules_by_value=own)
    _, tally, _ = mine_in_process(job, unit_bytes, hashes)
    number = 0
    for name, folder in FOLDERS.items():
        alone = tmp_path / f"scored-{folder}"
        alone.mkdir()
        pq.write_table(pa.Table.from_pylist(sets[name]).replace_schema_metadata(FINGERPRINT), alone / "part-0.parquet")
        rules = {rule.replace("-", "_"): value for rule, value in own.get(str(name), {}).items()}
        expected, single, _ = mine_in_process(make_job(alone, tmp_path / f"mined-{folder}", **{**flags, **rules}))
        assert sort_rows(read_mined(tmp_path / "mined" / folder)) == sort_rows(expected)
        assert expected
        number += single.counts["negatives"]
    assert tally.counts["negatives"] == number
    assert not list((tmp_path / "mined").glob("part-*"))


LOAD = """
import sys
from datasets import load_dataset
for name, number in zip(sys.argv[2::2], sys.argv[3::2]):
    rows = load_dataset(sys.argv[1], name or None, split="train", cache_dir=sys.argv[1] + ".cache")
    assert rows.num_rows == int(number), (name, rows.num_rows, number)
"""


def test_folders_are_reported_resumed_verified_published_and_loaded(tmp_path: Path) -> None:
    write_sets(tmp_path / "scored", scattered=False)
    flags = {**RULES, "query_id_column": "query_id", "by": "set", "rules_by_value": {"a": {"num_negatives": 1}}}
    output = tmp_path / "mined"
    job = make_job(tmp_path / "scored", output, **flags, suspects=str(tmp_path / "suspects.jsonl"))
    assert mine_here(job).status == "complete"
    rows = {folder: len(read_mined(output / folder)) for folder in FOLDERS.values()}
    report = json.loads((output / "_mine/report.json").read_text())
    assert {name: own["counts"]["negatives"] for name, own in report["by_value"].items()} == {
        "a": 5,
        "b c/d": 15,
        "__HIVE_DEFAULT_PARTITION__": 15,
    }
    assert report["counts"]["negatives"] == 35
    page = (output / "_mine/report.html").read_text()
    assert "Value b c/d" in page and "1 of these are taken, the first" in page
    assert (tmp_path / "suspects.jsonl").read_text().count("\n") == report["counts"]["suspected_false_negatives"]
    assert check_mined(str(output)) == []

    part = next((output / "set=a").glob("part-*"))
    written = part.read_bytes()
    part.unlink()
    (output / "_SUCCESS").unlink()
    assert "set=a" in check_mined(str(output))[0]
    assert mine_here(job).status == "complete"
    assert part.read_bytes() == written
    assert check_mined(str(output)) == []
    (output / "set=a" / "part-00099.parquet").write_bytes(written)
    assert "part-00099.parquet: was not written by this mining" in check_mined(str(output))[0]
    (output / "set=a" / "part-00099.parquet").unlink()

    contents = list_contents(str(output))
    assert {name.rpartition("/")[0] for name in contents.files} == {*FOLDERS.values()}
    card = make_card(contents, "me/data", "mit")
    assert "- set a: 1 of these are taken, the first" in card
    for text in (card, (output / "README.md").read_text()):
        assert "config_name: b%20c%2Fd\n  data_files: set=b%20c%2Fd/part-*.parquet" in text
    names = ["", str(sum(rows.values())), "a", str(rows["set=a"]), "b%20c%2Fd", str(rows["set=b%20c%2Fd"])]
    command = [sys.executable, "-c", LOAD, str(output), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]

    with pytest.raises(OutputConflictError):
        mine_here(job.model_copy(update={"rules_by_value": {}}))
    (output / "_mine/plan.json").unlink()
    with pytest.raises(OutputConflictError, match="holds parts but no plan"):
        mine_here(job)
    assert mine_here(job.model_copy(update={"overwrite": True})).status == "complete"


@pytest.mark.parametrize("kind", ["nemo", "tevatron", "tevatron-distillation"])
def test_each_folder_is_a_whole_dataset_of_its_format(tmp_path: Path, kind: str) -> None:
    write_sets(tmp_path / "scored")
    flags = {**RULES, "query_id_column": "query_id", "document_id_column": "document_id", "by": "set", "format": kind}
    mine_here(make_job(tmp_path / "scored", tmp_path / "mined", **flags))
    beside = {
        "nemo": "corpus/merlin_metadata.json",
        "tevatron": "ranklist-*.tsv",
        "tevatron-distillation": "state.json",
    }
    for folder in FOLDERS.values():
        assert list((tmp_path / "mined" / folder).glob(beside[kind]))
    assert check_mined(str(tmp_path / "mined")) == []
    assert {name.partition("/")[0] for name in list_contents(str(tmp_path / "mined")).files} == {*FOLDERS.values()}


def test_value_may_stand_in_the_names_of_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "scored" / f"set={name}"
        folder.mkdir(parents=True)
        rows = [{**row, "query": f"{name} {row['query']}"} for row in make_pairs(3, 6)]
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(FINGERPRINT), folder / "part-0.parquet")
    mine_in_process(make_job(tmp_path / "scored", tmp_path / "mined", **RULES, by="set"))
    for name in ("a", "b"):
        assert {row["anchor"][0] for row in read_mined(tmp_path / "mined" / f"set={name}")} == {name}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rules_by_value": {"a": {}}}, "give --by COLUMN too"),
        ({"by": "set", "what_if": ["depth=all"]}, "leave out --by"),
        ({"by": "set", "rules_by_value": {"a": {"sedd": 1}}}, "`sedd` of `a` is no rule that a value has of its own"),
        ({"by": "set", "rules_by_value": {"a": {"num_negatives": 0}}}, "rules_by_value of `a`"),
        ({"by": "set", "rules_by_value": {"a": 3}}, "expected rules for each value"),
        (
            {"by": "set", "rules_by_value": {"A": {"num_negatives": 1}}},
            "has no value `A`; it has __HIVE_DEFAULT_PARTITION__, a, b c/d",
        ),
        ({"by": "sett"}, "has no column `sett`"),
        ({"by": "pair"}, "holds what names no folder"),
    ],
)
def test_columns_and_rules_that_cannot_be_are_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    write_sets(tmp_path / "scored")
    for path in (tmp_path / "scored").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.append_column("pair", pa.array([{"x": 1}] * table.num_rows)), path)
    with pytest.raises((InputError, JobError)) as error:
        mine_in_process(make_job(tmp_path / "scored", tmp_path / "mined", **{**RULES, **values}))
    assert words in str(error.value)


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("by_verdicts", [True, False])
def test_judgements_of_ids_that_ask_another_thing_in_each_value_are_refused(
    tmp_path: Path, scattered: bool, by_verdicts: bool
) -> None:
    sets = write_sets(tmp_path / "scored", scattered=scattered)
    first = sets["a"][0]
    judged, said = tmp_path / "qrels.tsv", tmp_path / "verdicts.jsonl"
    judged.write_text(f"{first['query_id']} 0 {first['document_id']} 1\n")
    names = {name: first[name] for name in ("query_id", "document_id")}
    said.write_text(json.dumps({**names, "verdict": "relevant"}) + "\n")
    given = {"verdicts": str(said)} if by_verdicts else {"qrels": str(judged), "label_column": None}
    ids = {"query_id_column": "query_id", "document_id_column": "document_id"}
    flags = {**RULES, **ids, **given, "by": "set"}
    with pytest.raises(InputError, match=r"by id: query id .* stands for queries of two texts"):
        mine_in_process(make_job(tmp_path / "scored", tmp_path / "mined", **flags))
    for path in (tmp_path / "scored").iterdir():  # ids of their own, as those of a judged set among others have
        table = pq.read_table(path)
        named = [
            f"{name}:{number}" if name != "a" else number
            for name, number in zip(table["set"].to_pylist(), table["query_id"].to_pylist(), strict=True)
        ]
        pq.write_table(table.set_column(table.column_names.index("query_id"), "query_id", pa.array(named)), path)
    mine_in_process(make_job(tmp_path / "scored", tmp_path / "mined", **flags))
    assert list((tmp_path / "mined").glob("set=a/part-*"))
