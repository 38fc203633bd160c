"""What all parts of a run share: its id, whom it tells what happens, and the bounds that it keeps."""

from dataclasses import dataclass

from rerank_actor.progress import Reporter


@dataclass(frozen=True)
class RunLimits:
    """Bounds of a run that no flag sets.

    Attributes:
        open_outputs: outputs whose lease is held at a time; each is a request every few seconds.
        round_units: units in one pipeline. What Ray Data keeps of each unit, and the time until it hands out the first, grow
            with their number. Engines start again for each round, which is some minutes of days.
        standstill_seconds: without anything going on, until actors that do not start are replaced; longer than Ray takes to
            start a process, on a busy machine too.
        first_standstill_seconds: the same while no engine has started; nodes may still install the job's runtime environment.
        manifest_seconds: between two manifests of a run at work, so that one that is killed leaves its figures.
    """

    open_outputs: int = 100
    round_units: int = 50_000
    standstill_seconds: float = 240.0
    first_standstill_seconds: float = 1200.0
    manifest_seconds: float = 60.0


@dataclass(frozen=True)
class RunContext:
    """One run.

    Attributes:
        run_id: of the run.
        output: what is scored into, or the folder around several outputs, for metrics.
        reporter: is told what happens.
        limits: its bounds.
    """

    run_id: str
    output: str
    reporter: Reporter
    limits: RunLimits = RunLimits()

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the run's metrics."""
        return {"run": self.run_id, "output": self.output}
