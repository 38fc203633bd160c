"""Scores computed again: a sample of an output is compared, and scores that are no longer their pairs' are found."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoring_in_process import score_here

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.verify import verify
from rerank_actor.engines.base import compute_score
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.outputs.row_digest import digest_rows
from rerank_actor.outputs.scored import open_scored

ROWS = 60
SELECTED_ROWS = 34  # by --where


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def score_layout(folder: Path, layout: str) -> str:
    """Score rows of a layout with the fake engine; returns the output."""
    output, values = str(folder / "out"), dict[str, Any]()
    rows: list[dict[str, Any]] = [{"query": f"q{at}", "document": f"d{at}", "year": at} for at in range(ROWS)]
    rows[7]["document"] = None
    if layout == "lists":
        rows = [{"query": f"q{at}", "document": [f"d{at}", f"e{at}"] if at else None} for at in range(ROWS)]
    elif layout == "template":
        values = {"document_template": "{document} of {year}", "rename_columns": "year=when"}
    elif layout == "ids":
        values = {
            "queries": write_lines(
                folder / "q.jsonl", [{"_id": f"q{at}", "text": f"text of q{at}"} for at in range(ROWS)]
            ),
            "corpus": write_lines(
                folder / "c.jsonl", [{"_id": f"d{at}", "text": f"text of d{at}"} for at in range(ROWS)]
            ),
        }
        rows = [{"query_id": row["query"], "document_id": row["document"]} for row in rows]
    elif layout == "instructions":
        rows = [{**row, "task": f"task {at % 3}"} for at, row in enumerate(rows)]
        values = {"instruction_column": "task", "explode": True}
    elif layout == "where":
        values = {"where": f"year >= {ROWS - SELECTED_ROWS}"}
    job = {"input": [write_lines(folder / "in.jsonl", rows)], "output": output, "engine": "fake", "max_length": 400}
    score_here(check_job(ScoreJob, {**job, **values}).normalized())
    return output


def change_logits(output: str, change: Any) -> None:
    """Change the logits of a flat output as a writer who knows the digests would."""
    for part in open_scored(output).parts:
        table = pq.read_table(part.uri)
        is_known = table["logit"].is_valid().to_numpy()
        logits = table["logit"].to_numpy().copy()
        logits[is_known] = change(logits[is_known])
        for name, values in (("logit", logits), ("score", compute_score(logits))):
            array = pa.array(values, pa.float32(), mask=~is_known)
            table = table.set_column(table.column_names.index(name), name, array)
        facts = {**json.loads(table.schema.metadata[b"rerank_actor.facts"]), "digest": digest_rows(table)}
        table = table.replace_schema_metadata(
            {**table.schema.metadata, b"rerank_actor.facts": json.dumps(facts).encode()}
        )
        pq.write_table(table, part.uri)


@pytest.mark.parametrize("layout", ["plain", "lists", "template", "ids", "instructions"])
def test_right_output_of_any_layout_is_equal(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = score_layout(tmp_path, layout)
    capsys.readouterr()
    call_command(lambda: verify([output, "--rescore", "1"]))
    said = capsys.readouterr().out
    pairs = {"lists": 2 * (ROWS - 1)}.get(layout, ROWS)
    rows = ROWS - (layout == "lists")
    assert f"scored again: {rows} of {ROWS} rows, {pairs} pairs, by fake" in said
    assert "equal within the noise; largest difference of logits 0," in said


@pytest.mark.parametrize("change", [np.negative, np.zeros_like, np.flip, lambda logits: logits + 0.1])
def test_scores_that_are_others_are_found_though_their_digest_fits(
    change: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = score_layout(tmp_path, "plain")
    change_logits(output, change)
    code = call_command(lambda: verify([output, "--rescore", "0.01", "--seed", "5"]))
    said = capsys.readouterr().out
    assert code == 1 and "not those of this model" in said and "scored again: 32 of 60 rows" in said


def test_sample_is_drawn_of_the_rows_that_were_selected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = score_layout(tmp_path, "where")
    assert call_command(lambda: verify([output, "--rescore", "0.01"])) == 0
    assert f"scored again: 32 of {SELECTED_ROWS} rows, 32 pairs, by fake" in capsys.readouterr().out
    change_logits(output, np.negative)
    assert call_command(lambda: verify([output, "--rescore", "0.01"])) == 1


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--rescore", "2"], "above 0 and at most 1"),
        (["--engine", "fake"], "--engine is for --rescore"),
        (["--rescore", "1", "--engine", "transformers"], "give --engine fake"),
    ],
)
def test_flags_that_compare_nothing_are_refused(
    flags: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = score_layout(tmp_path, "plain")
    assert call_command(lambda: verify([output, *flags])) == 2
    assert problem in capsys.readouterr().err
