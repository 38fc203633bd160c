"""The notice: what a person or another program is told when a run ends or gets into trouble, by command or by webhook.

Takes an event and figures, hands them to `--on-finish` or `--on-trouble` (JSON on standard input, the main ones in the
environment) and posts them to `--webhook`. Counts and ids alone, never a text of a pair. A notice that cannot be
delivered is told and forgotten: nothing about a run depends on it. The address of a webhook is as good as a password,
so that it is never written down.
"""

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from rerank_actor.errors import describe_cause
from rerank_actor.job import EngineJob
from rerank_actor.progress import Reporter, RunProgress

Event = Literal["finished", "stopped", "trouble"]
POST_SECONDS = 10.0
POST_ATTEMPTS = 4
COMMAND_SECONDS = 300.0
PATIENCE_SECONDS = 60.0  # at the end of a run, for what is under way; a command has its own limit
HURRY_SECONDS = 1.5  # the same where a signal ends the run
TROUBLE_SECONDS = 600.0  # between two notices of trouble; what came meanwhile is counted in the next


class Notifier:
    """Tells of one run.

    Args:
        job: with its `on_finish`, `on_trouble` and `webhook`.
        run_id: of the run.
        reporter: is told what could not be delivered.
    """

    def __init__(self, job: EngineJob, run_id: str, reporter: Reporter) -> None:
        self._job, self._run_id, self._reporter = job, run_id, reporter
        self._threads: list[threading.Thread] = []
        self._troubled_at = -TROUBLE_SECONDS
        self._held_back = 0

    def report_trouble(self, message: str, figures: dict[str, Any] | None = None) -> None:
        """Tell that something needs a person's eye; at most one notice in ten minutes."""
        if time.monotonic() - self._troubled_at < TROUBLE_SECONDS:
            self._held_back += 1
            return
        self._troubled_at = time.monotonic()
        more = f" (and {self._held_back:,} more since the last notice)" if self._held_back else ""
        self._held_back = 0
        self._send("trouble", "running", message + more, figures or {}, self._job.on_trouble)

    def report_end(self, status: str, message: str, figures: dict[str, Any] | None = None) -> None:
        """Tell that the run has ended: `complete`, `failed`, `stopped` by a signal, or `error` with what went wrong."""
        stopped = status == "stopped"
        command = self._job.on_trouble if status == "error" and not self._job.on_finish else self._job.on_finish
        self._send("stopped" if stopped else "finished", status, message, figures or {}, command)
        deadline = time.monotonic() + (HURRY_SECONDS if stopped else PATIENCE_SECONDS)
        for thread in self._threads:
            if thread.name == "command" and not stopped:
                thread.join(COMMAND_SECONDS + 1)
            thread.join(max(0.0, deadline - time.monotonic()))

    def _send(self, event: Event, status: str, message: str, figures: dict[str, Any], command: str | None) -> None:
        words = f"{self._job.output}: {message}"
        payload = {
            "event": event,
            "status": status,
            "output": self._job.output,
            "run": self._run_id,
            "text": words,  # what Slack, Mattermost and Teams show
            "message": message,
            **figures,
        }
        if command:
            self._start("command", lambda: _run_command(command, payload), "the command of the notice")
        if self._job.webhook:
            webhook = self._job.webhook
            self._start("webhook", lambda: _post(webhook, payload), "--webhook")

    def _start(self, name: str, work: Callable[[], None], title: str) -> None:
        def attempt() -> None:
            try:
                work()
            except Exception as error:  # whatever it is, the run goes on
                self._reporter.info(f"{title} could not be carried out ({_describe(error)})")

        thread = threading.Thread(target=attempt, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


class NotifyingReporter(Reporter):
    """A reporter whose warnings go out as notices too.

    Args:
        reporter: what a person sees.
        notifier: of the run.
        make_figures: returns how far the run is, for a notice.
    """

    def __init__(self, reporter: Reporter, notifier: Notifier, make_figures: Callable[[], dict[str, Any]]) -> None:
        self._reporter, self._notifier, self._make_figures = reporter, notifier, make_figures

    def info(self, message: str) -> None:
        """Tell it here alone."""
        self._reporter.info(message)

    def update(self, progress: RunProgress) -> None:
        """Tell how far the run is."""
        self._reporter.update(progress)

    def close(self) -> None:
        """End the telling."""
        self._reporter.close()

    def warn(self, message: str) -> None:
        """Tell it here and where notices go."""
        self._reporter.warn(message)
        self._notifier.report_trouble(message, self._make_figures())


def _post(webhook: str, payload: dict[str, Any]) -> None:
    """Post JSON, again after a while where the other side has trouble."""
    request = urllib.request.Request(
        webhook, json.dumps(payload).encode(), {"Content-Type": "application/json", "User-Agent": "rerank-actor"}
    )

    def attempt() -> None:
        try:
            with urllib.request.urlopen(request, timeout=POST_SECONDS):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise ValueError(f"it answers {error.code}") from None
            raise

    Retrying(
        retry=retry_if_exception_type(OSError),
        stop=stop_after_attempt(POST_ATTEMPTS) | stop_after_delay(PATIENCE_SECONDS),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        reraise=True,
    )(attempt)


def _run_command(command: str, payload: dict[str, Any]) -> None:
    """Run a command in the shell, with the payload on its standard input."""
    named = {f"RERANK_{name.upper()}": str(payload[name]) for name in ("event", "status", "output", "run", "message")}
    done = subprocess.run(
        command,
        shell=True,
        input=json.dumps(payload).encode(),
        env={**os.environ, **named},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"it ended with {done.returncode}")


def _describe(error: Exception) -> str:
    """Return the cause of a failure without an address or a command, which may hold a secret."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took more than {COMMAND_SECONDS:.0f} s"
    if isinstance(error, ValueError) and str(error).startswith("it "):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"it answers {error.code}"
    reason = getattr(error, "reason", None)
    return describe_cause(reason) if isinstance(reason, OSError) else type(error).__name__
