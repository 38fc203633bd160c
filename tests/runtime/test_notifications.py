"""Notices: who is told what when a run ends or gets into trouble, and that nothing depends on it."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.run import score_bitext
from rerank_actor.errors import JobError
from rerank_actor.job import ScoreJob, load_job
from rerank_actor.job_file import check_job
from rerank_actor.progress import QuietReporter
from rerank_actor.runtime.notifications import Notifier, NotifyingReporter
from rerank_actor.scoring.run import RunLimits, run_job

SECRET = "T00/B00/xoxb-hook-secret"
TEXT = "words of a pair"


class Hook:
    """A server on loopback that takes JSON, and answers with the codes it is given, then with 200."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.codes: list[int] = []
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = hook.codes.pop(0) if hook.codes else 200
                if code == 200:
                    hook.taken.append(body)
                self.send_response(code)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{SECRET}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.close()


class Words(QuietReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, message: str) -> None:
        self.said.append(message)


def make_job(folder: Path, **settings: Any) -> ScoreJob:
    return ScoreJob(input=[str(folder / "in")], output=str(folder / "out"), engine="fake", **settings).normalized()


def write_shards(folder: Path) -> None:
    (folder / "in").mkdir()
    pq.write_table(pa.table({"query": ["q"], "document": [TEXT]}), folder / "in/sound.parquet")
    (folder / "in/broken.parquet").write_bytes(b"PAR1 this is none PAR1")


def test_run_with_a_failed_unit_tells_of_trouble_and_of_its_end(tmp_path: Path, local_ray: str, hook: Hook) -> None:
    write_shards(tmp_path)
    command = f"cat > {tmp_path}/$RERANK_EVENT-$RERANK_STATUS.json"
    words = Words()
    job = make_job(tmp_path, webhook=hook.url, on_finish=command, on_trouble=command, ray_address=local_ray)
    assert run_job(job, words).status == "failed"
    trouble, end = hook.taken
    assert (trouble["event"], trouble["status"], end["event"], end["status"]) == (
        "trouble",
        "running",
        "finished",
        "failed",
    )
    assert "broken.parquet" in trouble["text"]
    assert trouble["text"].startswith(job.output)
    assert (end["rows"], end["total_rows"], end["failed_units"]) == (1, 1, 1)
    assert json.loads((tmp_path / "trouble-running.json").read_text()) == trouble
    assert json.loads((tmp_path / "finished-failed.json").read_text()) == end
    kept = "".join(path.read_text(errors="replace") for path in (tmp_path / "out/_job").rglob("*") if path.is_file())
    assert "keep_columns" in kept
    for secret in (SECRET, "$RERANK_EVENT"):
        assert secret not in kept
    assert TEXT not in json.dumps(hook.taken)
    assert not [line for line in words.said if SECRET in line]


def test_run_over_language_pairs_tells_once_of_trouble_in_one_and_of_the_end_of_all(
    tmp_path: Path, local_ray: str, hook: Hook
) -> None:
    output = tmp_path / "out"
    (tmp_path / "in").mkdir()
    for language in ("ara", "deu", "fra"):
        (tmp_path / f"in/a.{language}-eng.tsv").write_text("".join(f"Satz {i}\tphrase {i}\n" for i in range(20)))
    (tmp_path / "in/b.deu-eng.tsv").write_text("noch ein Satz\tanother phrase\n")
    flags = {"input": [str(tmp_path / "in")], "output": str(output), "engine": "fake", "min_script": 0}

    def run(**more: Any) -> list[str]:
        job = check_job(BitextJob, {**flags, **more}, None, more).normalized()
        limits = RunLimits(open_outputs=2)  # so that the third goes in a wave of its own
        return [result.status for result in score_bitext(job, limits=limits).values()]

    assert run(partitions=["deu-eng"]) == ["complete"]
    for part in (output / "lang_pair=deu-eng").glob("part-*.parquet"):
        part.unlink()
    shards = (output / "_candidates/lang_pair=deu-eng").glob("*.bin")
    shard = next(path for path in shards if pq.read_metadata(path).num_rows == 20)
    shard.write_bytes(b"PAR1 this is none PAR1")
    command = f"cat > {tmp_path}/$RERANK_EVENT-$RERANK_STATUS.json"
    assert run(webhook=hook.url, on_finish=command, on_trouble=command) == ["complete", "failed", "complete"]
    trouble, end = hook.taken
    assert (trouble["event"], end["event"], end["status"]) == ("trouble", "finished", "failed")
    assert shard.name in trouble["text"]
    assert trouble["output"] == end["output"] == str(output), "the folder of all language pairs"
    assert (end["rows"], end["failed_units"]) == (41, 1)
    assert json.loads((tmp_path / "trouble-running.json").read_text()) == trouble
    assert json.loads((tmp_path / "finished-failed.json").read_text()) == end
    manifests = [json.loads((output / f"lang_pair={one}-eng/_job/manifest.json").read_text()) for one in ("ara", "fra")]
    assert [found["runs"][-1]["status"] for found in manifests] == ["complete", "complete"]
    assert manifests[0]["engines"] != manifests[1]["engines"], "engines start once for each wave"
    assert not (output / "lang_pair=deu-eng/_SUCCESS").exists()


def test_webhook_that_stumbles_is_asked_again(tmp_path: Path, hook: Hook) -> None:
    hook.codes = [503, 429]
    words = Words()
    Notifier(make_job(tmp_path, webhook=hook.url), "run", words).report_end("complete", "done", {"rows": 3})
    assert [(one["event"], one["status"], one["rows"]) for one in hook.taken] == [("finished", "complete", 3)]
    assert words.said == []


def test_notice_that_cannot_be_delivered_is_told_without_its_address(tmp_path: Path, hook: Hook) -> None:
    hook.codes = [404]
    words = Words()
    job = make_job(tmp_path, webhook=hook.url, on_finish=f"exit 7 # {SECRET}")
    Notifier(job, "run", words).report_end("complete", "done")
    assert hook.taken == []
    assert sorted(words.said) == [
        "--webhook could not be carried out (it answers 404)",
        "the command of the notice could not be carried out (it ended with 7)",
    ]


def test_trouble_is_told_once_in_a_while(tmp_path: Path, hook: Hook) -> None:
    notifier = Notifier(make_job(tmp_path, webhook=hook.url), "run", QuietReporter())
    for number in range(50):
        notifier.report_trouble(f"unit {number} failed")
    notifier.report_end("failed", "50 units failed")
    assert sorted(one["message"] for one in hook.taken) == ["50 units failed", "unit 0 failed"]


def test_webhook_that_is_no_address_is_refused() -> None:
    with pytest.raises(JobError, match=r"--webhook: expected an address that begins with https://"):
        load_job(None, {"input": ["a"], "output": "b", "webhook": "hooks.example.com/x"})


def test_warning_reaches_a_reporter_of_the_callers_own_as_a_warning(tmp_path: Path) -> None:
    class Own(QuietReporter):
        def __init__(self) -> None:
            self.heard: list[tuple[str, str]] = []

        def info(self, message: str) -> None:
            self.heard.append(("info", message))

        def warn(self, message: str) -> None:
            self.heard.append(("warn", message))

    own, trouble = Own(), tmp_path / "trouble.json"
    job = ScoreJob(input=["in"], output=str(tmp_path / "out"), engine="fake", on_trouble=f"cat > {trouble}")
    notifier = Notifier(job, "run", own)
    reporter = NotifyingReporter(own, notifier, lambda: {"rows": 3})
    reporter.info("as it goes")
    reporter.warn("look at this")
    notifier.report_end("complete", "done", {})
    assert own.heard[:2] == [("info", "as it goes"), ("warn", "look at this")]
    assert json.loads(trouble.read_text())["rows"] == 3
