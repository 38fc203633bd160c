"""Scores computed again: a seeded sample of a scored output, scored here, and compared within the noise of the dtypes.

Takes an output and an engine, gives how many pairs differ and by how much. Texts are made of what the output holds, as mining
makes them, so that a score that was moved, turned round or put in the place of another is found whatever its file says of
itself. Knows nothing of Ray.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from rerank_actor import storage
from rerank_actor.engines.base import allow_noise
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.settings import EngineSettings
from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import is_list
from rerank_actor.inputs.where.rows import SELECTED
from rerank_actor.job_file import Locations, make_flag
from rerank_actor.mining.texts import find_sources
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import read_part_metadata
from rerank_actor.outputs.row_groups import open_part, refuse_damaged
from rerank_actor.outputs.scored import ScoredOutput, require_scored
from rerank_actor.outputs.scored_columns import PairRows
from rerank_actor.outputs.scored_texts import ScoredTexts, refuse_lost_fields
from rerank_actor.reranker import Reranker
from rerank_actor.runtime.store_builder import run_here
from rerank_actor.scoring.lookups import make_lookup

LEAST_ROWS = 32  # of a sample, so that scores in another order show
SHOWN = 5
PAIRS_AT_ONCE = 4096


class RescoreSettings(EngineSettings):
    """What scores again, and where texts are that rows name by id."""

    queries: Locations = make_flag([], "input", "texts of queries by id, where they lie now", "URI", nargs="+")
    corpus: Locations = make_flag([], "input", "texts of documents by id, where they lie now", "URI", nargs="+")


class _Places(NamedTuple):
    queries: list[str]
    corpus: list[str]
    output: str


@dataclass
class Rescored:
    """What scoring again found.

    Attributes:
        engine: what scored, in words.
        rows, pairs: that were scored again.
        num_rows: of the output, without those that --where left out.
        largest, allowed: difference of logits, and up to where it is noise.
        differing: pairs that differ by more, and where the first ones are.
        unlike: pairs with a score in one place and an error in the other, and where the first ones are.
    """

    engine: str
    rows: int = 0
    pairs: int = 0
    num_rows: int = 0
    largest: float = 0.0
    allowed: float = 0.0
    differing: int = 0
    unlike: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether all pairs are what they were, within the noise."""
        return not self.differing and not self.unlike


def rescore(uri: str, share: float, seed: int, settings: RescoreSettings) -> Rescored:
    """Score a sample of an output again.

    Args:
        uri: the output of a scoring job.
        share: of its rows, above 0 and at most 1; `LEAST_ROWS` at least, where there are as many.
        seed: of the sample.
        settings: the engine; model, length and what is left at its default are the output's.

    Raises:
        InputError: the output holds no scores of pairs, its texts are not there, or the model is another.
        RerankError: a part cannot be read, or the engine fails.
    """
    scored = require_scored(uri)
    if not scored.parts:
        raise InputError(f"{uri}: nothing is scored there yet; run jobs.score first", uri=uri)
    _refuse_other_kinds(scored)
    texts = ScoredTexts.from_settings(scored.settings)
    with _open_texts(scored, texts, settings) as texts, _load(scored, settings) as reranker:
        sample = _Sample(texts, reranker)
        numbers, num_rows = _draw(scored, share, seed)
        for part, rows in numbers:
            sample.read(part, rows)
        return sample.compare(num_rows)


def _refuse_other_kinds(scored: ScoredOutput) -> None:
    """Refuse vectors, and pairs that were scored in two directions."""
    with open_part(scored.parts[0]) as file:
        names = file.schema_arrow.names
    if "logit" not in names or scored.settings.get("directions"):
        what = "is of translation pairs in directions" if "logit" in names else "holds no scores of pairs"
        raise InputError(f"{scored.uri}: {what}, which --rescore does not compare; leave it out", uri=scored.uri)


@contextlib.contextmanager
def _open_texts(scored: ScoredOutput, texts: ScoredTexts, settings: RescoreSettings) -> Iterator[ScoredTexts]:
    """Give texts with stores of those that rows name by id, for as long as they are needed."""
    with open_part(scored.parts[0]) as file:
        texts.check(scored.parts[0].uri, file.schema_arrow)
        refuse_lost_fields(scored, scored.settings, file.schema_arrow)
    places = _Places(settings.queries, settings.corpus, scored.uri)
    with tempfile.TemporaryDirectory() as folder:
        lookups = [
            make_lookup(source, storage.join_uri(folder, source.role), run_here, 0, None, lambda: None)
            for source in find_sources(places, scored.uri, scored.settings)
        ]
        yield replace(texts, lookups=tuple(lookups))


@contextlib.contextmanager
def _load(scored: ScoredOutput, settings: RescoreSettings) -> Iterator[Reranker]:
    """Give the output's model on the engine that was asked for.

    Raises:
        InputError: it is another model, or one of both engines is no real one.
    """
    data = storage.read_if_present(Output(scored.uri).at("job.yaml"))
    job: dict[str, Any] = (yaml.safe_load(data) or {}) if data is not None and not storage.is_broken(data) else {}
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    known, engine = scored.settings, given.get("engine", scored.settings["engine"])
    if (engine == "fake") != (known["engine"] == "fake"):
        raise InputError(
            f"{scored.uri}: was scored by --engine {known['engine']}, whose scores those of {engine} say nothing of; give "
            f"--engine {known['engine']}",
            uri=scored.uri,
        )
    with Reranker(
        given.get("model", job.get("model")),
        engine,
        revision=given.get("revision", known.get("revision")),
        dtype=given.get("dtype", str(known["dtype"])),
        max_length=int(known["max_length"]),
        instruction=known["instruction"] if known["instruction"] != DEFAULT_INSTRUCTION else None,
        parse_special_tokens=bool(known["parse_special_tokens"]),
        tensor_parallel_size=settings.tensor_parallel_size,
        engine_args=given.get("engine_args", known.get("engine_args") or {}),
        trust_remote_code=bool(given.get("trust_remote_code", known.get("trust_remote_code"))),
        model_description=given.get("model_description", job.get("model_description")),
    ) as reranker:
        here = reranker.model.fingerprint_settings()
        other = next((name for name, value in here.items() if name != "revision" and known.get(name) != value), None)
        if other is not None:
            raise InputError(
                f"{scored.uri}: was scored with another model than {reranker.model.name} (its {other} is another); name the "
                "one that scored it with --model and --revision",
                uri=scored.uri,
            )
        yield reranker


def _draw(scored: ScoredOutput, share: float, seed: int) -> tuple[list[tuple[storage.StoredObject, np.ndarray]], int]:
    """Return the rows to look at of each part, of those that were to be scored, and how many these are of all."""
    lengths = [_count_rows(part) for part in scored.parts]
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    wanted = min(total, max(int(np.ceil(share * total)), LEAST_ROWS))
    chosen = np.sort(np.random.default_rng(seed).choice(total, wanted, replace=False))
    parts = np.searchsorted(ends, chosen, "right")
    found = [(part, chosen[parts == at] - (ends[at] - lengths[at])) for at, part in enumerate(scored.parts)]
    return [(part, _find_rows(part, numbers)) for part, numbers in found if len(numbers)], total


def _count_rows(part: storage.StoredObject) -> int:
    """Return how many rows of a part were to be scored."""
    with open_part(part) as file, refuse_damaged(part.uri):
        selected = _read_selected(file)
        return int(file.metadata.num_rows) if selected is None else int(selected.sum())


def _find_rows(part: storage.StoredObject, numbers: np.ndarray) -> np.ndarray:
    """Return the rows of a part that have these numbers among those that were to be scored."""
    with open_part(part) as file, refuse_damaged(part.uri):
        selected = _read_selected(file)
        return numbers if selected is None else np.flatnonzero(selected)[numbers]


def _read_selected(file: Any) -> np.ndarray | None:
    """Return whether --where chose each row; None where it was not given."""
    if "where" not in read_part_metadata(file.schema_arrow):
        return None
    selected: np.ndarray = file.read(columns=[SELECTED])[SELECTED].to_numpy()
    return selected


class _Sample:
    """The pairs of a sample: their stored logits and those of scoring again."""

    def __init__(self, texts: ScoredTexts, reranker: Reranker) -> None:
        self._texts, self._reranker = texts, reranker
        self._stored: list[np.ndarray] = []
        self._again: list[np.ndarray] = []
        self._places: list[tuple[str, np.ndarray]] = []
        self._dtypes: set[str] = {reranker.check.dtype}

    def read(self, part: storage.StoredObject, rows: np.ndarray) -> None:
        """Score some rows of a part again."""
        with open_part(part) as file, refuse_damaged(part.uri):
            names = self._texts.list_columns(file.schema_arrow.names)
            table = _take_rows(file, list(dict.fromkeys([*names, "logit"])), rows)
            self._dtypes.add(read_part_metadata(file.schema_arrow).get("dtype") or "float32")
        places = rows
        if is_list(table.schema.field("logit").type):
            places = rows[table["logit"].is_valid().to_numpy()]
        pairs = PairRows(table, "logit", part.uri)
        if pairs.lengths is not None:
            places = np.repeat(places, pairs.lengths)
        texts = self._texts.make(pairs)
        columns = {role: texts[role].to_pylist() for role in texts}
        stored = pairs.spread("logit").cast(pa.float64()).to_numpy()
        for start in range(0, len(stored), PAIRS_AT_ONCE):
            end = start + PAIRS_AT_ONCE
            few = {role: values[start:end] for role, values in columns.items()}
            made = self._reranker.make_columns(few["query"], few["document"], few.get("instruction"))
            self._again.append(made["logit"].cast(pa.float64()).to_numpy(zero_copy_only=False))
        self._stored.append(stored)
        self._places.append((part.uri, places))

    def compare(self, num_rows: int) -> Rescored:
        """Compare all pairs."""
        check = self._reranker.check
        result = Rescored(f"{check.engine} {check.version} in {check.dtype}", num_rows=num_rows)
        stored, again = np.concatenate([*self._stored, []]), np.concatenate([*self._again, []])
        names = [(uri, int(row)) for uri, rows in self._places for row in rows]
        result.rows, result.pairs = len(set(names)), len(names)
        has_both, has_one = np.isfinite(stored) & np.isfinite(again), np.isfinite(stored) != np.isfinite(again)
        result.unlike = int(has_one.sum())
        beyond = np.zeros(len(stored), bool)
        if has_both.any():
            differences = np.abs(stored - again)
            result.largest = float(differences[has_both].max())
            # Noise follows the spread of right logits: what is stored may be anything.
            spreads = again[has_both], np.array(check.logits)
            result.allowed = max(allow_noise(dtype, logits) for dtype in self._dtypes for logits in spreads)
            beyond = has_both & ~(differences <= result.allowed)
            result.differing = int(beyond.sum())
        result.places = [
            f"row {row:,} of {uri}" for uri, row in (names[at] for at in np.flatnonzero(beyond | has_one)[:SHOWN])
        ]
        return result


def _take_rows(file: Any, columns: list[str], rows: np.ndarray) -> pa.Table:
    """Return some rows of a part, of which no more than a row group is held."""
    tables, first = [], 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        wanted = rows[(rows >= first) & (rows < end)] - first
        if len(wanted):
            tables.append(file.read_row_group(group, columns=columns).take(pa.array(wanted)))
        first = end
    return pa.concat_tables(tables)
