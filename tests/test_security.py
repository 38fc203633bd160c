"""Security: nothing of an input, a model, a job file or an output runs as code, and nothing secret is written down."""

import gzip
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT, run_command
from s3_server import S3Server

from rerank_actor.commands import command_line
from rerank_actor.commands.score import score
from rerank_actor.engines.model import fetch_weights, load_reranker_model, load_tokenizer_json
from rerank_actor.engines.options import HARMLESS_ENGINE_ARGS, SCORING_ENGINE_ARGS
from rerank_actor.engines.template import QWEN3_RERANKER
from rerank_actor.errors import JobError, ModelError
from rerank_actor.inputs.columns import RESERVED_COLUMNS
from rerank_actor.inputs.plan import Plan
from rerank_actor.inputs.rows import Unit
from rerank_actor.inputs.spec import InputSpec
from rerank_actor.job import load_job
from rerank_actor.outputs.folder import RECORD_SCHEMA, Output
from rerank_actor.outputs.part import check_part
from rerank_actor.scoring.prepare import PrepareSpec, prepare_unit
from rerank_actor.scoring.write import write_part

NO_RAY = "127.0.0.1:1"
NEEDED = {"input": "/in", "output": "/out"}
SECRET = "planted-secret-0123456789"
TEXT = "confidential words"
GUILTY, GUILTY_TOKEN = "\x07", 197  # a prompt that the fake engine fails on, by the byte tokenizer


class Bomb:
    """An object that leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """The path of what must not come to be; a bomb is shown to make it."""
    path = tmp_path / "code-was-run"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.rmdir()
    yield path
    assert not path.exists()


@pytest.fixture
def run_score(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the main job in this process and gives its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        code = command_line.call_command(lambda: score([str(argument) for argument in arguments]))
        printed = capsys.readouterr()
        return code, printed.err + printed.out

    return run


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    """A sample model to spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


# The job file.


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{trace}]",
        "!!python/object/new:os.mkdir [{trace}]",
        "!!python/name:os.system",
        "!!python/module:antigravity",
        "!!python/object/apply:subprocess.check_output [[mkdir, {trace}]]",
    ],
)
def test_job_file_that_names_code_is_refused(run_score: Any, tmp_path: Path, trace: Path, value: str) -> None:
    (tmp_path / "job.yaml").write_text(f"input: /in\noutput: {value.format(trace=trace)}\n")
    code, said = run_score(tmp_path / "job.yaml")
    assert code == 2
    assert said.startswith("error: ") and "is no YAML" in said and len(said.splitlines()) == 1


# Engine arguments.

CODE_OR_OTHER_SCORES = {
    "worker_cls": "os.system",
    "worker_extension_cls": "evil.Extension",
    "scheduler_cls": "evil.Scheduler",
    "logits_processors": ["evil.Processor"],
    "kv_transfer_config": {"kv_connector": "x", "kv_connector_module_path": "evil"},
    "ec_transfer_config": {"ec_connector": "x", "ec_connector_module_path": "evil"},
    "kv_events_config": {"publisher": "zmq", "endpoint": "tcp://elsewhere:1"},
    "io_processor_plugin": "evil",
    "middleware": ["evil.Middleware"],
    "reasoning_parser_plugin": "/evil.py",
    "log_config_file": "/evil.json",
    "logging_config": {"()": "os.system"},
    "additional_config": {"x": "y"},
    "profiler_config": {"profiler": "torch"},
    "weight_transfer_config": {"backend": "x"},
    "model_loader_extra_config": {"x": 1},
    "model_class_overrides": {"Qwen3ForCausalLM": "evil:Model"},
    "hf_overrides": {"auto_map": {"AutoConfig": "evil.Config"}},
    "hf_config_path": "/elsewhere",
    "config_format": "evil",
    "tokenizer": "/elsewhere",
    "tokenizer_mode": "evil",
    "model_weights": "/elsewhere",
    "model_impl": "transformers",
    "code_revision": "main",
    "runner": "generate",
    "convert": "embed",
    "pooler_config": {"use_activation": True},
    "enable_lora": True,
    "default_mm_loras": {"image": "/elsewhere"},
    "speculative_config": {"model": "/elsewhere"},
    "override_generation_config": {"x": 1},
    "allowed_local_media_path": "/",
    "otlp_traces_endpoint": "http://elsewhere",
    "hf_token": SECRET,
    "master_addr": "elsewhere",
    "enable_chunked_prefill": True,
    "distributed_executor_backend": "evil.Executor",
    "compilation_config": {"mode": 1, "backend": "evil.backend"},
    "faults": {"die": 1},
    "load_format": "pt",
}


@pytest.mark.parametrize("name", CODE_OR_OTHER_SCORES)
def test_engine_argument_that_could_run_code_or_change_scores_is_refused(run_score: Any, name: str) -> None:
    given = json.dumps({name: CODE_OR_OTHER_SCORES[name]})
    code, said = run_score("--input", "/in", "--output", "/out", "--engine-args", given)
    assert code == 2
    assert said.startswith("error: --engine-args: ") and f"`{name}`" in said and len(said.splitlines()) == 1
    assert SECRET not in said and "evil" not in said


@pytest.mark.parametrize("value", ["bitsandbytes", "dummy", "npcache", "pt", "sharded_state", "tensorizer", ["auto"]])
def test_load_format_that_is_no_safetensors_is_refused(value: Any) -> None:
    with pytest.raises(JobError, match=r"`load_format` takes auto, safetensors"):
        load_job(None, {**NEEDED, "engine_args": {"load_format": value}})


@pytest.mark.parametrize("key", ["backend", "inductor_passes", "cache_dir", "inductor_compile_config", "pass_config"])
def test_compilation_setting_that_could_name_code_is_refused(key: str) -> None:
    with pytest.raises(JobError, match=f"`{key}` of `compilation_config`"):
        load_job(None, {**NEEDED, "engine_args": {"compilation_config": {"mode": 3, key: "x"}}})


@pytest.mark.parametrize(
    ("name", "flag"),
    [("trust_remote_code", "--trust-remote-code"), ("max_model_len", "--max-length"), ("model", "--model")],
)
def test_engine_argument_with_a_flag_of_its_own_is_refused_with_it(name: str, flag: str) -> None:
    with pytest.raises(JobError, match=flag):
        load_job(None, {**NEEDED, "engine_args": {name: True}})


def test_every_engine_argument_that_is_passed_on_is_one_of_vllm() -> None:
    """So that a new version of vLLM, in which a name may mean something else, is looked at."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / "engine/arg_utils.py").read_text()
    known = {line.split(":")[0].strip() for line in source.splitlines() if line.startswith("    ") and ":" in line}
    passed = HARMLESS_ENGINE_ARGS | SCORING_ENGINE_ARGS
    assert passed - known <= {"cached_share", "faults", "seconds_per_prompt", "swap_space"}
    usual = {
        "max_num_seqs": 8,
        "load_format": "safetensors",
        "distributed_executor_backend": "mp",
        "compilation_config": 3,
    }
    usual |= {"quantization": "fp8", "attention_backend": "FLASH_ATTN", "gpu_memory_utilization": 0.5}
    assert load_job(None, {**NEEDED, "engine_args": usual}).engine_args == usual


# Models.

MODULE = "import os\nos.mkdir({trace!r})\nfrom transformers import Qwen3Config as EvilConfig, Qwen2Tokenizer as EvilTokenizer\n"


def plant_code(model: Path, trace: Path, file: str) -> None:
    """Make a model name code of its own in one of its files."""
    (model / "evil.py").write_text(MODULE.format(trace=str(trace)))
    path = model / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    path.write_text(json.dumps({**settings, "auto_map": auto_map}))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("engine", ["transformers", "vllm", "fake"])
def test_model_that_brings_code_is_refused_with_the_flag(
    run_score: Any, write_shard: Any, tmp_path: Path, model: Path, trace: Path, file: str, engine: str
) -> None:
    plant_code(model, trace, file)
    shard = write_shard([{"query": "q", "document": "d"}])
    code, said = run_score("--input", shard, "--output", tmp_path / "out", "--model", model, "--engine", engine)
    assert code == 2
    assert "--trust-remote-code" in said and file in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_model_that_brings_code_is_taken_when_trusted_and_its_code_is_in_the_digest(
    model: Path, tmp_path: Path
) -> None:
    plant_code(model, tmp_path / "trace", "config.json")
    found = load_reranker_model(str(model), trust_remote_code=True)
    assert found.trust_remote_code
    assert not (tmp_path / "trace").exists(), "reading what kind of model it is runs nothing"
    (model / "evil.py").write_text("pass\n")
    assert load_reranker_model(str(model), trust_remote_code=True).digest != found.digest


def test_tokenizer_of_a_model_without_auto_map_runs_no_code(model: Path, trace: Path) -> None:
    (model / "tokenization_evil.py").write_text(MODULE.format(trace=str(trace)))
    load_tokenizer_json(load_reranker_model(str(model)))


def pickle_weights(model: Path, trace: Path) -> None:
    """Put a pickle in the place of a model's weights."""
    for path in model.glob("*.safetensors*"):
        path.unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))


def test_pickled_weights_are_refused_before_anything_starts(
    run_score: Any, write_shard: Any, tmp_path: Path, model: Path, trace: Path
) -> None:
    pickle_weights(model, trace)
    shard = write_shard([{"query": "q", "document": "d"}])
    flags = ["--input", shard, "--output", tmp_path / "out", "--model", model, "--ray-address", NO_RAY]
    for more in ([], ["--dry-run"]):
        code, said = run_score(*flags, *more)
        assert code == 2
        assert "no weights as safetensors, only pytorch_model.bin" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_pickled_weights_in_s3_are_refused_and_not_copied(
    s3: S3Server, model: Path, trace: Path, model_cache: Path
) -> None:
    pickle_weights(model, trace)
    s3.put_folder(model, "model")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin"):
        load_reranker_model(s3.uri("model"))
    assert list(model_cache.rglob("pytorch_model*")) == []


def test_pickles_beside_safetensors_in_s3_are_left_there(s3: S3Server, model: Path, trace: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    (model / "training_args.bin").write_bytes(pickle.dumps(Bomb(trace)))
    (model / "modeling.py").write_text(MODULE.format(trace=str(trace)))
    s3.put_folder(model, "model")
    folder = fetch_weights(load_reranker_model(s3.uri("model")))
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names
    assert not any(name.endswith((".bin", ".py")) for name in names)


def test_folder_without_any_weights_fails_where_they_are_loaded(model: Path) -> None:
    for path in model.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match="no weights as safetensors"):
        fetch_weights(load_reranker_model(str(model)))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(model: Path) -> Iterator[Callable[[], tuple[str, list[str]]]]:
    """A Hugging Face hub on this machine with one model; gives a function for its address and what was fetched."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            files = sorted(found for found in model.iterdir() if found.is_file())
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/org/name"):
                siblings = [{"rfilename": file.name} for file in files]
                tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
                found = {
                    "id": "org/name",
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                }
                data, headers = json.dumps(tree if "/tree/" in path else found).encode(), {}
            elif path.startswith(f"/org/name/resolve/{COMMIT}/") and (model / name).is_file():
                data = (model / name).read_bytes()
                headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
                fetched.extend([name] if with_body else [])
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield lambda: (f"http://127.0.0.1:{server.server_port}", fetched)
    server.shutdown()


def ask_hub(endpoint: str, cache: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run some lines in a process that takes models from a hub."""
    lines = f"from rerank_actor.engines.model import fetch_weights, load_reranker_model\n{code}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, env=environment)


def test_pickled_weights_on_the_hub_are_refused_and_not_fetched(
    hub: Any, model: Path, trace: Path, tmp_path: Path
) -> None:
    endpoint, fetched = hub()
    pickle_weights(model, trace)
    found = ask_hub(endpoint, tmp_path / "hub", "load_reranker_model('org/name')")
    assert "ModelError: org/name: has no weights as safetensors, only pytorch_model.bin" in found.stderr, found.stderr
    assert "config.json" in fetched
    assert "pytorch_model.bin" not in fetched


def test_of_a_hub_model_safetensors_alone_are_fetched_and_no_code(
    hub: Any, model: Path, trace: Path, tmp_path: Path
) -> None:
    endpoint, fetched = hub()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    (model / "modeling.py").write_text(MODULE.format(trace=str(trace)))
    found = ask_hub(endpoint, tmp_path / "hub", "print(fetch_weights(load_reranker_model('org/name')))")
    assert found.returncode == 0, found.stderr
    assert "model.safetensors" in fetched
    assert not any(name.endswith((".bin", ".py")) for name in fetched)


# Inputs and outputs.


def make_pickles(trace: Path) -> pa.Array:
    """Return a column of the type in which Ray Data keeps Python objects; a reader that has loaded it unpickles them."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    data = pickle.dumps(Bomb(trace))
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pa.array([data] * 2, pa.large_binary()))


NESTINGS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "plain": lambda values: values,
    "list": lambda values: pa.ListArray.from_arrays([0, 1, 2], values),
    "struct": lambda values: pa.StructArray.from_arrays([values], ["x"]),
    "list of structs": lambda values: pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([values], ["x"])),
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("column", ["query", "document", "kept"])
def test_pickled_objects_in_a_shard_are_not_unpickled(tmp_path: Path, trace: Path, nesting: str, column: str) -> None:
    columns = {"query": pa.array(["q"] * 2), "document": pa.array(["d"] * 2), "kept": pa.array(["k"] * 2)}
    shard = tmp_path / "a.parquet"
    pq.write_table(pa.table({**columns, column: NESTINGS[nesting](make_pickles(trace))}), shard)
    unit = Unit("0-0", str(shard), shard.stat().st_size, "", 0, 2, -1)
    encoder = {"template": QWEN3_RERANKER, "instruction": "i", "max_length": 512}
    spec = PrepareSpec(encoder, InputSpec(), {}, 1, {})
    work = prepare_unit(unit, spec, load_tokenizer_json(load_reranker_model("bytes")))
    if column == "kept":
        assert len(work.prompts.scorable) == 2
        write_part(work.with_logits(np.zeros(2, np.float32), {}), str(tmp_path), {}, None)
    else:
        assert work.failure is not None or len(work.prompts.scorable) == 0


def test_pickled_objects_in_an_output_are_not_unpickled(tmp_path: Path, trace: Path) -> None:
    sink = io.BytesIO()
    pickles = make_pickles(trace)
    metadata = {"rerank_actor.fingerprint": "f", "json_types": "", "fingerprint": "{}"}
    names = [*RESERVED_COLUMNS, *RECORD_SCHEMA.names, "uri", "size", "etag", "starts", "byte_starts"]
    table = pa.table(dict.fromkeys(names, pickles)).replace_schema_metadata(metadata)
    pq.write_table(table, sink)
    unit = Unit("0-0", "/in/a.parquet", 1, "", 0, 2, -1)
    part = {"fingerprint": "f", "unit": "0-0", "shard": unit.uri, "row_start": "0", "shard_etag": ""}
    sound = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({f"rerank_actor.{name}": value for name, value in part.items()}), sound
    )
    assert check_part(unit, sound.getvalue(), "f").problem is not None
    with pytest.raises(JobError, match="plan: is damaged"):
        Plan.from_bytes(sink.getvalue())
    output = Output(str(tmp_path))
    output.write_own("runs/evil-00000.parquet", sink.getvalue())
    assert list(output.read_records()) == []


# Secrets.


@pytest.mark.parametrize("flag", ["--input", "--output", "--model"])
@pytest.mark.parametrize(
    "address",
    [
        f"s3://planted-id:{SECRET}@bucket/key",
        f"https://bucket.s3.amazonaws.com/key?X-Amz-Signature={SECRET}",
        f"https://user:{SECRET}@host/key",
        f"gs://bucket/key?token={SECRET}",
    ],
)
def test_address_with_credentials_is_refused_and_not_repeated(run_score: Any, flag: str, address: str) -> None:
    flags = {"--input": "/in", "--output": "/out", flag: address}
    code, said = run_score(*[word for pair in flags.items() for word in pair])
    assert code == 2
    assert said.startswith(f"error: {flag}: ") and len(said.splitlines()) == 1
    assert SECRET not in said


@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
def test_endpoint_with_a_password_is_not_repeated(tmp_path: Path, host: str) -> None:
    environment = {
        "AWS_ENDPOINT_URL": f"http://user:{SECRET}@{host}",
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_ACCESS_KEY_ID": "planted-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_ADDRESS": NO_RAY,
    }
    found = run_command(
        "score", "--engine", "fake", "--input", "s3://b/in", "--output", tmp_path / "out", **environment
    )
    assert found.returncode == 2
    assert SECRET not in found.stdout + found.stderr, found.stderr


def make_broken_shards(folder: Path) -> None:
    """Write shards that cannot be read, or rows that cannot be scored, with a text in all of them."""
    folder.mkdir(parents=True)
    documents = [f"{TEXT} d {i}{GUILTY * (i == 17)}" for i in range(40)]
    table = pa.table({"query": [f"{TEXT} {i}" for i in range(40)], "document": documents})
    pq.write_table(table, folder / "good.parquet")
    pq.write_table(table, folder / "torn.parquet", compression="none", use_dictionary=False)
    data = bytearray((folder / "torn.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (folder / "torn.parquet").write_bytes(data)
    (folder / "short.parquet").write_bytes(data[: len(data) // 2])
    (folder / "text.parquet").write_text(f"{TEXT}, and no Parquet" * 100)
    lines = [f'{{"query": "{TEXT}", "document": "{TEXT}"}}', f'{{"query": "{TEXT}', f'["{TEXT}"]', f"{TEXT} \x00"]
    (folder / "broken.jsonl").write_text("\n".join(lines))
    (folder / "bytes.jsonl").write_bytes(b'{"query": "' + TEXT.encode() + b' \xff\xfe", "document": 5}\n')
    (folder / "broken.csv").write_text(f'query,document\n"{TEXT}","{TEXT}\n{TEXT},{TEXT},{TEXT}\n"{TEXT}"x,y\n')
    (folder / "nul.tsv").write_text(f"query\tdocument\n{TEXT}\0\t{TEXT}\n{TEXT}\n")
    whole = gzip.compress("".join(f"{TEXT},{TEXT} {i}\n" for i in range(2000)).encode())
    (folder / "short.csv.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "no.csv.zst").write_text(f"{TEXT} " * 50)


def assert_nowhere(folder: Path, words: list[str], *, texts_in: Callable[[Path], bool]) -> int:
    """Check that no file below a folder holds any of the words; the text may be in some files' rows."""
    count = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data, count = path.read_bytes(), count + 1
            for word in words:
                assert word.encode() not in data or (word == TEXT and texts_in(path)), (path, word)
    return count


def test_failing_run_writes_and_prints_no_text_and_no_credential(tmp_path: Path) -> None:
    make_broken_shards(tmp_path / "in")
    output, logs = tmp_path / "out", Path(f"/tmp/ray-{os.getpid()}")  # short, because of Ray's sockets
    flags = ["--input", tmp_path / "in", "--output", output, "--engine", "fake", "--unit-rows", 20]
    arguments = {"faults": {"guilty_token": GUILTY_TOKEN, "guilty_kind": "raise"}}
    environment = {
        "AWS_ACCESS_KEY_ID": "planted-id",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": SECRET,
        "AWS_ENDPOINT_URL": f"http://user:{SECRET}@127.0.0.1:1",
        "HF_TOKEN": SECRET,
        "RAY_TMPDIR": str(logs),
        "RAY_ADDRESS": "",
    }
    logs.mkdir()
    try:
        more = ["--engine-args", json.dumps(arguments), "--max-attempts", 1, "--examples", 0]
        found = run_command("score", *flags, *more, **environment)
        assert found.returncode == 1, found.stderr
        shown = [run_command(module, output, **environment) for module in ("status", "verify")]
        for printed in (found, *shown):
            assert SECRET not in printed.stdout + printed.stderr
            assert TEXT not in printed.stdout + printed.stderr
        assert_nowhere(output, [SECRET, TEXT], texts_in=lambda path: path.parent == output)
        parts = list(output.glob("part-*.parquet"))
        assert parts
        for part in parts:
            assert not any(TEXT.encode() in value for value in pq.read_schema(part).metadata.values())
        assert assert_nowhere(logs, [SECRET, TEXT], texts_in=lambda path: False) > 10
    finally:
        shutil.rmtree(logs, ignore_errors=True)
