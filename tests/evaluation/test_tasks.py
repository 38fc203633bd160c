"""Rerankers on tasks: BEIR folders and MTEB's repositories, candidates, scores, and the table that comes of them."""

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import HubServer, serve_hub
from scoring_in_process import score_here

from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.evaluate import evaluate
from rerank_actor.commands.plan import plan
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.evaluation.changed import compute_p_mrr
from rerank_actor.evaluation.estimate import TasksEstimate, estimate_tasks, print_task_estimate
from rerank_actor.evaluation.given import Sections, find_given
from rerank_actor.evaluation.job import EvaluateJob
from rerank_actor.evaluation.run import (
    Evaluated,
    judge_subset,
    judge_subsets,
    make_scoring_jobs,
    prepare_tasks,
    reads_instruction,
    refuse_useless_reuse,
)
from rerank_actor.evaluation.task_files import is_pinned
from rerank_actor.evaluation.task_report import TaskReport
from rerank_actor.evaluation.task_texts import prepare_task
from rerank_actor.evaluation.tasks import Task, choose_tasks, find_task, load_suites, load_tasks
from rerank_actor.inputs.pairs import put_title
from rerank_actor.inputs.rankings.qrels import load_judgements
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.outputs.folder import Output
from rerank_actor.progress import QuietReporter
from rerank_actor.storage import hub

QUERIES = {f"q{number}": f"what is {number}?" for number in range(4)}
CORPUS = {f"d{number}": f"it is {number}" for number in range(6)}
QRELS = {"q0": {"d0": 2, "d3": 1}, "q1": {"d1": 1}, "q2": {"d5": 1, "d0": 0}}  # of q3 nobody says anything


def write_beir(folder: Path, qrels: dict[str, dict[str, int]] = QRELS, split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("queries", QUERIES), ("corpus", CORPUS)):
        lines = [json.dumps({"_id": key, "title": "", "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    lines = [f"{query}\t{document}\t{grade}" for query, of in qrels.items() for document, grade in of.items()]
    (folder / f"qrels/{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def write_run(path: Path, queries: Any = QUERIES, documents: Any = CORPUS) -> Path:
    lines = [f"{query} Q0 {one} {rank} {1 / rank:.6f} x" for query in queries for rank, one in enumerate(documents, 1)]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_job(output: Path, **values: Any) -> EvaluateJob:
    return check_job(EvaluateJob, {"engine": "fake", "output": str(output), **values}).normalized()


def score_tasks(job: EvaluateJob) -> None:
    """Score what an evaluation would, in this process; its candidates are there."""
    tasks, _ = choose_tasks(job.tasks, job.suite)
    prepared = prepare_tasks(job, tasks, {}, QuietReporter())
    sections = Sections(job.root)
    given = [sections.pick(find_given(job, data, len(prepared)), data) for _, data in prepared]
    found = [(task, data, str(place)) for (task, data), place in zip(prepared, given, strict=True)]
    for reranker in job.list_rerankers():
        takes = reads_instruction(job, reranker, QuietReporter())
        for _, one in make_scoring_jobs(job, reranker, found, takes_instruction=takes):
            score_here(one.normalized())


def run(*flags: object) -> int:
    return call_command(lambda: evaluate(list(map(str, flags))))


def test_folder_comes_to_a_table_and_to_results_of_mteb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = write_beir(tmp_path / "tiny"), tmp_path / "eval"
    candidates = write_run(tmp_path / "run.trec", QRELS)
    given = {"tasks": [str(folder)], "candidates": str(candidates), "top_k": 5, "instruction": "Find it"}
    score_tasks(make_job(output, **given))
    flags = ["--tasks", folder, "--candidates", candidates, "--top-k", 5, "--engine", "fake", "--output", output]
    flags += ["--instruction", "Find it"]
    before = {path: path.stat().st_mtime_ns for path in output.rglob("part-*")}
    assert run(*flags) == 0  # without Ray, for all is there
    assert {path: path.stat().st_mtime_ns for path in output.rglob("part-*")} == before
    stored = Output(str(output / "scores/fake/tiny/default")).at("job.yaml")
    assert yaml.safe_load(Path(stored).read_text())["instruction"] == "Find it"
    printed = capsys.readouterr().out
    assert (output / "table.md").read_text() == printed
    record = json.loads((output / "evaluation.json").read_text())
    reranked, retrieved, best = record["rows"]
    assert best["tasks"] == {
        "tiny": pytest.approx(2 / 3)
    }  # the relevant document of q2 is no candidate of the best five
    assert retrieved["columns"]["tiny"] == retrieved["tasks"]["tiny"] == pytest.approx((0.9239 + 0.6309) / 3, abs=1e-4)
    assert record["columns"] == {"tiny": {"tasks": ["tiny"], "missing": {}}}
    assert re.fullmatch("[0-9a-f]{16,}", reranked["scores"]["tiny"]["fingerprint"])
    assert reranked["scores"]["tiny"]["pairs"] == 15
    value = f"{100 * reranked['tasks']['tiny']:.2f}"
    assert f"| fake | {value} | - | - |" in printed
    assert (
        f"| tiny | ndcg@10 | 3 | {value} | 51.83 | 66.67 | {reranked['scores']['tiny']['fingerprint'][:12]} |"
        in printed
    )
    result = json.loads((output / "results/fake/tiny.json").read_text())
    assert (
        result["scores"]["test"][0]["main_score"]
        == result["scores"]["test"][0]["ndcg_at_10"]
        == reranked["tasks"]["tiny"]
    )
    assert f'<td class="number">{value}</td>' in (output / "table.html").read_text()
    assert "by_query" in json.loads((output / "evaluations/tiny/default.json").read_text())["rankings"][0]


def test_perfect_and_reversed_rankings_have_the_best_and_the_worst_value(tmp_path: Path) -> None:
    judged = {query: {"d0": 3, "d1": 2, "d2": 1} for query in QUERIES}
    folder, output = write_beir(tmp_path / "tiny", judged), tmp_path / "eval"
    write_run(tmp_path / "tiny.trec", documents=CORPUS)
    values = {}
    for name, signs in (("perfect", -1), ("reversed", 1)):
        job = make_job(output / name, tasks=[str(folder)], candidates=str(tmp_path), measures=["ndcg@10", "mrr", "map"])
        score_tasks(job)
        part = next((output / name / "scores").rglob("part-*"))
        table = pq.read_table(part)
        ranks = [signs * float(document[1:]) for document in table["document_id"].to_pylist()]
        logits = pa.array(ranks, pa.float32())
        place = table.schema.get_field_index("logit")
        pq.write_table(table.set_column(place, "logit", logits), part)
        evaluation = judge_subset(
            job, *prepare_tasks(job, choose_tasks(job.tasks, None)[0], {}, QuietReporter())[0]
        ).evaluation
        assert evaluation is not None
        reranked, retrieved, best = evaluation.rows
        assert retrieved.means == best.means == [1, 1, 1]  # the run has them in this order
        values[name] = reranked.means
    assert values["perfect"] == [1, 1, 1]
    gains = [1 / math.log2(rank + 1) for rank in (6, 5, 4)]
    worst = sum(gain * grade for gain, grade in zip(gains, (3, 2, 1), strict=True)) / (3 + 2 / math.log2(3) + 0.5)
    assert values["reversed"] == pytest.approx([worst, 1 / 4, (1 / 4 + 2 / 5 + 3 / 6) / 3])


def test_changed_judgements_are_taken_up_and_another_split_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_beir(tmp_path / "tiny"), tmp_path / "eval"
    candidates = write_run(tmp_path / "run.trec", QRELS)
    job = make_job(output, tasks=[str(folder)], candidates=str(candidates))
    score_tasks(job)
    write_beir(tmp_path / "other", {query: {"d5": 1} for query in QRELS}, "dev")
    flags = ["--tasks", folder, "--candidates", candidates, "--engine", "fake", "--output", output]
    (folder / "qrels/test.tsv").write_text((tmp_path / "other/qrels/dev.tsv").read_text())
    assert run(*flags) == 0
    assert json.loads((output / "evaluation.json").read_text())["rows"][1]["tasks"]["tiny"] == pytest.approx(
        1 / math.log2(7)
    )
    (folder / "qrels/dev.tsv").write_text((folder / "qrels/test.tsv").read_text())
    assert run(*flags, "--split", "dev") == 3
    assert "holds split test of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\n"}, [], "split test holds no judgement"),
        ({"qrels/test.tsv": "x\t0\td1\t1\n"}, [], "none of the 1 queries that split test judges is among its queries"),
        ({"qrels/train.tsv": "q0 0 d0 1\n"}, ["--split", "dev"], "has no split `dev` of judgements, but test, train"),
        ({"corpus.jsonl": None}, [], "has no corpus; a task has corpus, queries and qrels"),
        ({"qrels/test.tsv": None}, [], "a task has corpus, queries and qrels (qrels/test.tsv)"),
        ({}, ["--subset", "de"], "has no subset `de` with judgements, but default"),
        ({}, ["--top-k", "0"], "--top-k: input should be greater than or equal to 1"),
        ({}, ["--measures", "best"], "--measures: `best` is no measure"),
        ({}, ["--scored", "x"], "--scored judges outputs that are there, --tasks and --suite make them"),
        ({}, ["--retriever", "x"], "--candidates are there, and --retriever makes them"),
        ({}, ["--suite", "qwen"], "--suite: no suite `qwen` (did you mean qwen3-card?)"),
        ({}, ["--suite", "nano"], "is no task of nano"),
        ({}, ["--suite", "nano", "--split", "test"], "--split: a suite says the split of each task"),
    ],
)
def test_what_is_no_task_is_refused_in_a_sentence(
    change: dict[str, str | None], flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_beir(tmp_path / "tiny")
    for name, text in change.items():
        (folder / name).write_text(text) if text is not None else (folder / name).unlink()
    candidates = write_run(tmp_path / "run.trec")
    given = ["--tasks", folder, "--candidates", candidates, "--engine", "fake", "--output", tmp_path / "out"]
    assert run(*given, *flags) == 2
    assert said in capsys.readouterr().err


def test_names_mean_folders_tasks_of_suites_or_the_hub(tmp_path: Path) -> None:
    known = load_tasks()
    assert find_task("SCIDOCS") is find_task("mteb/scidocs") is known["SCIDOCS"]
    assert find_task("hf://datasets/mteb/nfcorpus").place == find_task("mteb/nfcorpus").place
    assert find_task(str(tmp_path)).place == str(tmp_path)
    assert find_task("s3://b/beir/fiqa") == Task("fiqa", "s3://b/beir/fiqa")
    with pytest.raises(
        JobError, match=re.escape("`SCIDOC` is no folder here and no task that is known (did you mean SCIDOCS?)")
    ):
        find_task("SCIDOC")
    card = load_suites()["qwen3-card"]
    sizes = {"MTEB-R": 10, "CMTEB-R": 8, "MMTEB-R": 18, "MLDR": 1, "MTEB-Code": 12, "FollowIR": 3}
    assert {name: len(names) for name, names in card.columns.items()} == sizes
    assert card.published["Qwen/Qwen3-Reranker-0.6B"] == [65.80, 71.31, 66.36, 67.28, 73.42, 5.41]
    assert len(load_suites()["nano"].list_names()) == 13
    for suite in load_suites().values():
        assert all(is_pinned(known[name].place) and known[name].instruction for name in suite.list_names())
    assert len(known["BelebeleRetrieval"].subsets) == 376


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def make_repository(subsets: dict[str, str], split: str = "dev") -> dict[str, bytes]:
    """Return a repository of MTEB's layout: `subsets` say what their documents' ids begin with; each has all of its parts."""
    files, configs = {}, []
    for subset, mark in subsets.items():
        head = f"{subset}-" if subset else ""
        rows: dict[str, list[dict[str, Any]]] = {
            f"{head}corpus": [{"_id": mark + key, "title": "t", "text": text} for key, text in CORPUS.items()],
            f"{head}queries": [{"_id": key, "text": text} for key, text in QUERIES.items()],
            f"{head}qrels" if subset else "default": [
                {"query-id": query, "corpus-id": mark + one, "score": grade}
                for query, of in QRELS.items()
                for one, grade in of.items()
            ],
        }
        for name, found in rows.items():
            own = split if name.endswith(("qrels", "default")) else name.rpartition("-")[2]
            configs += [f"- config_name: {name}", "  data_files:", f"  - {{split: {own}, path: {name}/{own}-*}}"]
            files[f"{name}/{own}-00000-of-00001.parquet"] = to_parquet(found)
    return {"README.md": "\n".join(["---", "configs:", *configs, "---"]).encode(), **files}


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    yield from serve_hub(monkeypatch)


def test_repository_on_the_hub_has_subsets(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.commit("mteb/tiny", make_repository({"de": "x", "en": "y"}))
    job = make_job(tmp_path, tasks=["mteb/tiny"])
    tasks, _ = choose_tasks(job.tasks, None)
    found = [data for _, data in prepare_tasks(job, tasks, {}, QuietReporter())]
    assert [(data.subset, data.split, data.num_queries) for data in found] == [("de", "dev", 3), ("en", "dev", 3)]
    for data, mark in zip(found, "xy", strict=True):
        assert load_judgements(data.qrels)["q1"] == {f"{mark}d1": 1}
        assert pq.read_table(data.corpus[0])["_id"].to_pylist() == [mark + name for name in CORPUS]
        lines = [json.loads(line) for line in Path(data.queries).read_text().splitlines()]
        assert lines == [{"_id": query, "text": QUERIES[query]} for query in QRELS]
    suite_task = Task("named", tasks[0].place, split="test")
    assert [data.split for data in prepare_task(suite_task, str(tmp_path), "dev", [])] == ["dev", "dev"]
    with pytest.raises(InputError, match="has no split `test` of judgements"):
        prepare_task(suite_task, str(tmp_path / "other"), None, [])
    hub_server.commit("mteb/tiny", make_repository({"de": "z", "en": "y"}))
    hub.pin_revision.cache_clear()
    with pytest.raises(OutputConflictError, match="holds split dev of hf://datasets/mteb/tiny@"):
        prepare_tasks(job, tasks, {}, QuietReporter())
    with pytest.raises(InputError, match="not found while listing; check the repository"):
        prepare_tasks(
            make_job(tmp_path, tasks=["mteb/none"]), choose_tasks(["mteb/none"], None)[0], {}, QuietReporter()
        )


def test_copy_of_a_repository_is_read_as_mteb_reads_it(tmp_path: Path) -> None:
    """Splits from names of files and folders, `default` in data/, shards; and texts that are conversations."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    queries = [
        {"_id": "q0", "text": turns, "query": "other", "instruction": None},
        {"_id": "q1", "text": ["a", "b"], "query": "other", "instruction": "Do it"},
        {"_id": 2, "text": " c ", "query": "other", "instruction": "Do it"},
    ]
    judged = [[{"query-id": one, "corpus-id": 1, "score": 1}] for one in ("q0", "q1", 2)]
    layouts: list[dict[str, list[dict[str, Any]]]] = [
        {"data/test-00000-of-00002.jsonl": judged[0], "data/test-00001-of-00002.jsonl": judged[1] + judged[2],
         "data/train-00000-of-00001.jsonl": [{"query-id": "q0", "corpus-id": 0, "score": 1}]},
        {"default/test/0000.jsonl": judged[0], "default/test/0001.jsonl": judged[1] + judged[2],
         "default/train/0000.jsonl": [{"query-id": "q0", "corpus-id": 0, "score": 1}]},
        {"default/part-00000-c.jsonl": judged[0], "default/part-00001-c.jsonl": judged[1] + judged[2],
         "qrels.jsonl": [{"query-id": "q0", "corpus-id": 0, "score": 1}]},
    ]  # fmt: skip
    for number, layout in enumerate(layouts):
        layout |= {"corpus/part-0.jsonl": [{"_id": 0, "text": "x"}], "corpus/part-1.jsonl": [{"_id": 1, "text": "y"}]}
        for name, rows in (layout | {"queries/queries-00000-of-00001.jsonl": queries}).items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        [task] = choose_tasks([str(tmp_path / str(number))], None)[0]
        [data] = prepare_task(task, str(tmp_path / "out"), None, [])
        assert load_judgements(data.qrels) == {"q0": {"1": 1}, "q1": {"1": 1}, "2": {"1": 1}}
        texts = [json.loads(line)["text"] for line in Path(data.queries).read_text().splitlines()]
        assert texts == ["user: hi; assistant: yes?", "Do it a; b", " c  Do it"]
        assert len(data.corpus) == 2
    (tmp_path / "0/data/test-00001-of-00002.jsonl").write_text(json.dumps({**judged[0][0], "score": 2}) + "\n")
    with pytest.raises(
        InputError, match="document '1' is judged otherwise for query 'q0' in another file of split test"
    ):
        prepare_task(choose_tasks([str(tmp_path / "0")], None)[0][0], str(tmp_path / "out"), None, [])


def test_layouts_of_their_own_become_what_mteb_makes_of_them(hub_server: HubServer, tmp_path: Path) -> None:
    def to_lines(rows: list[dict[str, Any]]) -> bytes:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    rows = [("l0", "p0 ", "a"), ("l1", "p1", "b"), ("l0", "p0 ", "c"), ("l1", "p1", "a")]
    belebele = {
        f"data/{name}.jsonl": to_lines(
            [
                {"link": link, "flores_passage": name + text, "question": name + question}
                for link, text, question in some
            ]
        )
        for name, some in (("x", rows), ("y", rows[::-1]))
    }
    configs = [f"- config_name: {name}\n  data_files:\n  - {{split: test, path: data/{name}.jsonl}}" for name in "xy"]
    belebele["README.md"] = "\n".join(["---", "configs:", *configs, "---"]).encode()
    edits = [{"commit": f"c{number % 2}", "diff": f"{number}\n", "instruction": f"do {number}"} for number in range(3)]
    for layout, split, files, subset, wanted in (
        ("belebele", "test", belebele, "x-y", ({"C0": "xp0", "C1": "xp1"}, {"Q0": "ya", "Q1": "yc", "Q2": "yb"},
          {"Q0": {"C1": 1, "C0": 1}, "Q1": {"C0": 1}, "Q2": {"C1": 1}})),
        ("code-edits", "train", {"c++/train.jsonl": to_lines(edits), "c/train.jsonl": to_lines(edits[:1])}, "c++",
         ({"c0": "2", "c1": "1"}, {"0": "do 0", "1": "do 1", "2": "do 2"}, {"0": {"c0": 1}, "1": {"c1": 1}, "2": {"c0": 1}})),
    ):  # fmt: skip
        place = f"hf://datasets/mteb/{layout}@{hub_server.commit('mteb/' + layout, files)}"
        task = Task(layout, place, split=split, subsets=(subset,), layout=layout)
        [data] = prepare_task(task, str(tmp_path), None, [])
        corpus, queries, judged = wanted
        documents = [json.loads(line) for line in Path(data.corpus[0]).read_text().splitlines()]
        assert {one["_id"]: put_title(one["text"], one["title"]) for one in documents} == corpus
        lines = [json.loads(line) for line in Path(data.queries).read_text().splitlines()]
        assert {one["_id"]: one["text"] for one in lines} == queries
        assert load_judgements(data.qrels) == judged


def test_task_with_instructions_and_lists_of_its_own(hub_server: HubServer, tmp_path: Path) -> None:
    files = make_repository({"": ""}, "test")
    ids = ["1-og", "1-changed", "3-og", "3-changed"]  # of the second nothing changes, and it does not count
    more = {
        "queries": [{"_id": name, "text": "what"} for name in ids],
        "instruction": [{"query-id": name, "instruction": f"as {name} says"} for name in ids],
        "default": [{"query-id": name, "corpus-id": one, "score": int(one[1:] in wanted)}
                    for name, wanted in zip(ids, ("01", "1", "0", "0"), strict=True) for one in ("d0", "d1", "d2")],
        "top_ranked": [{"query-id": name, "corpus-ids": ["d2", "d0", "d1"]} for name in [*ids, "2-og"]],
        "qrel_diff": [{"query-id": "1", "corpus-ids": ["d0"]}, {"query-id": "3", "corpus-ids": []}],
    }  # fmt: skip
    files = {name: data for name, data in files.items() if name.startswith("corpus")}
    configs = ["- config_name: corpus", "  data_files: corpus/*"]
    for name, rows in more.items():
        split = "test" if name in ("default", "top_ranked") else name
        configs += [f"- config_name: {name}", "  data_files:", f"  - {{split: {split}, path: {name}/*}}"]
        files[f"{name}/part.parquet"] = to_parquet(rows)
    hub_server.commit("mteb/follow", {"README.md": "\n".join(["---", "configs:", *configs, "---"]).encode(), **files})
    job = make_job(tmp_path, tasks=["mteb/follow"], measures=["p-mrr", "ndcg@5"])
    score_tasks(job)
    [(task, data)] = prepare_tasks(job, choose_tasks(job.tasks, None)[0], {}, QuietReporter())
    texts = [json.loads(line)["text"] for line in Path(data.queries).read_text().splitlines()]
    assert texts == [f"what as {name} says" for name in ids]
    assert data.changed == {"1": ["d0"], "3": []}
    judged = judge_subset(job, task, data).evaluation
    assert judged is not None
    part = pq.read_table(next((tmp_path / "scores").rglob("part-*"))).to_pylist()
    ranks = []
    for name in ids[:2]:
        own = {row["document_id"]: (row["logit"], row["document_id"]) for row in part if row["query_id"] == name}
        ranks.append(sorted(own, key=own.__getitem__, reverse=True).index("d0") + 1)
    assert judged.rows[0].means[0] == pytest.approx(compute_p_mrr(ranks[:1], ranks[1:]))


def test_column_with_a_missing_task_has_no_mean(
    hub_server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "NanoSCIDOCSRetrieval"
    commit = hub.split_hub_uri(load_tasks()[name].place)[1]
    hub_server.repositories["mteb/" + name] = {commit: make_repository({"": ""}, "train")}
    write_run(tmp_path / f"{name}.trec", QRELS)
    flags = {"suite": "nano", "candidates": str(tmp_path)}
    missing: dict[str, str] = {}
    job = make_job(tmp_path / "eval", **flags)
    assert len(prepare_tasks(job, choose_tasks([], "nano")[0], missing, QuietReporter())) == 1
    assert len(missing) == 12
    score_tasks(job)
    assert run("--suite", "nano", "--candidates", tmp_path, "--engine", "fake", "--output", tmp_path / "eval") == 1
    printed = capsys.readouterr().out
    assert "| fake | - (1 of 13) | - | - |" in printed
    assert "- missing: NanoQuoraRetrieval (hf://datasets/mteb/NanoQuoraRetrieval@" in printed
    record = json.loads((tmp_path / "eval/evaluation.json").read_text())
    assert record["rows"][0]["columns"] == {"NanoBEIR": None}
    assert len(record["columns"]["NanoBEIR"]["missing"]["fake"]) == 12
    assert (
        run(
            "--suite",
            "nano",
            "--tasks",
            name,
            "--candidates",
            tmp_path,
            "--engine",
            "fake",
            "--output",
            tmp_path / "eval",
        )
        == 0
    )


def test_task_with_a_subset_without_candidates_has_no_mean(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.commit("mteb/tiny", make_repository({"de": "x", "en": ""}))
    for name in ("de", "en"):
        write_run(tmp_path / f"tiny_{name}.trec", QRELS, [("x" if name == "de" else "") + one for one in CORPUS])
    job = make_job(tmp_path / "eval", tasks=["mteb/tiny"], candidates=str(tmp_path))
    score_tasks(job)
    tasks, suite = choose_tasks(job.tasks, job.suite)
    prepared = prepare_tasks(job, tasks, {}, QuietReporter())
    both = [data for _, data in prepared]
    for found, is_complete in ((both, True), (both[1:], False), ([], False)):
        report = TaskReport.of(Evaluated(job, suite, tasks, judge_subsets(job, prepared, found)))
        assert report.is_complete is is_complete
        assert [set(line.tasks) for line in report.lines] == [{"tiny"}] * 3 if is_complete else [set()]
        assert ("| fake | - | - | - |" in report.make_markdown()) is not is_complete


def test_predictions_of_several_subsets_and_splits_in_one_file_are_told_apart(
    hub_server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_server.commit("mteb/tiny", make_repository({"de": "x", "en": ""}))
    made = {
        subset: {split: {query: {mark + one: 1 / rank} for rank, query in enumerate(QRELS, 1)} for split, one in splits}
        for subset, mark, splits in (("de", "x", (("test", "d0"), ("dev", "d1"))), ("en", "", (("dev", "d5"),)))
    }
    file = tmp_path / "tiny_predictions.json"
    for place in (file, tmp_path):
        file.write_text(json.dumps({"mteb_model_meta": None, **made}, indent=1))
        job = make_job(
            tmp_path / f"eval-{place.name}", tasks=["mteb/tiny"], candidates=str(place), measures=["recall@5"]
        )
        score_tasks(job)
        rows = {path.parent.name: pq.read_table(path).to_pylist() for path in Path(job.root).rglob("part-*")}
        assert {row["document_id"] for row in rows["de"]} == {"xd1"}
        assert {row["document_id"] for row in rows["en"]} == {"d5"}
        assert [row["retrieval_score"] for row in rows["de"]] == pytest.approx([1, 1 / 2, 1 / 3])
    file.write_text(json.dumps({"de": {"test": made["de"]["test"]}}))
    flags = ["--tasks", "mteb/tiny", "--candidates", file, "--engine", "fake", "--output", tmp_path / "other"]
    assert run(*flags) == 2
    assert "holds de/test, and de/dev of tiny is wanted" in capsys.readouterr().err
    file.write_text(json.dumps({"default": {"test": {"q0": {"xd0": 1}}}}))  # as exports say where nobody names them
    assert Sections("").pick(str(file), prepare_tasks(job, choose_tasks(job.tasks, None)[0], {}, QuietReporter())[0][1])


def test_dry_run_says_pairs_tokens_hours_and_money_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_beir(tmp_path / "tiny"), tmp_path / "eval"
    flags = ["--engine", "fake", "--output", output, "--dry-run", "--gpu-price", 2, "--tokens-per-second", 1000]
    assert run("--tasks", folder, "--top-k", 5, *flags) == 0
    printed = capsys.readouterr().out
    assert re.search(r"tiny +3 +15 +[1-9][0-9]+ +9 +3 sampled", printed)
    assert not output.exists()
    assert run("--suite", "qwen3-card", *flags) == 0
    found = estimate_tasks(make_job(output, suite="qwen3-card", tokens_per_second=1000), QuietReporter())
    assert not found.unknown and len(found.samples) == 47
    [reranker] = found.rerankers
    assert reranker.budget.estimate.rows == sum(sample.num_pairs for sample in found.samples) > 50_000_000
    assert reranker.budget.tokens == pytest.approx(
        sum(sample.num_pairs * mean for sample, mean in zip(found.samples, reranker.tokens, strict=True)), rel=1e-6
    )
    printed = capsys.readouterr().out
    assert f"{reranker.budget.tokens:,} to score" in printed
    assert "$2.00 (as given)" in printed
    (tmp_path / "config.json").write_text(
        json.dumps({"num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 3072})
    )
    given = {"suite": "nano", "retriever": str(tmp_path)}
    times = [estimate_tasks(make_job(output, gpu_type=gpu, **given), QuietReporter()) for gpu in ("H200", "L4")]
    assert times[0].embedding_hours is not None and times[1].embedding_hours is not None
    assert 120 / 3600 < times[0].embedding_hours < times[1].embedding_hours
    flags = ["--suite", "nano", "--retriever", tmp_path, "--engine", "fake", "--output", output, "--gpu-type", "H200"]
    assert call_command(lambda: plan(list(map(str, flags)))) == 0
    assert re.search(r"to embed: [\d,]+ texts of about [\d,]+ tokens, .+ of one GPU, \$\d", capsys.readouterr().out)
    assert not output.exists()


def test_dry_run_of_tasks_of_which_nothing_is_known_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_task_estimate(TasksEstimate([], ["SomeTask"], [], 0.0))
    assert "not known before it is copied: SomeTask" in capsys.readouterr().out


def test_dry_run_counts_the_pairs_that_are_scored(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "tiny")
    run_file = write_run(tmp_path / "run.trec", QRELS)
    pairs = [(query, document) for query in QRELS for document in CORPUS]
    parquet, lists = tmp_path / "pairs.parquet", tmp_path / "lists.parquet"
    pq.write_table(pa.table([*zip(*pairs, strict=True)], ["query_id", "document_id"]), parquet)
    pq.write_table(pa.table({"query_id": list(QRELS), "document_id": [list(CORPUS)] * len(QRELS)}), lists)
    own = write_beir(tmp_path / "own")
    (own / "top_ranked").mkdir()
    (own / "top_ranked/test.jsonl").write_text(
        "\n".join(json.dumps({"query-id": query, "corpus-ids": list(CORPUS)}) for query in QRELS)
    )
    for tasks, candidates, top_k, wanted in (
        (folder, run_file, 2, 6),
        (folder, parquet, None, 18),
        (folder, parquet, 2, 6),
        (folder, lists, None, 18),
        (own, None, None, 18),
        (own, None, 2, 18),
        (own, run_file, 2, 6),
    ):
        values = {"candidates": candidates and str(candidates), "top_k": top_k}
        job = make_job(tmp_path / "eval", tasks=[str(tasks)], **{name: one for name, one in values.items() if one})
        [sample] = estimate_tasks(job, QuietReporter()).samples
        assert sample.num_pairs == wanted, (tasks, candidates, top_k)
    job = make_job(tmp_path / "eval", tasks=[str(folder), str(own)], candidates=str(run_file))
    with pytest.raises(InputError, match="is one file, and there are 2 tasks"):
        estimate_tasks(job, QuietReporter())
    assert not (tmp_path / "eval").exists()


def test_dry_run_of_a_task_that_is_copied_in_part_copies_no_more(hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.commit("mteb/tiny", make_repository({"de": "x", "en": ""}))
    given = {"tasks": ["mteb/tiny"], "candidates": str(write_run(tmp_path / "run.trec", QRELS))}
    one = make_job(tmp_path / "eval", subset=["en"], **given)
    prepare_tasks(one, choose_tasks(one.tasks, None)[0], {}, QuietReporter())
    there = sorted(path for path in (tmp_path / "eval").rglob("*"))
    assert estimate_tasks(one, QuietReporter()).samples
    for wanted in (["de", "en"], []):
        assert estimate_tasks(make_job(tmp_path / "eval", subset=wanted, **given), QuietReporter()).unknown
    assert sorted(path for path in (tmp_path / "eval").rglob("*")) == there


def test_reuse_of_an_evaluation_without_scores_of_these_tasks_is_refused(tmp_path: Path) -> None:
    folder, run_file = write_beir(tmp_path / "tiny"), write_run(tmp_path / "run.trec", QRELS)
    first, again = (
        make_job(tmp_path / name, tasks=[str(folder)], candidates=str(run_file), **more)
        for name, more in (("eval", {}), ("again", {"reuse": str(tmp_path / "eval")}))
    )
    prepared = prepare_tasks(again, choose_tasks(again.tasks, None)[0], {}, QuietReporter())
    found = [(task, data, str(run_file)) for task, data in prepared]

    def make() -> list[ScoreJob]:
        return [one for _, one in make_scoring_jobs(again, "fake", found, takes_instruction=True)]

    with pytest.raises(InputError, match=r"--reuse .*eval: has no scores of these tasks by fake"):
        refuse_useless_reuse(again, make())
    score_tasks(first)
    refuse_useless_reuse(again, make())


def test_embedding_model_and_reranker_do_not_stand_for_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_beir(tmp_path / "tiny")
    models = {}
    for name, architecture in (("embedder", "BertModel"), ("reranker", "BertForSequenceClassification")):
        models[name] = tmp_path / name
        models[name].mkdir()
        config = {"architectures": [architecture], "model_type": "bert", "hidden_size": 8, "id2label": {"0": "LABEL_0"}}
        (models[name] / "config.json").write_text(json.dumps(config))
        (models[name] / "model.safetensors").write_bytes(b"")
    modules = [
        {"type": f"sentence_transformers.models.{name}", "path": path}
        for name, path in (("Transformer", ""), ("Pooling", "1"))
    ]
    (models["embedder"] / "modules.json").write_text(json.dumps(modules))
    flags = ["--tasks", folder, "--engine", "fake", "--output", tmp_path / "out"]
    assert run(*flags, "--model", models["embedder"], "--candidates", write_run(tmp_path / "run.trec")) == 2
    assert "embedding model" in capsys.readouterr().err
    assert run(*flags, "--retriever", models["reranker"]) == 2
    assert "is a reranker (modules.json is missing), and candidates are found by vectors" in capsys.readouterr().err
