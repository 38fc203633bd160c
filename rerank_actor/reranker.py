"""Scoring from Python, in this process: the same prompts and engines as the job, without Ray or storage."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from rerank_actor.engines.base import EngineKind, EngineSpec, compute_score, compute_within_memory, let_threads_sleep
from rerank_actor.engines.instructions import DEFAULT_INSTRUCTION
from rerank_actor.engines.model import load_reranker_model, load_tokenizer_json
from rerank_actor.engines.options import BUILT_IN_TOKENIZER, DEFAULT_MODEL
from rerank_actor.engines.prompts import PairEncoder, Prompts
from rerank_actor.engines.score_columns import list_errors, make_score_columns
from rerank_actor.engines.start import EngineCheck, encode_check_pairs, start_engine
from rerank_actor.errors import EngineError, InputError, ModelError

logger = logging.getLogger(__name__)


class Reranker:
    """A loaded reranker. What is taken for granted of a model that does not say what it is, is logged as a warning.

    Args:
        model: hub name, local folder or s3://, gs://, az:// folder.
        engine: `vllm`, `transformers` or `fake`.
        revision: branch, tag or commit of a hub model.
        dtype: `auto` (float16, or bfloat16 where that is not finite), `float32`, `float16` or `bfloat16`.
        max_length: tokens of a prompt at most; longer documents are cut. By default 8192, or less where the model says so;
            lowered to what it was built for.
        instruction: the task, used where `score` gets none; None for the model's own, or that of Qwen3-Reranker.
        parse_special_tokens: let special tokens in the texts act as such.
        check_scores: compare the engine with Transformers in float32 before the first score.
        tensor_parallel_size: GPUs that the model is spread over.
        engine_args: further arguments for vLLM.
        trust_remote_code: run the Python code that the model brings along.
        model_description: YAML file that says what the model's prompt and score are.

    Raises:
        TypeError, ValueError: an argument is not of its kind.
        ModelError: there is no such model, or it is not a reranker.
        EngineStartError: the engine cannot start.

    Example:
        >>> reranker = Reranker("Qwen/Qwen3-Reranker-0.6B")
        >>> reranker.score([("what is the capital of China?", "Beijing.")])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        engine: EngineKind = "vllm",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        instruction: str | None = None,
        parse_special_tokens: bool = False,
        check_scores: bool = False,
        tensor_parallel_size: int = 1,
        engine_args: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        model_description: str | os.PathLike[str] | None = None,
    ) -> None:
        _check_count("max_length", max_length)
        _check_count("tensor_parallel_size", tensor_parallel_size)
        if engine not in ("vllm", "transformers", "fake"):
            raise ModelError(f"engine {engine!r} is not known; take vllm, transformers or fake")
        let_threads_sleep()
        name = os.fspath(model or (BUILT_IN_TOKENIZER if engine == "fake" else DEFAULT_MODEL))
        self.model = load_reranker_model(
            name,
            revision,
            trust_remote_code=trust_remote_code,
            weights=engine != "fake",
            described_in=None if model_description is None else os.fspath(model_description),
        )
        if self.model.assumption:
            logger.warning(self.model.assumption)
        self._encoder = PairEncoder(
            load_tokenizer_json(self.model),
            template=self.model.description.template,
            instruction=_first(instruction, self.model.description.template.instruction, DEFAULT_INSTRUCTION),
            max_length=min(max_length or self.model.default_length, self.model.max_positions),
            parse_special_tokens=parse_special_tokens,
        )
        self._refuse_instruction(instruction)
        spec = EngineSpec(
            kind=engine,
            model=self.model,
            dtype=dtype,
            max_length=self._encoder.max_length,
            tensor_parallel_size=tensor_parallel_size,
            engine_args=engine_args or {},
            **encode_check_pairs(self._encoder),
            check_scores=check_scores,
            instruction=self._encoder.instruction,
        )
        self._engine, self.check = start_engine(spec)

    check: EngineCheck

    def logits(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> np.ndarray:
        """Return the log-odds of each pair.

        Args:
            pairs: (query, document), any number.
            instruction: the task; the reranker's own where None.

        Returns:
            float32 [num_pairs], order of the input.

        Raises:
            TypeError, ValueError: these are no pairs; says what they are.
            InputError: a pair cannot be scored (not text, or its query leaves no room); nothing was computed.
            ModelError: an instruction was given to a model that takes none.
            EngineError: the engine failed, or gave a logit that is not finite.
        """
        pairs = _check_pairs(pairs, instruction)
        self._refuse_instruction(instruction)
        queries = [query for query, _ in pairs]
        documents = [document for _, document in pairs]
        instructions = [instruction] * len(pairs) if instruction is not None else None
        prompts = self._encoder.encode(queries, documents, instructions)
        faults = [(index, str(fault)) for index, fault in enumerate(prompts.errors.to_pylist()) if fault is not None]
        if faults:
            shown = "; ".join(f"pair {index}: {fault}" for index, fault in faults[:5])
            raise InputError(
                f"{len(faults)} of {len(pairs)} pairs cannot be scored ({shown})",
                pairs=[position for position, _ in faults],
            )
        logits = self._compute(prompts)
        if not np.isfinite(logits).all():
            wrong = np.flatnonzero(~np.isfinite(logits)).tolist()
            raise EngineError(
                f"the engine gave {len(wrong)} logits that are not finite; try another dtype", pairs=wrong
            )
        return logits

    def score(self, pairs: Sequence[tuple[str, str]], instruction: str | None = None) -> np.ndarray:
        """Return the score of each pair, its probability of relevance: float32 [num_pairs] in [0, 1].

        Arguments, order and errors as `logits`.
        """
        return compute_score(self.logits(pairs, instruction), self.model.description.score)

    def predict(
        self,
        sentences: Any,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> Any:
        """Return the score of each pair, as sentence-transformers' `CrossEncoder.predict` does; of one pair, its own.

        Args:
            sentences: pairs (query, document), or one pair.
            batch_size: taken so that calls need no change; the engine makes its batches itself.
            show_progress_bar: likewise; none is shown.

        Returns:
            float32 [num_pairs] as `score`, or a float32 of no dimension for one pair.

        Raises:
            As `logits`.
        """
        is_one = isinstance(sentences, tuple | list) and [type(text) for text in sentences] == [str, str]
        scores = self.score([sentences] if is_one else sentences)
        return scores[0] if is_one else scores

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """Return the documents of a query, the best first, as sentence-transformers' `CrossEncoder.rank` does.

        Args:
            query: one text.
            documents: candidates.
            top_k: so many at most.
            return_documents: add each document's text.

        Returns:
            For each document `corpus_id` (its place in `documents`), `score` and, where asked for, `text`. Ordered by logit,
            which does not saturate, then by place.

        Raises:
            As `logits`.
        """
        if isinstance(documents, str):
            raise TypeError("documents is one text; expected a sequence of texts")
        if isinstance(documents, Mapping):
            raise TypeError(f"documents are a {type(documents).__name__}; expected a sequence of texts")
        _check_count("top_k", top_k)
        documents = list(documents)  # a pandas series is looked up by its index, not by place
        logits = self.logits([(query, document) for document in documents])
        order = np.argsort(-logits, kind="stable")[:top_k].tolist()
        scores = compute_score(logits, self.model.description.score)
        ranked: list[dict[str, Any]] = [{"corpus_id": place, "score": float(scores[place])} for place in order]
        if return_documents:
            ranked = [{**entry, "text": documents[entry["corpus_id"]]} for entry in ranked]
        return ranked

    def make_columns(
        self, queries: Sequence[Any], documents: Sequence[Any], instructions: Sequence[Any] | None = None
    ) -> dict[str, pa.Array]:
        """Return the columns that the job adds to rows: what cannot be scored has a reason instead of a score.

        Args:
            queries: a text for each row; None and what is no text become errors of their rows.
            documents: likewise.
            instructions: a text for each row, None for the reranker's own.

        Returns:
            `score` and `logit` (float32, null when not scored), `num_tokens` and `truncated_tokens` (int32), `error` (string,
            null when scored), each [num_rows].

        Raises:
            ModelError: instructions were given to a model that takes none.
            EngineError: the engine failed.
        """
        self._refuse_instruction("" if instructions is not None else None)
        prompts = self._encoder.encode(list(queries), list(documents), instructions and list(instructions))
        logits = self._compute(prompts)
        return make_score_columns(prompts, logits, list_errors(prompts, logits), self.model.description.score)

    def _compute(self, prompts: Prompts) -> np.ndarray:
        """Return the logits of prompts, NaN where there is an error."""
        logits = np.full(len(prompts), np.nan, np.float32)
        positions = prompts.scorable
        if len(positions):
            ids, heads = prompts.ids_at(positions), prompts.head_tokens[positions].tolist()
            logits[positions] = compute_within_memory(self._engine, ids, heads)
        return logits

    def _refuse_instruction(self, instruction: str | None) -> None:
        if instruction is not None and not self._encoder.template.takes_instruction:
            raise ModelError(
                f"{self.model.name} takes no instruction, its prompt is the query and the document alone; leave it out"
            )

    def close(self) -> None:
        """Give the model's memory back; the reranker is of no use afterwards."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first(*instructions: str | None) -> str:
    """Return the first instruction that is one."""
    return next(instruction for instruction in instructions if instruction is not None)


def _check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number from 1 on, or None.

    Raises:
        TypeError, ValueError: it is not.
    """
    if value is None:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}: give a whole number from 1 on")
    if value < 1:
        raise ValueError(f"{name} is {value}: give a whole number from 1 on")


def _check_pairs(pairs: Any, instruction: Any) -> list[tuple[Any, Any]]:
    """Return pairs as a list, and refuse what Python would take apart into other texts: a mapping, a text, three things.

    Raises:
        TypeError, ValueError: naming the first thing that is no pair.
    """
    if instruction is not None and not isinstance(instruction, str):
        raise TypeError(f"the instruction is a {type(instruction).__name__}: give one text, which holds for all pairs")
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs are a {type(pairs).__name__}: give a sequence of pairs (query, document)")
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, Sequence | np.ndarray) or isinstance(pair, str | bytes):
            raise TypeError(f"pair {index} is a {type(pair).__name__}: give each as (query, document)")
        if len(pair) != 2:
            raise ValueError(f"pair {index} has {len(pair)} elements: give each as (query, document)")
        checked.append((pair[0], pair[1]))
    return checked
