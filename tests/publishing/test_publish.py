"""Publishing: outputs on a loopback hub, by the hub's own functions, and what is refused before anything is sent."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import WritableHub
from mining_in_process import make_job, mine_here
from scoring_in_process import score_here

from rerank_actor import storage
from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.mine import mine
from rerank_actor.commands.publish import publish
from rerank_actor.errors import InputError
from rerank_actor.job import load_job
from rerank_actor.outputs.compact import compact_output
from rerank_actor.outputs.folder import digest_parts
from rerank_actor.outputs.scored import open_scored
from rerank_actor.publishing import contents
from rerank_actor.publishing.contents import list_contents
from rerank_actor.publishing.publish import DATA
from rerank_actor.storage import hub

LOAD = """
import sys
from datasets import load_dataset
places = enumerate(sys.argv[1:3])
one, other = (load_dataset(place, split="train", cache_dir=sys.argv[3] + str(number)) for number, place in places)
assert one.num_rows and one.features == other.features and one.to_list() == other.to_list(), (one, other)
print(one.num_rows)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    server = WritableHub()
    server.token = "secret"
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.close()
    hub.pin_revision.cache_clear()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scored output, and what was mined from it."""
    folder = tmp_path_factory.mktemp("outputs")
    rows = [
        {"query": f"query {number // 5}", "document": f"text {number}", "label": int(number % 5 == 0)}
        for number in range(60)
    ]
    (folder / "in").mkdir()
    for shard in range(2):
        pq.write_table(pa.Table.from_pylist(rows[30 * shard : 30 * shard + 30]), folder / "in" / f"{shard}.parquet")
    values = {"input": str(folder / "in"), "output": str(folder / "scored"), "engine": "fake", "gpu_price": 2.0}
    score_here(load_job(None, values))
    for part in (folder / "scored").glob("part-*"):  # as of a model in a folder
        table = pq.read_table(part)
        named = {b"rerank_actor.model": str(folder / "model").encode(), b"rerank_actor.run": b"r"}
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **named}), part)
    rules = {"absolute_margin": None, "false_negatives": "report", "teacher": "logit"}
    assert mine_here(make_job(folder / "scored", folder / "mined", **rules)).status == "complete"
    return folder / "scored", folder / "mined"


def run_publish(*given: str) -> int:
    hub.pin_revision.cache_clear()
    return call_command(lambda: publish([*given]))


def read_repository(server: WritableHub, name: str = "me/data") -> dict[str, bytes]:
    return server.repositories[name][[*server.repositories[name]][-1]]


@pytest.mark.parametrize("kind", ["scored", "mined"])
def test_hub_copy_loads_as_the_folder_does_and_is_sent_once(
    outputs: tuple[Path, Path], server: WritableHub, tmp_path: Path, kind: str
) -> None:
    output = outputs[kind == "mined"]
    given = [str(output), "--to", "me/data", "--private", "--license", "cc-by-4.0"]
    assert run_publish(*given) == 0
    files = read_repository(server)
    parts = {path.name: path.read_bytes() for path in output.glob("part-*")}
    sent = {name: data for name, data in files.items() if name not in (".gitattributes", "README.md")}
    assert sent.keys() == parts.keys()
    assert not [name for name, data in sent.items() if str(output.parent).encode() in data]
    for name, data in sent.items() if kind == "scored" else ():
        table, written = (pq.read_table(pa.BufferReader(one)) for one in (data, parts[name]))
        assert table.equals(written)
        assert {
            b"rerank_actor.shard",
            b"rerank_actor.run",
        } <= written.schema.metadata.keys() - table.schema.metadata.keys()
        assert (
            table.schema.metadata[b"rerank_actor.fingerprint"] == written.schema.metadata[b"rerank_actor.fingerprint"]
        )
        assert table.schema.metadata[b"rerank_actor.model"] == b"model"
    assert kind == "scored" or sent == parts
    assert server.private == {"me/data"}
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    wanted = [
        "- model: ",
        "- template: qwen3-reranker",
        "- instruction: Given a web search query",
        "- cut, in tokens: 8,192",
    ]
    wanted += (
        ["- rows: 60", "- scores: 60"] if kind == "scored" else ["- queries: 12", "## Rules", "- sampling: 4 of these"]
    )
    assert not [words for words in wanted if words not in card]
    assert str(output.parent) not in card
    uploads = len(server.uploads)
    assert run_publish(*given) == 0
    assert read_repository(server) == files and len(server.uploads) == uploads
    command = [sys.executable, "-c", LOAD, str(output), "me/data", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_other_data_is_replaced_only_where_a_flag_says_so(
    outputs: tuple[Path, Path], server: WritableHub, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {".gitattributes": b"", "README.md": b"# mine", "part-7.parquet": b"x"}
    server.commit("me/data", others)
    assert run_publish(str(outputs[1]), "--to", "me/data") == 3
    assert "holds 2 files that are not of this output (README.md, part-7.parquet)" in capsys.readouterr().err
    assert read_repository(server) == others
    server.commit("me/empty", {})
    assert run_publish(str(outputs[1]), "--to", "me/empty", "--private") == 2
    assert "is there and public" in capsys.readouterr().err
    assert run_publish(str(outputs[1]), "--to", "me/data", "--private") == 2
    assert "is there and public" in capsys.readouterr().err
    assert run_publish(str(outputs[1]), "--to", "me/data", "--replace") == 0
    files = read_repository(server)
    assert "part-7.parquet" not in files and b"mined" in files["README.md"]
    assert run_publish(str(outputs[0]), "--to", "me/data", "--revision", "scores") == 3  # a branch begins as main is
    assert run_publish(str(outputs[0]), "--to", "me/data", "--revision", "scores", "--replace") == 0
    assert read_repository(server) == files


def test_upload_that_was_cut_off_goes_on(
    outputs: tuple[Path, Path], server: WritableHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_publish(str(outputs[0]), "--to", "me/whole") == 0
    (name, *_) = sorted(list_contents(str(outputs[0])).files)
    server.commit("me/data", {".gitattributes": b"", name: read_repository(server, "me/whole")[name]})
    assert run_publish(str(outputs[0]), "--to", "me/data") == 0
    assert {name for name in read_repository(server) if name.endswith(".parquet")} == {
        path.name for path in outputs[0].glob("part-*")
    }


def test_joined_parts_are_published_while_they_are_as_they_were_written(
    outputs: tuple[Path, Path], server: WritableHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = tmp_path / "joined"
    compact_output(str(outputs[0]), str(joined), 10**9)
    assert run_publish(str(joined), "--to", "me/data") == 0
    files = read_repository(server)
    (name,) = (name for name in files if name.endswith(".parquet"))
    rows = [row for part in outputs[0].glob("part-*") for row in pq.read_table(part).to_pylist()]
    assert sorted(map(repr, pq.read_table(pa.BufferReader(files[name])).to_pylist())) == sorted(map(repr, rows))
    card = files["README.md"].decode()
    fingerprint = pq.read_schema(joined / name).metadata[b"rerank_actor.fingerprint"].decode()
    assert "- rows: 60" in card and fingerprint in card and "- model: model" in card
    written = (joined / name).read_bytes()
    table = pq.read_table(joined / name)
    for changed in (table.set_column(0, table.column_names[0], table.column(0).take([*range(1, 60), 0])), None):
        if changed is not None:
            pq.write_table(changed, joined / name, write_page_checksum=True)
        else:
            (joined / name).write_bytes(written[:200] + bytes([written[200] ^ 1]) + written[201:])
        mark = {"rows": 60, "fingerprint": fingerprint, "digest": digest_parts(open_scored(str(joined)).parts)}
        storage.write_bytes(f"{joined}/_SUCCESS", storage.seal_json(mark))
        assert run_publish(str(joined), "--to", "me/other") != 0
        assert ("holds other rows" if changed is not None else "cannot be read") in capsys.readouterr().err
    (joined / "_SUCCESS").unlink()
    assert run_publish(str(joined), "--to", "me/other") == 2
    assert "run jobs.compact to the end" in capsys.readouterr().err
    assert "me/other" not in server.repositories


def test_more_files_than_a_folder_of_the_hub_holds_are_refused_unread() -> None:
    names = [f"part-{number:05d}.parquet" for number in range(contents.MOST_FILES + 1)]
    contents.refuse_many(names[1:], "/scores", "join them")
    contents.refuse_many([*names[1:], "corpus/train-00000.parquet"], "/scores", "join them")
    with pytest.raises(InputError, match=r"/scores: has 10,001 files, .*10,000 at most; join them"):
        contents.refuse_many(names, "/scores", "join them")


def test_repository_of_other_data_is_found_before_anything_is_mined(
    outputs: tuple[Path, Path], server: WritableHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.commit("me/data", {".gitattributes": b"", "README.md": b"# mine", "part-7.parquet": b"x"})
    flags = ["--scored", str(outputs[0]), "--output", str(tmp_path / "o"), "--label-column", "label", "--push-to-hub"]
    for given, code, words in (
        (["me/data"], 3, "holds 2 files that are not of this output"),
        (["me/data", "--hub-private"], 2, "is there and public"),
    ):
        assert call_command(lambda given=given: mine([*flags, *given])) == code
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_dry_run_prints_card_and_files_and_touches_nothing(
    outputs: tuple[Path, Path], server: WritableHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run_publish(str(outputs[1]), "--to", "me/data", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "license: unknown" in said and "# me/data" in said
    assert all(path.name in said for path in outputs[1].glob("part-*"))
    assert not server.requests


def test_what_cannot_be_published_is_refused_before_the_hub_is_asked_to_write(
    outputs: tuple[Path, Path],
    server: WritableHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(outputs[1], damaged)
    part = next(damaged.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    partial = tmp_path / "partial"
    shutil.copytree(outputs[0], partial)
    next(partial.glob("part-*")).unlink()
    cases: list[tuple[list[str], str]] = [
        ([str(damaged), "--to", "me/data"], "is not right, so that it is not published"),
        ([str(partial), "--to", "me/data"], "1 of 2 parts are not scored yet"),
        ([str(tmp_path), "--to", "me/data"], "no job has written here"),
        ([str(outputs[0]), "--to", "data"], "which is OWNER/NAME"),
    ]
    for given, words in cases:
        assert run_publish(*given) == 2
        assert words in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    flags: list[Any] = ["--scored", str(outputs[0]), "--output", str(tmp_path / "o"), "--label-column", "label"]
    for run in (
        lambda: publish([str(outputs[0]), "--to", "me/data"]),
        lambda: mine([*flags, "--push-to-hub", "me/data"]),
    ):
        assert call_command(run) == 2
        assert "there is no token of the hub to write with" in capsys.readouterr().err
    assert not server.repositories and not (tmp_path / "o").exists()


def test_files_of_mined_values_are_known_for_data() -> None:
    own = ["part-0123456789ab-00000.parquet", "part-00000.parquet", "ranklist-00005.tsv", "corpus/train-00005.parquet"]
    own += [f"ds=x/{name}" for name in ("part-00001.jsonl", "ranklist-00005.tsv", "corpus/train-00005.parquet")]
    assert all(map(DATA.fullmatch, own))
    assert not any(map(DATA.fullmatch, ("notes.md", "corpus/mine.txt", "notes/corpus/train-00005.parquet")))
