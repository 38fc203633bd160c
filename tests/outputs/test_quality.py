"""What a report says of labels, groups and texts is what the output holds, and labels that say nothing are not guessed."""

import html
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output
from labelled_pairs import make_labelled_rows
from scoring_in_process import score_here

from rerank_actor.errors import InputError
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import load_gpu_types
from rerank_actor.outputs.report.build import build_report
from rerank_actor.outputs.report.cascade import find_earlier
from rerank_actor.outputs.report.facts import gather_facts
from rerank_actor.outputs.report.quality import Asked, compute_auc, measure_quality
from rerank_actor.outputs.report.rows import sample_rows
from rerank_actor.outputs.report.timeline import draw_timeline
from rerank_actor.outputs.status import read_status


def score(folder: Path, rows: list[dict[str, object]], **settings: object) -> Path:
    """Score rows in this process and leave a manifest, as a run does."""
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "in/pairs.parquet")
    values = {"input": [str(folder / "in")], "output": str(folder / "out"), "engine": "fake", **settings}
    job = ScoreJob.model_validate(values).normalized()
    score_here(job)
    Output(job.output).write_json("manifest.json", {"job": job.to_record(), "runs": [{"started": 1.0, "actors": 2}]})
    return folder / "out"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows of 30 queries, five without a score."""
    return score(tmp_path_factory.mktemp("quality"), make_labelled_rows(), unit_rows=40, max_length=900)


def show(page: str) -> str:
    """Return the words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.partition("</style>")[2])).split())


def test_texts_stand_beside_scores(output: Path) -> None:
    page = build_report(str(output))
    table = read_output(output)
    scored = sample_rows(gather_facts(str(output)), 12).scored
    assert len(scored) == 12
    for row in scored:
        assert table["query"][row["row"]].as_py() == row["query"] and row["query"] in page
        text = table["document"][row["row"]].as_py()
        assert text.startswith(row["document"].rstrip("…")) and row["document"] in page and len(row["document"]) <= 240


def test_labels_and_groups_are_measured(output: Path) -> None:
    table = read_output(output)
    rows = [row for row in table.to_pylist() if row["logit"] is not None]
    quality = measure_quality(gather_facts(str(output)), Asked(groups=("language", "query_id")))
    assert (quality.label, quality.labelled, quality.pairs, quality.sampled_parts) == ("label", 295, 300, 8)
    pairs = [(one["logit"], other["logit"]) for one in rows if one["label"] for other in rows if not other["label"]]
    assert quality.auc == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))
    gains = []
    for name in {row["query_id"] for row in rows}:
        ranked = sorted((row for row in rows if row["query_id"] == name), key=lambda row: -row["logit"])
        weights = 1 / np.log2(np.arange(2, len(ranked) + 2))
        labels = [row["label"] for row in ranked]
        gains.append(np.dot(labels, weights) / np.dot(sorted(labels, reverse=True), weights))
    assert quality.ndcg == pytest.approx(np.mean(gains)) and quality.num_queries == 30
    groups, num_values = quality.groups["language"]
    assert [(group.name, group.pairs, num_values) for group in groups] == [("de", 225, 2), ("en", 75, 2)]
    scores = [row["score"] for row in rows if row["language"] == "en"]
    assert groups[1].mean == pytest.approx(np.mean(scores)) and groups[1].quantiles[1] == pytest.approx(
        np.median(scores)
    )
    assert (len(quality.groups["query_id"][0]), quality.groups["query_id"][1]) == (24, 30)
    words = show(build_report(str(output)))
    assert f"{quality.auc:.4f} AUC {quality.ndcg:.4f} mean nDCG@10 of 30 queries" in words
    assert "By language" in words
    with pytest.raises(InputError, match="has no column `nothing`"):
        measure_quality(gather_facts(str(output)), Asked("nothing"))


def test_labels_that_say_nothing_are_told_and_not_guessed(output: Path) -> None:
    facts = gather_facts(str(output))
    with pytest.raises(InputError, match="do not say what they mean"):
        measure_quality(facts, Asked("query_id"))
    named = measure_quality(facts, Asked("query_id", positive_labels=("q3",)))
    assert (named.positives, named.labelled) == (10, 295)
    assert compute_auc(np.array([1.0, 2.0]), np.array([True, True])) is None


def test_report_holds_what_ran_it_and_compares_with_another(output: Path) -> None:
    words = show(build_report(str(output), earlier=str(output)))
    assert f"rerank score {output}/_job/job.yaml" in words
    assert "engine: fake" in words
    assert "pairs 300 300 1.00 x" in words


def test_lists_have_labels_by_place_and_texts_of_their_own(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {
            "query": f"q{i}",
            "passages": [{"text": f"{i} {j}", "is_selected": int(j == i % 3)} for j in range(3)],
            "dataset": f"d{i % 2}",
        }
        for i in range(6)
    ]
    out = score(tmp_path, rows, document_column="passages.text")
    quality = measure_quality(gather_facts(str(out)))
    assert (quality.label, quality.positives, quality.labelled, quality.num_queries) == (
        "passages.is_selected",
        6,
        18,
        6,
    )
    assert [group.pairs for group in quality.groups["dataset"][0]] == [9, 9]
    scored = sample_rows(gather_facts(str(out)), 18).scored
    assert {(row["query"], row["document"]) for row in scored} == {
        (f"q{i}", f"{i} {j}") for i in range(6) for j in range(3)
    }
    assert all(row["document"] == f"{row['row']} {row['place']}" for row in scored)


def test_label_of_fractions_is_left_out_and_said(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": "q", "document": f"d{i}", "label": i / 10, "split": "a"} for i in range(5)
    ]
    out = score(tmp_path, rows)
    quality = measure_quality(gather_facts(str(out)))
    assert quality.label is None and quality.auc is None and len(quality.groups["split"][0]) == 1
    assert "holds fractions" in show(build_report(str(out)))


def test_timeline_spreads_a_unit_over_the_time_its_engine_took() -> None:
    runs = [
        {"started": 100.0, "actors": 2, "ready_at": 110.0, "faults_at": [[150.0, "actor_died", 2]]},
        {"started": 160.0},
    ]
    ends, pairs, seconds = np.array([150.0, 196.0]), np.array([400, 460]), np.array([40.0, 46.0])
    timeline = draw_timeline(ends, pairs, seconds, runs)
    assert (timeline.first_at, timeline.step_seconds, timeline.last_at) == (100.0, 1.0, 196.0)
    assert timeline.pairs_per_second[9:11] == pytest.approx([0, 10]) and timeline.pairs_per_second[60] == pytest.approx(
        10
    )
    assert sum(timeline.engines) == pytest.approx(86)
    assert [(mark.at, mark.kind) for mark in timeline.marks] == [
        (100.0, "start"),
        (110.0, "ready"),
        (150.0, "fault"),
        (160.0, "resume"),
    ]
    assert timeline.marks[2].words == "2 x actor died"
    assert draw_timeline(np.array([5.0, 0.0]), np.ones(2), np.ones(2), []).marks == []


def test_status_names_logs_and_takes_the_price_of_the_gpu_that_engines_had(output: Path) -> None:
    engines = [{"host": "node-1", "log": "/tmp/ray/worker.err", "gpu": "L4"}] * 2
    earlier = Output(str(output)).load_manifest()
    try:
        runs = [{"started": 1.0, "gpu_seconds": 7200.0}]
        Output(str(output)).write_json("manifest.json", {**earlier, "engines": engines, "runs": runs})
        status = read_status(str(output))
        Output(str(output)).write_json(
            "manifest.json", {**earlier, "engines": [*engines, {"gpu": "H100"}], "runs": runs}
        )
        mixed = read_status(str(output))
    finally:
        Output(str(output)).write_json("manifest.json", earlier)
    assert status.engine_logs == ["/tmp/ray/worker.err on node-1"] * 2
    assert status.cost == pytest.approx(2 * load_gpu_types()["L4"].price) and status.price.endswith(
        ", the last run's GPU"
    )
    assert mixed.cost is None


def test_cascade_is_compared_with_the_ranking_that_where_goes_by(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    rows: list[dict[str, object]] = [
        {"query": f"query {i // 15}", "document": f"document {i}", "small": float(draw.random())} for i in range(300)
    ]
    rows = [{("score" if name == "small" else name): value for name, value in row.items()} for row in rows]
    where = "score > 0.2 and score < 0.8"  # as the input has it
    output = score(tmp_path, rows, where=where, rename_columns={"score": "small"})
    others = reordered = 0
    table = read_output(output).to_pylist()
    for query in {row["query"] for row in table}:
        before = sorted((row for row in table if row["query"] == query), key=lambda row: -row["small"])
        scored = iter(sorted((row for row in before if row["selected"]), key=lambda row: -row["logit"]))
        after = [next(scored) if row["selected"] else row for row in before]
        tops = [[row["document"] for row in ranking[:10]] for ranking in (before, after)]
        others += set(tops[0]) != set(tops[1])
        reordered += tops[0] != tops[1] and set(tops[0]) == set(tops[1])
    assert others and reordered
    cascade = measure_quality(gather_facts(str(output))).cascade
    assert cascade is not None
    assert (cascade.column, cascade.queries, cascade.others, cascade.reordered) == ("small", 20, others, reordered)
    assert cascade.pairs == sum(row["selected"] for row in table)
    assert f"{others} of 20 queries other documents among the ten best" in show(build_report(str(output)))


def test_group_columns_are_no_texts_and_name_groups(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"source": f"secret text {i}", "target": "b", "category": "long " * 20, "domain": f"d{i % 2}", "lang": b"\xff"}
        for i in range(6)
    ]
    out = score(tmp_path, rows, query_column="source", document_column="target")
    quality = measure_quality(gather_facts(str(out)))
    assert list(quality.groups) == ["domain"] and len(quality.remarks) == 2
    page = build_report(str(out), examples=0)
    assert "secret" not in page and "long long" not in page
    asked = measure_quality(gather_facts(str(out)), Asked(groups=("category",)))
    assert [group.pairs for group in asked.groups["category"][0]] == [6]
    with pytest.raises(InputError, match="`lang` cannot be broken down by"):
        measure_quality(gather_facts(str(out)), Asked(groups=("lang",)))


def test_tags_of_lists_are_left_out_and_many_values_too(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": f"q{i}", "document": ["a", "b", "c"], "category": ["x"], "source": f"http://host/{i}"}
        for i in range(1001)
    ]
    quality = measure_quality(gather_facts(str(score(tmp_path, rows))))
    assert not quality.groups
    assert "other lengths" in quality.remarks[0] and "1,001 values" in quality.remarks[1]


def test_queries_of_two_sets_with_one_id_are_two(tmp_path: Path) -> None:
    def make(ids: dict[str, str | None]) -> list[dict[str, object]]:
        return [
            {"query_id": ids[name], "query": f"what is {name}", "document": f"{name}{i}", "label": int(i == 0)}
            for name in ids
            for i in range(6)
        ]

    found = []
    for number, ids in enumerate(({"x": "1", "y": "1"}, {"x": "a", "y": "b"}, {"x": None, "y": None})):
        (tmp_path / str(number)).mkdir()
        found.append(measure_quality(gather_facts(str(score(tmp_path / str(number), make(ids))))))
    assert [one.num_queries for one in found] == [2, 2, 2]
    assert found[0].ndcg == found[1].ndcg == found[2].ndcg


def test_parts_are_taken_from_first_to_last_where_not_all_fit(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"query": f"q{i}", "document": "d", "dataset": f"d{i // 10}"} for i in range(100)]
    facts = gather_facts(str(score(tmp_path, rows, unit_rows=10)))
    quality = measure_quality(facts, max_pairs=30)
    assert (quality.sampled_parts, quality.pairs) == (3, 30)
    assert sorted(group.name for group in quality.groups["dataset"][0]) == ["d1", "d5", "d8"]


@pytest.mark.parametrize(
    ("where", "column"),
    [
        ("dist < 0.5", None),
        ("dist > 0.5", None),
        ("old_score < 0.5", None),
        ("not old_score > 0.5", None),
        ("dist > 0.2 and 0.2 < old_score < 0.8", "old_score"),
        ("float(old_score) >= -1", "old_score"),
        ("old_score > 0.2 and similarity > 0.1", None),
    ],
)
def test_cascade_goes_by_one_score_that_is_better_where_it_is_higher(where: str, column: str | None) -> None:
    schema = pa.schema([(name, pa.float64()) for name in ("dist", "old_score", "similarity")])
    assert find_earlier({"where": where}, schema) == column


def test_rows_that_where_passes_through_are_no_errors(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query": None if i == 0 else "q", "document": f"d{i}", "dist": i / 12, "dataset": "x"} for i in range(12)
    ]
    out = score(tmp_path, rows, where="dist < 0.5")
    facts = gather_facts(str(out))
    [group] = measure_quality(facts).groups["dataset"][0]
    assert (group.pairs, group.scored, group.passed) == (12, 5, 6)
    assert [(shard.passed, shard.errors) for shard in facts.shards.values()] == [(6, 1)]
    assert "pairs passed through errors mean score" in show(build_report(str(out)))


def test_label_that_explode_repeated_says_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"query": f"q{i}", "document": ["a", "b", "c"], "label": i} for i in range(3)]
    facts = gather_facts(str(score(tmp_path, rows, explode=True)))
    quality = measure_quality(facts, Asked(groups=("query",)))
    assert quality.label is None and quality.auc is None and "was scored with --explode" in quality.remarks[0]
    with pytest.raises(InputError, match="was scored with --explode"):
        measure_quality(facts, Asked("label"))
