"""Outputs of every layout that scoring takes: their scores are reused by text alone, and the report names rows of the input."""

from pathlib import Path

import pytest
from layouts import LAYOUTS, Layout, draw_layout
from scoring_in_process import score_here

from rerank_actor.errors import OutputConflictError
from rerank_actor.outputs.report.facts import gather_facts
from rerank_actor.outputs.report.rows import sample_rows


@pytest.mark.parametrize("name", LAYOUTS)
def test_scores_are_reused_and_rows_are_named_as_in_the_input(name: str, tmp_path: Path) -> None:
    layout = draw_layout(name, 3, tmp_path)
    job = layout.make_job(tmp_path, with_pair_key=True)
    score_here(job)
    named = sample_rows(gather_facts(job.output)).scored
    for row in named:
        ids = layout.rows[row["row"]]["document_id"]
        assert row.get("document_id", row.get("docid")) == (ids[row["place"]] if isinstance(ids, list) else ids)
    assert named
    plain = Layout([{"query": query, "document": document} for query, document in sorted(layout.texts)])
    reusing = plain.make_job(tmp_path / "plain", reuse=job.output, keep_columns=["document"])
    assert score_here(reusing).totals.reused == len(layout.texts)


def test_scores_are_reused_wherever_the_instruction_came_from(tmp_path: Path) -> None:
    rows = [{"query": "capital?", "document": "Paris."}]
    first = Layout(rows).make_job(tmp_path, with_pair_key=True, instruction="Find it")
    score_here(first)
    told = Layout([{**row, "task": "Find it"} for row in rows])
    second = told.make_job(tmp_path / "second", instruction_column="task", reuse=first.output)
    assert score_here(second).totals.reused == 1
    third = Layout(rows).make_job(tmp_path / "third", instruction="Find another", reuse=first.output)
    with pytest.raises(OutputConflictError, match="instruction: there 'Find it', now 'Find another'"):
        score_here(third)
