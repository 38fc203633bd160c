"""Formats of mined data: the schema that each tool documents, and teacher values beside the passages.

Those of sentence-transformers are compared with its own in `test_mining_parity`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import List, Value, load_dataset, load_from_disk
from mining_in_process import make_job, mine_in_process
from mining_inputs import make_pairs, write_scored

from rerank_actor.errors import InputError
from rerank_actor.mining.formats import describe_saved

IDS = {"query_id_column": "query_id", "document_id_column": "document_id"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_pairs(8, 7)
    rows[2]["label"] = rows[9]["label"] = 1  # two queries with two positives
    return write_scored(tmp_path_factory.mktemp("formats") / "scored", rows)


def mine_lines(scored: Path, output: Path, **settings: Any) -> list[dict[str, Any]]:
    """Mine with every candidate kept, and return the records of the JSON lines."""
    settings = {"absolute_margin": None, "false_negatives": "report", **settings}
    mine_in_process(make_job(scored, output, **settings))
    return [json.loads(line) for path in sorted(output.glob("part-*.jsonl")) for line in path.read_text().splitlines()]


def read_scored(scored: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the scored rows by query and document."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in scored.glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            found.setdefault(row["query"], {})[row["document"]] = row
    return found


@pytest.mark.parametrize("teacher", ["none", "score", "logit"])
def test_flagembedding_has_parallel_lists(scored: Path, tmp_path: Path, teacher: str) -> None:
    records = mine_lines(scored, tmp_path / "mined", format="flagembedding", teacher=teacher, prompt="Find it")
    rows = read_scored(scored)
    assert len(records) == 8
    names = {"query", "pos", "neg", "prompt"} | ({"pos_scores", "neg_scores"} if teacher != "none" else set())
    for record in records:
        assert set(record) == names
        own = rows[record["query"]]
        assert {text for text, row in own.items() if row["label"]} == set(record["pos"])
        assert not any(own[text]["label"] for text in record["neg"])
        assert len(record["neg"]) == 4
        assert record["prompt"] == "Find it"
        for side in ("pos", "neg") if teacher != "none" else ():
            assert record[f"{side}_scores"] == [own[text][teacher] for text in record[side]]
    loaded = load_dataset(
        "json", data_files=str(tmp_path / "mined/part-*.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.num_rows == 8


def test_flagembedding_takes_the_instruction_of_the_scores_as_prompt(scored: Path, tmp_path: Path) -> None:
    from rerank_actor.mining.preflight import prepare_mining

    prepared = prepare_mining(make_job(scored, tmp_path / "mined", format="flagembedding"))
    assert prepared.settings["prompt"] == "Find the answer"
    prepared = prepare_mining(make_job(scored, tmp_path / "mined", format="flagembedding", prompt="Another"))
    assert prepared.settings["prompt"] == "Another"
    assert "prompt" not in mine_lines(scored, tmp_path / "without", format="flagembedding", prompt="")[0]


def test_tevatron_has_passages_and_a_ranklist(scored: Path, tmp_path: Path) -> None:
    records = mine_lines(scored, tmp_path / "mined", format="tevatron", **IDS)
    rows = read_scored(scored)
    for record in records:
        assert set(record) == {"query_id", "query", "positive_passages", "negative_passages"}
        own = rows[record["query"]]
        for passage in record["positive_passages"] + record["negative_passages"]:
            assert set(passage) == {"docid", "title", "text", "score"}
            assert passage["docid"] == str(own[passage["text"]]["document_id"])
            assert passage["score"] == own[passage["text"]]["logit"]
        assert all(own[passage["text"]]["label"] for passage in record["positive_passages"])
    lines = [line.split("\t") for line in (tmp_path / "mined/ranklist-00000.tsv").read_text().splitlines()]
    assert len(lines) == 56
    expected = sorted(
        (row for own in rows.values() for row in own.values()),
        key=lambda row: (int(row["query_id"][1:]), -row["logit"]),
    )
    assert [line[:2] for line in lines] == [[row["query_id"], str(row["document_id"])] for row in expected]
    assert [float(line[2]) for line in lines] == pytest.approx([row["logit"] for row in expected])


def test_tevatron_distillation_has_the_positive_first_and_a_value_each(scored: Path, tmp_path: Path) -> None:
    mine_lines(scored, tmp_path / "mined", format="tevatron-distillation", **IDS)
    names = sorted(path.name for path in (tmp_path / "mined").glob("part-*"))
    for name, data in describe_saved(names, "f" * 32).items():
        (tmp_path / "mined" / name).write_bytes(data)
    loaded = load_from_disk(str(tmp_path / "mined"))
    assert loaded.features["scores"] == List(Value("float32"))
    records, rows = list(loaded), read_scored(scored)
    assert len(records) == 10, "one for each positive"
    for record in records:
        assert set(record) == {"query_id", "query", "passages", "scores"}
        own = [rows[record["query"]][passage["text"]] for passage in record["passages"]]
        assert [row["label"] for row in own] == [1, 0, 0, 0, 0]
        assert record["scores"] == [row["logit"] for row in own]


def test_nemo_names_documents_of_the_corpus_beside_it(scored: Path, tmp_path: Path) -> None:
    output = tmp_path / "mined"
    mine_lines(scored, output, format="nemo", **IDS)
    content = json.loads((output / "part-00000.json").read_text())
    assert content["corpus"] == [{"path": "corpus"}]
    corpus = {row["id"]: row["text"] for row in pq.read_table(output / "corpus/train-00000.parquet").to_pylist()}
    rows = read_scored(scored)
    assert len(content["data"]) == 8
    for record in content["data"]:
        assert set(record) == {"question_id", "question", "corpus_id", "pos_doc", "neg_doc"}
        assert record["corpus_id"] == "corpus"
        for side, label in (("pos_doc", 1), ("neg_doc", 0)):
            for document in record[side]:
                own = rows[record["question"]][corpus[document["id"]]]
                assert (own["label"], own["logit"]) == (label, document["score"])


def test_ids_that_stand_for_several_texts_are_refused(scored: Path, tmp_path: Path) -> None:
    ids = {"query_id_column": "query_id", "document_id_column": "query_id"}
    with pytest.raises(InputError) as error:
        mine_lines(scored, tmp_path / "mined", format="nemo", **ids)
    assert "--document-id-column" in str(error.value)


def test_documents_without_ids_get_one_from_their_text(scored: Path, tmp_path: Path) -> None:
    first = mine_lines(scored, tmp_path / "a", format="tevatron")
    second = mine_lines(scored, tmp_path / "b", format="tevatron", num_negatives=2)
    ids = {passage["text"]: passage["docid"] for record in first for passage in record["negative_passages"]}
    assert all(len(name) == 16 for name in ids.values())
    assert len(set(ids.values())) == len(ids)
    assert all(ids[passage["text"]] == passage["docid"] for record in second for passage in record["negative_passages"])
    assert first[0]["query_id"] == second[0]["query_id"] != first[1]["query_id"]


# Teacher values.


def read_values(scored: Path, output: Path, **settings: Any) -> list[tuple[list[float], list[float]]]:
    """Return the values written for each query, and its logits in the same order."""
    rows = read_scored(scored)
    found = []
    for record in mine_lines(scored, output, format="flagembedding", **settings):
        own = rows[record["query"]]
        logits = [own[text]["logit"] for text in (*record["pos"], *record["neg"])]
        found.append(([*record["pos_scores"], *record["neg_scores"]], logits))
    return found


def test_temperature_divides_logits(scored: Path, tmp_path: Path) -> None:
    for values, logits in read_values(scored, tmp_path / "a", temperature=4):
        assert values == pytest.approx([logit / 4 for logit in logits])
    for values, logits in read_values(scored, tmp_path / "b", temperature=4, teacher="score"):
        assert values == pytest.approx([1 / (1 + np.exp(-logit / 4)) for logit in logits])


def test_min_max_goes_from_nought_to_one_in_each_query(scored: Path, tmp_path: Path) -> None:
    for values, logits in read_values(scored, tmp_path / "mined", normalize="min-max"):
        least, most = min(logits), max(logits)
        assert values == pytest.approx([(logit - least) / (most - least) for logit in logits], abs=1e-6)
        assert (min(values), max(values)) == (0, 1)


def test_softmax_sums_to_one_in_each_query(scored: Path, tmp_path: Path) -> None:
    for values, logits in read_values(scored, tmp_path / "mined", normalize="softmax", temperature=2):
        weights = np.exp(np.array(logits) / 2)
        assert values == pytest.approx((weights / weights.sum()).tolist(), rel=1e-5)


def test_min_max_of_equal_values_is_a_half(tmp_path: Path) -> None:
    rows = [{**row, "logit": 1.0, "score": 0.7310586} for row in make_pairs(2, 3)]
    scored = write_scored(tmp_path / "scored", rows)
    assert [values for values, _ in read_values(scored, tmp_path / "mined", normalize="min-max")] == [[0.5] * 3] * 2
