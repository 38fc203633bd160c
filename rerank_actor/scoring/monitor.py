"""The monitor: how far a run is, for a person's eye and for Prometheus, and what its actors cost, shared out among outputs.

Takes the coordinator's news and the sums of the outputs, gives progress to the reporter, metrics to Ray and actor seconds to
each output. Decides nothing.
"""

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from rerank_actor.outputs.price import Price
from rerank_actor.progress import RunProgress
from rerank_actor.scoring.committer import EngineFacts, OutputCommitter
from rerank_actor.scoring.context import RunContext
from rerank_actor.scoring.coordinator import News
from rerank_actor.scoring.metrics import RunMeter

RATE_WINDOW_SECONDS = 120.0
LOADING = "the first engine loads the model"
FIRST_UNIT = "the first unit is scored"


class RunMonitor:
    """Figures of a run at work.

    Args:
        outputs: that share the engines.
        facts: of the engines; kept by the driver.
        context: the run.
        price: of a GPU hour, None where it is not known.
    """

    def __init__(
        self, outputs: Sequence[OutputCommitter], facts: EngineFacts, context: RunContext, price: Price | None
    ) -> None:
        self._outputs, self._facts, self._reporter = outputs, facts, context.reporter
        self._meter = RunMeter(context.labels)
        self._dollars = price.dollars if price is not None else None  # an hour
        self._window: deque[tuple[float, int, int]] = deque()  # seconds since 1970, pairs and rows by then
        self._unshared_seconds = 0.0
        self._counted_at = time.monotonic()

    def update(self, news: News, committed: list[tuple[OutputCommitter, dict[str, Any]]]) -> None:
        """Take what is new, and the outputs and reports of the units that were committed with it."""
        self._meter.set(units_queued=news.units_queued, units_at_engines=news.units_at_engines)
        self._meter.count_faults(news.faults)
        tokens: Counter[OutputCommitter] = Counter()
        for output, report in committed:
            tokens[output] += int(report.get("tokens", 0))
            self._meter.count_errors(report.get("errors") or {})
        self._count_time(news.actors, tokens)
        self._show_progress()

    def _count_time(self, actors: int, tokens: Counter[OutputCommitter]) -> None:
        """Count for how long actors have held their resources since the last call, for the outputs that had it."""
        now = time.monotonic()
        seconds, self._counted_at = actors * (now - self._counted_at), now
        self._share_out(seconds, tokens)
        gpus = self._facts.gpus_per_actor
        self._meter.count_gpus(seconds * gpus, seconds * gpus / 3600 * (self._dollars or 0.0))
        self._meter.set(actors=actors, gpus=actors * gpus, gpu_price_dollars=self._dollars)

    def _share_out(self, seconds: float, tokens: Counter[OutputCommitter]) -> None:
        """Charge actor seconds to the outputs that had tokens scored; where none had, they wait for the next that has."""
        if len(self._outputs) == 1:
            self._outputs[0].add_actor_seconds(seconds)
            return
        self._unshared_seconds += seconds
        if in_all := tokens.total():
            for output in self._outputs:
                output.add_actor_seconds(self._unshared_seconds * tokens[output] / in_all)
            self._unshared_seconds = 0.0

    def _show_progress(self) -> None:
        outcomes = [output.outcomes for output in self._outputs]
        done = sum(output.totals.rows for output in outcomes)
        failed_pairs = sum(output.totals.failed_pairs for output in outcomes)
        failed_units = sum(len(output.failed) for output in outcomes)
        total = sum(output.prepared.plan.num_rows for output in self._outputs)
        self._meter.set(
            rows_planned=total,
            rows_committed=done,
            units_planned=sum(output.num_planned for output in outcomes),
            units_committed=sum(output.totals.units for output in outcomes),
            units_failed=failed_units,
        )
        pairs_per_second, rows_per_second = self._compute_rates()
        if self._facts.ready_at is None:
            self._reporter.update(RunProgress(done, total, failed_pairs, failed_units, 0, 0.0, None, LOADING))
            return
        eta_seconds = (total - done) / rows_per_second if rows_per_second > 0 else None
        self._meter.set(eta_seconds=eta_seconds)
        self._reporter.update(
            RunProgress(
                rows=done,
                total_rows=total,
                failed_pairs=failed_pairs,
                failed_units=failed_units,
                pairs=sum(output.totals.pairs for output in outcomes),
                pairs_per_second=pairs_per_second,
                eta_seconds=eta_seconds,
                awaited="" if any(output.scored_now.units for output in outcomes) else FIRST_UNIT,
            )
        )

    def _compute_rates(self) -> tuple[float, float]:
        """Return pairs and rows a second over the last minutes, or since engines are ready."""
        now = time.time()
        pairs = sum(output.outcomes.scored_now.pairs for output in self._outputs)
        rows = sum(output.outcomes.scored_now.rows for output in self._outputs)
        self._window.append((now, pairs, rows))
        while self._window[0][0] < now - RATE_WINDOW_SECONDS:
            self._window.popleft()
        begin, pairs_before, rows_before = max(self._window[0], (self._facts.ready_at or 0.0, 0, 0))
        seconds = max(1e-3, now - begin)
        return (pairs - pairs_before) / seconds, (rows - rows_before) / seconds
