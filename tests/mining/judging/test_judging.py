"""False negatives for a judge: what is written for one, and what verdicts change, each as a few lines of plain Python."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mining_in_process import make_job, mine_here, mine_in_process
from mining_inputs import FINGERPRINT, make_pairs, scatter, write_scored

from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.inputs.pair_key import make_pair_keys
from rerank_actor.mining.judging.suspects import write_suspects
from rerank_actor.mining.judging.verdicts import load_verdicts
from rerank_actor.mining.preflight import prepare_mining

IDS = {"query_id_column": "query_id", "document_id_column": "document_id"}
RULES = {**IDS, "space": "logit", "absolute_margin": 1.0, "depth": "all", "num_negatives": 50, "min_negatives": 1}


def read_suspects(output: Path) -> list[dict[str, Any]]:
    pieces = sorted((output / "_mine" / "suspects").glob("*.bin"))
    return [row for piece in pieces for row in pq.read_table(piece).to_pylist()]


def mine_plainly(
    rows: list[dict[str, Any]], band: float = 0.0, promote: float = np.inf, verdicts: dict[Any, str] | None = None
) -> tuple[set[tuple[str, str, str]], dict[tuple[str, str], tuple[str, float]]]:
    """Return the triplets and the suspects with reason and margin, of rows with distinct texts."""
    triplets, suspects = set(), {}
    for query in sorted({row["query_id"] for row in rows}):
        own = [row for row in rows if row["query_id"] == query]
        said = {id(row): (verdicts or {}).get((query, row["document_id"])) for row in own}
        positives = [row for row in own if said[id(row)] == "relevant" or (row["label"] == 1 and said[id(row)] is None)]
        if not positives:
            continue
        least, most = (pick(np.float32(row["logit"]) for row in positives) for pick in (min, max))
        negatives, promoted = [], []
        for row in own:
            value, reason = np.float32(row["logit"]), None
            if row in positives or said[id(row)] == "unsure":
                continue
            if said[id(row)] is None:
                bound = least - np.float32(1.0)
                if value > least and value - most >= promote:
                    reason = "promoted"
                elif value > least:
                    reason = "false_negatives"
                elif value + np.float32(1.0) > least:
                    reason = "absolute_margin"
                elif band and abs(value - bound) <= np.float32(band):
                    reason = "uncertain_band"
            if reason is not None:
                suspects[query, row["document"]] = reason, round(float(least - value), 4)
            if reason == "promoted":
                promoted.append(row)
            elif reason is None:
                negatives.append(row)
        triplets |= {
            (row["query"], positive["document"], negative["document"])
            for row in own[:1]
            for positive in positives + promoted
            for negative in negatives
        }
    return triplets, suspects


def to_triplets(mined: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(row["anchor"], row["positive"], row["negative"]) for row in mined}


@pytest.mark.parametrize("unit_bytes", [2000, 10**8])
@pytest.mark.parametrize(("band", "promote"), [(0.0, np.inf), (1.5, np.inf), (0.5, 0.75)])
def test_suspects_and_what_verdicts_make_of_them_are_those_of_plain_python(
    tmp_path: Path, band: float, promote: float, unit_bytes: int
) -> None:
    rows = make_pairs(12, 14, seed=3)
    scored = write_scored(tmp_path / "scored", scatter(rows), 31)
    flags = {**RULES, "uncertain_band": f"{band}@logit" if band else None}
    flags |= {"promote_above": f"{promote}@logit"} if np.isfinite(promote) else {}
    job = make_job(scored, tmp_path / "one", **flags, suspects=str(tmp_path / "s.jsonl"))
    mined, tally, _ = mine_in_process(job, unit_bytes)
    triplets, suspects = mine_plainly(rows, band, promote)
    found = read_suspects(tmp_path / "one")
    assert to_triplets(mined) == triplets
    assert {(row["query_id"], row["document"]): (row["reason"], round(row["margin"], 4)) for row in found} == suspects
    assert tally.counts["promoted"] == sum(reason == "promoted" for reason, _ in suspects.values())
    texts = [[row[name] for row in found] for name in ("query", "document")]
    assert [row["pair_key"] for row in found] == make_pair_keys(*texts, None, "Find the answer")
    assert all(abs(row["positive_logit"] - row["logit"] - row["margin"]) < 1e-5 for row in found)

    words = ["relevant", "not_relevant", "unsure", None]
    judged = [{**row, "verdict": words[number % 4]} for number, row in enumerate(found)]
    judged += [{**judged[0]}]  # the same said twice
    pq.write_table(pa.Table.from_pylist(judged), tmp_path / "verdicts.parquet")
    verdicts = {(row["query_id"], int(row["document_id"])): row["verdict"] for row in judged if row["verdict"]}
    again = make_job(
        scored,
        tmp_path / "two",
        **flags,
        verdicts=str(tmp_path / "verdicts.parquet"),
        suspects=str(tmp_path / "t.jsonl"),
    )
    mined, tally, _ = mine_in_process(again, unit_bytes)
    triplets, suspects = mine_plainly(rows, band, promote, verdicts)
    assert to_triplets(mined) == triplets
    found = read_suspects(tmp_path / "two")
    assert {(row["query_id"], row["document"]): (row["reason"], round(row["margin"], 4)) for row in found} == suspects
    assert [tally.counts[f"verdicts_{name}"] for name in ("relevant", "not_relevant", "unsure")] == [
        list(verdicts.values()).count(word) for word in words[:3]
    ]
    assert tally.removed["unsure"] == list(verdicts.values()).count("unsure")


@pytest.mark.parametrize("name", ["v.csv", "v.jsonl"])
def test_verdicts_by_ids_take_labels_away_and_give_a_best_document_its_place(tmp_path: Path, name: str) -> None:
    rows = make_pairs(3, 6, seed=1)
    said = [("q0", 0, "no"), ("q0", 2, "1"), ("q1", 1000, "unsure"), ("q2", 2001, "")]
    lines = [
        f"{query},{document},{word}"
        if name == "v.csv"
        else json.dumps({"qid": query, "docid": document, "verdict": word})
        for query, document, word in said
    ]
    (tmp_path / name).write_text("\n".join([*(["qid,docid,verdict"] if name == "v.csv" else []), *lines]) + "\n")
    flags = {**RULES, "absolute_margin": None, "false_negatives": "report", "verdicts": str(tmp_path / name)}
    scored = write_scored(tmp_path / "scored", rows)
    mined, tally, _ = mine_in_process(make_job(scored, tmp_path / "labelled", **flags))
    verdicts = {("q0", 0): "not relevant", ("q0", 2): "relevant", ("q1", 1000): "unsure"}
    kept = [row for row in mined if row["anchor"] == "query number 0"]
    assert {row["positive"] for row in kept} == {"document 2 of 0"}
    assert "document 0 of 0" in {row["negative"] for row in kept}
    assert {row["anchor"] for row in mined} == {"query number 0", "query number 2"}
    assert tally.counts["verdicts_against_labels"] == 2
    flags |= {"label_column": None, "min_positive_score": -100.0}
    mined, _, _ = mine_in_process(make_job(scored, tmp_path / "best", **flags))
    for query in range(3):
        own = [row for row in rows if row["query_id"] == f"q{query}"]
        free = [row for row in own if (f"q{query}", row["document_id"]) not in verdicts]
        best = "document 2 of 0" if query == 0 else max(free, key=lambda row: row["logit"])["document"]
        assert {row["positive"] for row in mined if row["anchor"] == f"query number {query}"} == {best}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ["query_id,document_id,verdict", "q0,1,yes", "q0,1,no"],
            r"1 pairs have two verdicts.*query 'q0' document '1'",
        ),
        (["query_id,document_id,verdict", "q0,1,perhaps so"], "line 2 is no verdict"),
        (["query_id,document_id,verdict", "q0,1,"], "none of its 1 rows has a verdict"),
        (["query_id,document_id", "q0,1"], "has no column `verdict`"),
        (["query,document,verdict", "a,b,yes"], "names no pairs"),
        (["query_id,document_id,verdict", ",1,yes"], "line 2 is no verdict .no id in `query_id` and `document_id`"),
        (
            ["query_id,document_id,verdict", "q0,99,yes", "q7,1,no"],
            r"2 of 2 verdicts are of pairs .*query 'q0' document '99'",
        ),
        (["pair_key,verdict", f"{'0' * 32},yes"], "1 of 1 verdicts are of pairs that are not among the scored ones"),
        (["query_id,document_id,verdict", "q0,1.0,yes"], "'1' where --verdicts has '1.0'"),
    ],
)
def test_verdicts_that_cannot_be_used_are_refused(tmp_path: Path, lines: list[str], words: str) -> None:
    (tmp_path / "v.csv").write_text("\n".join(lines) + "\n")
    scored = write_scored(tmp_path / "scored", make_pairs(2, 5))
    job = make_job(scored, tmp_path / "out", **RULES, verdicts=str(tmp_path / "v.csv"))
    with pytest.raises(InputError, match=words):
        mine_in_process(job)
    assert not list((tmp_path / "out").glob("part-*"))


def test_text_judged_unsure_is_no_negative_in_another_writing(tmp_path: Path) -> None:
    rows = make_pairs(2, 5)
    rows[2] |= {"document": "Alpha."}
    rows[3] |= {"document": "alpha"}
    (tmp_path / "v.csv").write_text("query_id,document_id,verdict\nq0,2,unsure\n")
    scored = write_scored(tmp_path / "scored", rows)
    flags = {**RULES, "absolute_margin": None, "false_negatives": "report", "verdicts": str(tmp_path / "v.csv")}
    mined, tally, _ = mine_in_process(make_job(scored, tmp_path / "out", **flags))
    kept = {row["negative"] for row in mined if row["anchor"] == "query number 0"}
    assert kept == {"document 1 of 0", "document 4 of 0"}
    assert (tally.removed["unsure"], tally.removed["equal_to_positive"]) == (1, 1)


def test_unknown_verdicts_are_left_out_where_a_flag_allows_them(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("query_id,document_id,verdict\nq0,99,yes\nq0,1,yes\n")
    scored = write_scored(tmp_path / "scored", make_pairs(2, 5))
    flags = {**RULES, "absolute_margin": None, "false_negatives": "report", "verdicts": str(tmp_path / "v.csv")}
    mined, _, _ = mine_in_process(make_job(scored, tmp_path / "out", **flags, allow_unknown_verdicts=True))
    assert {row["positive"] for row in mined if row["anchor"] == "query number 0"} == {
        "document 0 of 0",
        "document 1 of 0",
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"uncertain_band": "1@logit", "space": "score"}, "--uncertain-band is in logits and --absolute-margin"),
        ({"promote_above": 3, "false_negatives": "promote"}, "leave out --false-negatives promote"),
        ({"promote_above": 0}, "above 0"),
        ({"allow_unknown_verdicts": True}, "of no use without --verdicts"),
        ({"suspects": "/tmp/s.csv"}, "ends in .parquet or .jsonl"),
    ],
)
def test_flags_of_false_negatives_that_do_not_fit_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(JobError) as error:
        make_job(Path("/a"), Path("/out"), **{**RULES, **values})
    assert words in str(error.value)


def test_suspects_beside_parts_are_refused_and_settings_count_only_where_given(tmp_path: Path) -> None:
    scored = write_scored(tmp_path / "scored", make_pairs(2, 5))
    plain = prepare_mining(make_job(scored, tmp_path / "out", **RULES)).settings
    assert not {"suspects", "verdicts_digest", "uncertain_band", "promote_above"} & set(plain)
    for folder in ("scored", "out"):
        job = make_job(scored, tmp_path / "out", **RULES, suspects=str(tmp_path / folder / "s.jsonl"))
        with pytest.raises(InputError, match="whose readers would read it too"):
            prepare_mining(job)
    (tmp_path / "v.csv").write_text("query_id,document_id,verdict\nq0,1,yes\nq1,1001,no\n")
    (tmp_path / "w.csv").write_text("document_id,query_id,verdict,by\n1001,q1,false,me\n1,q0,relevant,me\n")
    one, other = (load_verdicts(str(tmp_path / name), 1.0).digest for name in ("v.csv", "w.csv"))
    assert one == other


def test_file_of_suspects_is_one_of_either_format(tmp_path: Path) -> None:
    scored = write_scored(tmp_path / "scored", make_pairs(6, 9), metadata=FINGERPRINT)
    job = make_job(scored, tmp_path / "out", **RULES, suspects=str(tmp_path / "s.jsonl"))
    mine_in_process(job, 2000)
    pieces = [str(path) for path in sorted((tmp_path / "out" / "_mine" / "suspects").glob("*"))]
    schema = pq.read_schema(pieces[0])
    expected = read_suspects(tmp_path / "out")
    noted = []
    for name in ("s.jsonl", "s.parquet"):
        assert write_suspects(pieces, schema, str(tmp_path / name), noted.append) == len(expected)
        assert noted[-1] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert lines == pq.read_table(tmp_path / "s.parquet").to_pylist() == expected


def test_file_of_suspects_is_never_written_over_verdicts(tmp_path: Path) -> None:
    scored = write_scored(tmp_path / "scored", make_pairs(6, 9))
    judge = tmp_path / "judge.jsonl"
    flags = {**RULES, "suspects": str(judge)}

    def mine(name: str = "out", **values: Any) -> str:
        mine_here(make_job(scored, tmp_path / name, **{**flags, **values}))
        return judge.read_text()

    written = mine()
    assert written
    judge.unlink()
    assert mine() == mine(overwrite=True) == written, "what is as it was written may be written again"
    judged = written.replace('"verdict": null', '"verdict": "relevant"')
    judge.write_text(judged)
    assert mine() == judged
    (tmp_path / "out" / "_SUCCESS").unlink()
    next((tmp_path / "out").glob("part-*")).unlink()
    assert mine() == judged, "also where data had to be mined again"
    for name, values in {"out": {"overwrite": True}, "other": {}}.items():
        with pytest.raises(OutputConflictError, match="may hold verdicts"):
            mine(name, **values)
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="holds the verdicts of --verdicts"):
        mine("third", verdicts=str(judge))
    mine("third", verdicts=str(judge), suspects=str(tmp_path / "next.jsonl"))
    defined = [
        json.loads((tmp_path / name / "_mine/definition.json").read_text())["definition"] for name in ("out", "third")
    ]
    assert ["verdicts" in rules for rules in defined] == [False, True]
    mine(suspects=str(tmp_path / "again.jsonl"))
    assert (tmp_path / "again.jsonl").read_text() == written
    assert judge.read_text() == judged
