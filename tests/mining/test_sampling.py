"""Which of the candidates become negatives: quantiles, retriever's ranks, and numbers that rows give, each as plain Python."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mining_in_process import make_job, mine_here, mine_in_process
from mining_inputs import make_pairs, read_mined, write_scored

from rerank_actor.errors import InputError, JobError
from rerank_actor.inputs.pair_key import make_pair_keys
from rerank_actor.mining.near_duplicates import mark_variants
from rerank_actor.mining.preflight import prepare_mining
from rerank_actor.mining.random_negatives import add_random_negatives, draw_some, unpack_pool
from rerank_actor.mining.rules import MiningRules
from rerank_actor.mining.run import mine_scores
from rerank_actor.mining.select import Candidates, select


def spread(number: int) -> int:
    """Return splitmix64 of a number."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_stratified_sampling_takes_one_of_each_run_of_the_ranking(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 40) for _ in range(30)]
    query = np.repeat(np.arange(30), sizes)
    logits = np.array([draw.uniform(-9, 9) for _ in query], np.float32)
    logits[np.cumsum(sizes) - sizes] = 10
    hashes = [draw.getrandbits(64) for _ in sizes]
    wanted = [draw.choice([1, 3, 7, 40]) for _ in sizes]
    candidates = Candidates(
        query=query,
        text=np.arange(len(query)),
        values={"logit": logits},
        positive=logits == 10,
        unusable=np.zeros(len(query), bool),
        position=np.arange(len(query)),
        query_hash=np.array(hashes, np.uint64),
        num_negatives=np.array(wanted, np.float64),
    )
    expected = []
    for number, size in enumerate(sizes):
        ranking = sorted(np.flatnonzero((query == number) & (logits != 10)), key=lambda row: -logits[row])
        draws = [
            spread((hashes[number] + spread((rank + seed * 0x9E3779B97F4A7C15) % 2**64)) % 2**64)
            for rank in range(size - 1)
        ]
        runs: dict[int, list[int]] = {}
        for rank in range(len(ranking)):
            runs.setdefault(rank * wanted[number] // len(ranking), []).append(rank)
        expected += [ranking[min(run, key=draws.__getitem__)] for run in runs.values()]
    rules = MiningRules(space="logit", sampling="stratified", seed=seed, min_negatives=0)
    assert select(candidates, rules, 1).negatives.tolist() == expected


def mine_ranked(folder: Path, ranks: Any, **values: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """Mine pairs with more columns than scoring gives; returns them, the mined rows and the tally."""
    rows = make_pairs(6, 12)
    scored = write_scored(folder / "scored", rows)
    path = next(scored.glob("*.parquet"))
    table = pq.read_table(path)
    metadata = table.schema.metadata
    for name, column in ranks(rows).items():
        table = table.append_column(name, [column])
    pq.write_table(table.replace_schema_metadata(metadata), path)
    mined, tally, _ = mine_in_process(make_job(scored, folder / "mined", space="logit", absolute_margin=None, **values))
    return rows, mined, tally


def test_rank_window_leaves_out_other_ranks_and_no_positive(tmp_path: Path) -> None:
    ranks = [None if number % 11 == 0 else (number * 7) % 12 for number in range(72)]
    rows, mined, tally = mine_ranked(
        tmp_path, lambda _: {"rank": ranks}, rank_column="rank", rank_window="2:8", num_negatives=3
    )
    expected = []
    for query in range(6):
        own = range(12 * query, 12 * query + 12)
        positive = rows[own[0]]
        left = [row for row in own[1:] if ranks[row] is not None and 2 <= ranks[row] < 8]
        left = sorted((rows[row] for row in left), key=lambda row: -row["logit"])
        left = [row for row in left if row["logit"] <= positive["logit"]][:3]
        expected += [(positive["document"], row["document"]) for row in left]
    assert [(row["positive"], row["negative"]) for row in mined] == expected
    assert tally.removed["rank_window"] == sum(
        number % 12 != 0 and (rank is None or not 2 <= rank < 8) for number, rank in enumerate(ranks)
    )


def test_number_of_negatives_is_that_of_the_column_or_of_the_flag(tmp_path: Path) -> None:
    numbers = {"q0": 1, "q1": None, "q2": 5, "q3": 3, "q4": 2, "q5": 1}
    _, mined, _ = mine_ranked(
        tmp_path,
        lambda rows: {"wanted": [numbers[row["query_id"]] for row in rows]},
        num_negatives_column="wanted",
        num_negatives=4,
        false_negatives="report",
    )
    found = [sum(row["anchor"] == f"query number {query}" for row in mined) for query in range(6)]
    assert found == [number or 4 for number in numbers.values()]


@pytest.mark.parametrize(
    ("columns", "values", "words"),
    [
        ({}, {"rank_column": "rank"}, "--rank-column is of no use without --rank-window: give both"),
        ({}, {"rank_window": "3:9"}, "--rank-window is of no use without --rank-column: give both"),
        ({}, {"rank_column": "rank", "rank_window": "9:3"}, "there is no rank from 9 to before 3"),
        ({}, {"rank_column": "rank", "rank_window": "10"}, "expected FIRST:END"),
        ({}, {"rank_column": "rank", "rank_window": "3:9"}, "has no column `rank`"),
        (
            {"rank": ["first"] * 72},
            {"rank_column": "rank", "rank_window": "3:9"},
            "holds what is no whole number from 0",
        ),
        ({"rank": [0.5] * 72}, {"rank_column": "rank", "rank_window": "3:9"}, "holds what is no whole number from 0"),
        (
            {"wanted": list(range(72))},
            {"num_negatives_column": "wanted"},
            "6 queries have rows that name different numbers",
        ),
        (
            {"wanted": [1] * 72},
            {"num_negatives_column": "wanted", "format": "n-tuple"},
            "leave out --num-negatives-column",
        ),
    ],
)
def test_ranks_and_numbers_that_cannot_be_read_are_refused(
    tmp_path: Path, columns: dict[str, Any], values: dict[str, Any], words: str
) -> None:
    with pytest.raises((InputError, JobError)) as error:
        mine_ranked(tmp_path, lambda _: columns, **values)
    assert words in str(error.value)


def test_random_negatives_are_no_candidate_positive_or_query_and_follow_the_seed() -> None:
    draw = random.Random(1)
    pairs = [
        {"query": f"q{query}", "query_id": str(query), "document": f"d{draw.randrange(30)}"}
        for query in range(20)
        for _ in range(6)
    ]
    table = pa.table(
        {
            **{name: pa.array([pair[name] for pair in pairs], pa.large_string()) for name in pairs[0]},
            "logit": pa.array(np.zeros(len(pairs), np.float32)),
            "position": pa.array(range(len(pairs))),
        }
    )
    documents = [*(f"d{number}" for number in range(30)), "D3!", "q4", "Q4."]
    same = [[f"id{number}"] for number in range(33)]
    same[3].append("id30")  # judged under another id
    same[4].append("id40")
    pool = pa.table({"document": documents, "document_id": [one for one, *_ in same], "judged": same})
    judged = pa.table({"query_id": ["0", "7", "6"], "document_id": ["id30", "id9", "id40"]})
    others = pa.chunked_array([["D5.", "d6"]]), np.array([9, 17])
    query, asked = np.repeat(np.arange(20), 6), np.arange(20)
    asked[2] = 3  # the same question under another id
    kept, seeds = np.arange(0, 20, 3), np.arange(20, dtype=np.uint64)

    def add(number: int, seeds: np.ndarray = seeds) -> list[tuple[str, str]]:
        found, owners = add_random_negatives(table, query, asked, kept, pool, number, seeds, judged, others)
        rows = found.slice(len(pairs)).to_pylist()
        assert [f"q{owner}" for owner in owners[len(pairs) :]] == [row["query"] for row in rows]
        return [(row["query"], row["document"]) for row in rows]

    bare = {document: document.lower().strip("!.") for document in documents}
    for owner in kept.tolist():
        own = {pair["document"] for pair in pairs if asked[int(pair["query_id"])] == asked[owner]}
        own |= {0: {"d3"}, 6: {"d4"}, 9: {"d5"}}.get(owner, set())
        allowed = {text for text in bare.values() if text not in own and text != f"q{owner}"}
        everything = [bare[document] for name, document in add(40) if name == f"q{owner}"]
        assert sorted(everything) == sorted(allowed), "each text once, and all of them where that many are asked for"
    assert {name: [one for one, _ in add(2)].count(name) for name in ("q0", "q3", "q18")} == {
        "q0": 2,
        "q3": 2,
        "q18": 2,
    }
    assert add(2) == add(2)
    assert add(2) != add(2, seeds + np.uint64(99))


def test_random_negatives_stand_behind_the_others_and_fill_tuples(tmp_path: Path) -> None:
    rows = make_pairs(6, 6)
    scored = write_scored(tmp_path / "scored", rows, 10)
    values = {
        "format": "n-tuple",
        "num_negatives": 2,
        "random_negatives": 3,
        "teacher": "none",
        "absolute_margin": None,
    }
    values["false_negatives"] = "report"
    hard, _, _ = mine_in_process(make_job(scored, tmp_path / "hard", **{**values, "random_negatives": 0}))
    result = mine_scores(make_job(scored, tmp_path / "mined", **values))
    mined = read_mined(tmp_path / "mined")
    assert [list(row.values())[:4] for row in sorted(mined, key=lambda row: row["anchor"])] == [
        list(row.values()) for row in sorted(hard, key=lambda row: row["anchor"])
    ]
    for row in mined:
        added = [row[f"negative_{place}"] for place in (3, 4, 5)]
        own = {pair["document"] for pair in rows if pair["query"] == row["anchor"]}
        assert len({*added}) == 3
        assert not own & {*added}
        assert {*added} <= {pair["document"] for pair in rows}
    assert result.tally.counts["random_negatives"] == 18
    assert result.tally.negatives.count == 12, "those with a value"


@pytest.mark.parametrize("source", ["label", "qrels", "verdicts by ids", "verdicts by key"])
def test_random_negatives_are_no_positive_that_has_no_score_or_another_id(tmp_path: Path, source: str) -> None:
    """Each query's `second` is relevant to it alone: without a score, or scored for another query in another writing."""
    rows = []
    for query in range(6):
        for name, place, logit in (("first", query, 4.0), ("second", query, None), ("Second", (query + 1) % 6, -1.0)):
            document = f"{name} of {place}" + ("." if name == "Second" else "")
            if logit is None and source != "label":
                continue
            score = None if logit is None else 1 / (1 + np.exp(-logit))
            own = {"query": f"query {query}", "query_id": f"q{query}", "document": document, "logit": logit}
            known = {"document_id": place + 10 * (name == "Second"), "score": score, "label": int(place == query)}
            rows.append({**own, **known})
    if source in ("qrels", "verdicts by ids"):  # the id that is judged is scored for another query alone
        last = {"query": "query 9", "query_id": "q9", "logit": -2.0, "score": 0.1, "label": 0}
        rows += [{**last, "document": f"second of {place}", "document_id": 20 + place} for place in range(6)]
    values: dict[str, Any] = {"query_id_column": "query_id", "document_id_column": "document_id", "teacher": "none"}
    said = [(f"q{query}", document) for query in range(6) for document in (query, 20 + query)]
    if source == "qrels":
        (tmp_path / "qrels.tsv").write_text("".join(f"{query} 0 {document} 1\n" for query, document in said))
        values |= {"qrels": str(tmp_path / "qrels.tsv"), "label_column": None}
    elif source != "label":
        lines = [f"{query},{document},{'yes' if document < 20 else 'unsure'}\n" for query, document in said]
        head = "query_id,document_id,verdict\n"
        if source == "verdicts by key":
            texts = [f"query {query}" for query in range(6)], [f"Second of {query}." for query in range(6)]
            keys = make_pair_keys(*texts, None, "Find the answer")
            head, lines = "pair_key,verdict\n", [f"{key},yes\n" for key in keys]
        (tmp_path / "verdicts.csv").write_text(head + "".join(lines))
        values |= {"verdicts": str(tmp_path / "verdicts.csv"), "allow_unknown_verdicts": True}
    scored = write_scored(tmp_path / "scored", [{"error": None, **row} for row in rows], 5)
    flags = {**values, "absolute_margin": None, "num_negatives": 1, "random_negatives": 40, "depth": "all"}
    mine_here(make_job(scored, tmp_path / "mined", **flags))
    mined = read_mined(tmp_path / "mined")
    for query in range(6):
        found = {row["negative"].lower().strip(".") for row in mined if row["anchor"] == f"query {query}"}
        others = {f"{name} of {place}" for name in ("first", "second") for place in range(6) if place != query}
        assert found == others, "all documents but its own"


def test_pool_is_the_same_however_the_documents_lie(tmp_path: Path) -> None:
    rows = make_pairs(6, 6)
    pools = []
    for part_rows in (7, 1000):
        job = make_job(write_scored(tmp_path / f"{part_rows}", rows, part_rows), tmp_path / "mined")
        scored = prepare_mining(job).scored
        pools.append(unpack_pool(draw_some(scored.parts, scored.columns, None, 5)["pool"]).to_pylist())
    assert pools[0] == pools[1]
    assert sorted(row["document"] for row in pools[0]) == sorted(row["document"] for row in rows)


def test_random_negatives_have_no_teacher_value(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="--random-negatives are not scored"):
        make_job(tmp_path, tmp_path / "mined", random_negatives=2, teacher="logit")


@pytest.mark.parametrize(
    ("text", "positive"),
    [
        ("-" * 40 + " Alpha", "Alpha"),
        ("\u200b" * 40 + "Alpha", "alpha."),
        ("* " * 20 + "Straße", "STRASSE"),
        ("---", "---"),
    ],
)
def test_copy_of_a_positive_is_one_behind_any_number_of_shapeless_characters(text: str, positive: str) -> None:
    alone = np.zeros(1, np.int64)
    assert mark_variants(pa.array([text]), alone, pa.array([positive]), alone).all()
    assert not mark_variants(pa.array([text]), alone, pa.array([f"other {positive}"]), alone).any()
