"""The evaluation of tasks as tables: a suite's columns with the published rows beside, each task, and what scores are of.

A column is the mean over its tasks, a task the mean over its subsets; where one is missing there is no mean, and the table says
so. Takes an `Evaluated`, gives a record, Markdown and HTML, and each task in MTEB's own JSON. Knows nothing of where it goes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rerank_actor.evaluation.evaluate import BEST_ORDER, OWN_ORDER, Order, Row
from rerank_actor.evaluation.job import describe_subset
from rerank_actor.evaluation.measures import P_MRR
from rerank_actor.evaluation.run import Evaluated, Judged, list_measures
from rerank_actor.evaluation.table import to_record
from rerank_actor.evaluation.task_texts import TaskData
from rerank_actor.evaluation.tasks import Task
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.price import find_price, format_dollars
from rerank_actor.outputs.report import html
from rerank_actor.outputs.status import sum_gpu_hours
from rerank_actor.storage.hub import is_hub, split_hub_uri

MTEB_NAMES = {"ndcg": "ndcg_at_", "map": "map_at_", "mrr": "mrr_at_", "recall": "recall_at_", "precision": "precision_at_",
              "success": "hit_rate_at_"}  # fmt: skip
UNDETERMINED = ["und-Zyyy"]  # MTEB means a score over its languages, and of none it is not a number
MTEB_VERSION = "2.26.24"  # whose form the results have


@dataclass(frozen=True)
class Line:
    """A ranking's line of the table.

    Attributes:
        name: reranker, or whose order it is.
        order: of its rankings.
        tasks: value of each task whose subsets are all there.
        scores: figures of the scored outputs; None where it is of no reranker.
    """

    name: str
    order: Order
    tasks: Mapping[str, float]
    scores: dict[str, Any] | None = None


@dataclass
class TaskReport:
    """Tables of an evaluation.

    Attributes:
        result: what they are of.
        lines: rerankers first.
    """

    result: Evaluated
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def of(cls, result: Evaluated) -> "TaskReport":
        """Return the report of an evaluation."""
        report = cls(result)
        for reranker in result.job.list_rerankers():
            report.lines.append(
                Line(reranker, "reranked", report._average("reranked", reranker), report._sum_scores(reranker))
            )
        whose = f" ({result.retriever})" if result.retriever else ""
        orders: list[tuple[Order, str]] = [("retrieved", OWN_ORDER + whose), ("best", BEST_ORDER)]
        for order, name in orders:
            values = report._average(order, None)
            if values:
                report.lines.append(Line(name, order, values))
        return report

    @property
    def is_complete(self) -> bool:
        """Whether each task that was asked for has a value of each reranker."""
        return all(
            task.name in line.tasks for task in self.result.tasks for line in self.lines if line.scores is not None
        )

    def _average(self, order: Order, reranker: str | None) -> dict[str, float]:
        """Return the value of each task whose subsets all have a row of an order, of a reranker where that is told."""
        found = {}
        for task in self.result.tasks:
            rows = [_find_row(one, order, reranker) for one in self.result.subsets if one.task == task]
            values = [row.means[0] for row in rows if row is not None and not np.isnan(row.means[0])]
            if rows and len(values) == len(rows) and len(rows) >= len(_list_wanted(task, self.result.job.subset)):
                found[task.name] = float(np.mean(values))
        return found

    def _sum_scores(self, reranker: str) -> dict[str, Any]:
        """Return fingerprint, pairs and GPU hours of a reranker's scores by task and subset."""
        found = {}
        for one in self.result.subsets:
            manifest = Output(self.result.job.place_scores(reranker, one.data)).load_manifest()
            found[describe_subset(one.data.task, one.data.subset)] = {
                "fingerprint": manifest.get("fingerprint"),
                "pairs": (manifest.get("totals") or {}).get("scored"),
                "gpu_hours": sum_gpu_hours(manifest),
            }
        return found

    def average_column(self, line: Line, names: Sequence[str]) -> float | None:
        """Return the mean over tasks, None where one is missing."""
        values = [line.tasks[name] for name in names if name in line.tasks]
        return float(np.mean(values)) if len(values) == len(names) else None

    def to_record(self) -> dict[str, Any]:
        """Return the report as plain values."""
        result = self.result
        columns = {
            name: {
                "tasks": list(names),
                "missing": {
                    line.name: [task for task in names if task not in line.tasks]
                    for line in self.lines
                    if line.scores is not None and any(task not in line.tasks for task in names)
                },
            }
            for name, names in result.suite.columns.items()
        }
        return {
            "suite": result.job.suite,
            "retriever": result.retriever,
            "columns": columns,
            "rows": [
                {
                    "name": line.name,
                    "order": line.order,
                    "columns": {name: self.average_column(line, names) for name, names in result.suite.columns.items()},
                    "tasks": dict(line.tasks),
                    **({"scores": line.scores, **self._price(line)} if line.scores is not None else {}),
                }
                for line in self.lines
            ],
            "published": {
                "source": result.suite.source,
                "rows": {
                    model: dict(zip(result.suite.columns, values, strict=True))
                    for model, values in result.suite.published.items()
                },
            },
            "tasks": {
                describe_subset(one.data.task, one.data.subset): {
                    "place": one.data.place,
                    "split": one.data.split,
                    "queries": one.data.num_queries,
                    "instruction": result.job.find_task_instruction(one.task),
                    "measure": list_measures(result.job, one.task)[0].name,
                }
                for one in result.subsets
            },
            "missing": result.missing,
        }

    def _price(self, line: Line) -> dict[str, Any]:
        """Return GPU hours and dollars of a reranker's scores, None where they are not known."""
        hours = [score["gpu_hours"] for score in (line.scores or {}).values()]
        known = sum(hour for hour in hours if hour is not None) if any(hour is not None for hour in hours) else None
        price = find_price(self.result.job.gpu_type, self.result.job.gpu_price)
        return {"gpu_hours": known, "cost": known * price.dollars if known is not None and price is not None else None}

    def make_markdown(self) -> str:
        """Return the tables in Markdown."""
        blocks = []
        for heading, header, rows in self._list_tables():
            lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            blocks.append("\n".join([f"## {heading}", "", *lines]))
        return "\n\n".join([*blocks, *(["\n".join(self._list_notes())] if self._list_notes() else [])]) + "\n"

    def make_page(self) -> str:
        """Return the tables as a page."""
        job = self.result.job
        page = html.Page(f"Evaluation: {job.suite or ', '.join(job.tasks)}", f"Values in hundredths. {job.root}")
        for heading, header, rows in self._list_tables():
            page.add(heading, html.make_table(header, rows))
        if self._list_notes():
            page.add("Notes", *map(html.make_text, self._list_notes()))
        return page.render()

    def _list_tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return heading, header and rows of each table, the same for each form."""
        suite, job = self.result.suite, self.result.job
        header = ["ranking", *(f"{name} ({len(names)})" for name, names in suite.columns.items()), "GPU hours", "cost"]
        rows = [self._list_cells(line) for line in self.lines]
        rows += [
            [f"published: {model}", *(f"{value:.2f}" for value in values), "-", "-"]
            for model, values in suite.published.items()
        ]
        names = [line.name for line in self.lines]
        tasks = []
        for task in self.result.tasks:
            num_queries = sum(one.data.num_queries for one in self.result.subsets if one.task == task)
            values = [_show(line.tasks.get(task.name), 0, 1) for line in self.lines]
            tasks.append([task.name, list_measures(job, task)[0].name, f"{num_queries:,}", *values, self._digest(task)])
        return [
            ("Rerankers" if job.suite is None else f"Suite {job.suite}", header, rows),
            ("Tasks", ["task", "measure", "queries", *names, "fingerprints"], tasks),
            ("Intervals", ["task", *names], [self._bound(one) for one in self.result.subsets]),
        ]

    def _list_cells(self, line: Line) -> list[str]:
        """Return a ranking's row of the first table."""
        cells = [
            _show(self.average_column(line, names), sum(name in line.tasks for name in names), len(names))
            for names in self.result.suite.columns.values()
        ]
        figures = self._price(line) if line.scores is not None else {}
        hours, cost = figures.get("gpu_hours"), figures.get("cost")
        cells += ["-" if hours is None else f"{hours:.2f}", "-" if cost is None else format_dollars(cost)]
        return [line.name, *cells]

    def _bound(self, one: Judged) -> list[str]:
        """Return the middle 95 % of bootstrapped means of each ranking of a subset."""
        cells = []
        for line in self.lines:
            row = _find_row(one, line.order, line.name if line.scores is not None else None)
            low, high = row.intervals[0] if row is not None else (float("nan"), float("nan"))
            cells.append("-" if np.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}")
        return [describe_subset(one.data.task, one.data.subset), *cells]

    def _digest(self, task: Task) -> str:
        """Return the fingerprints of a task's scores, one for each reranker; of several subsets a hash of all."""
        shown = []
        for line in self.lines:
            own = [
                str((line.scores or {}).get(describe_subset(one.data.task, one.data.subset), {}).get("fingerprint"))
                for one in self.result.subsets
                if one.task == task and line.scores is not None
            ]
            if own:
                shown.append(own[0][:12] if len(own) == 1 else hashlib.sha256(" ".join(own).encode()).hexdigest()[:12])
        return ", ".join(shown)

    def _list_notes(self) -> list[str]:
        """Return what is missing and what does not count."""
        notes = [f"- missing: {name} ({reason})" for name, reason in self.result.missing.items()]
        for one in self.result.subsets:
            if one.data.without_text:
                notes.append(f"- {one.data.task}: {one.data.without_text:,} judged queries without a text do not count")
            for uri, counts in (one.evaluation.left_out if one.evaluation is not None else {}).items():
                notes += [f"- {uri}: {count:,} {reason}" for reason, count in counts.items() if count]
        if self.result.suite.published:
            notes.append(f"- published: {self.result.suite.source}")
        return notes

    def list_results(self) -> dict[tuple[str, str], bytes]:
        """Return each task's result in MTEB's form, as JSON, by reranker and task."""
        found = {}
        for line in (line for line in self.lines if line.scores is not None):
            for task in self.result.tasks:
                rows = [(one, _find_row(one, "reranked", line.name)) for one in self.result.subsets if one.task == task]
                scores = [_to_mteb_scores(one, row) for one, row in rows if row is not None]
                if scores:
                    record = _to_mteb_result(rows[0][0].data, scores)
                    found[line.name, task.name] = json.dumps(record, indent=2).encode()
        return found

    def list_evaluations(self) -> dict[tuple[str, str], bytes]:
        """Return what was measured, with a value for each query, as JSON, by task and subset."""
        return {
            (one.data.task, one.data.subset): json.dumps(to_record(one.evaluation), indent=1).encode()
            for one in self.result.subsets
            if one.evaluation is not None
        }


def _find_row(one: Judged, order: Order, reranker: str | None) -> Row | None:
    """Return the row of an order: that of a reranker, or the first that there is."""
    for row in one.evaluation.rows if one.evaluation is not None else ():
        if row.order == order and (reranker is None or one.rerankers[row.output] == reranker):
            return row
    return None


def _list_wanted(task: Task, subsets: Sequence[str]) -> Sequence[str]:
    return subsets or task.subsets


def _show(value: float | None, there: int, wanted: int) -> str:
    if value is not None:
        return f"{100 * value:.2f}"
    return "-" if wanted == 1 or not there else f"- ({there} of {wanted})"


def _to_mteb_scores(one: Judged, row: Row) -> dict[str, Any]:
    """Return a subset's measures by MTEB's names."""
    values: dict[str, Any] = {}
    measures = one.evaluation.measures if one.evaluation is not None else ()
    for measure, mean in zip(measures, row.means, strict=True):
        if measure.kind == P_MRR:
            values["p-MRR"] = mean
        elif measure.depth is not None:
            values[f"{MTEB_NAMES[measure.kind]}{measure.depth}"] = mean
    return {**values, "main_score": row.means[0], "hf_subset": one.data.subset, "languages": UNDETERMINED}


def _to_mteb_result(data: TaskData, scores: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "dataset_revision": split_hub_uri(data.place)[1] if is_hub(data.place) else "",
        "task_name": data.task,
        "mteb_version": MTEB_VERSION,
        "scores": {data.split: scores},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }
