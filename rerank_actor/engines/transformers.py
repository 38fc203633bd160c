"""The Transformers engine: the model card's recipe, the reference in float32 and the fallback without vLLM.

Source: model card of Qwen/Qwen3-Reranker-0.6B, "Transformers usage": logits of the last position, the difference of yes
and no (their softmax over the two is the sigmoid of it). Cross-encoders give the raw output of their one label. A
batch holds prompts of one length: the card's left padding moves a score by up to 4e-6 in float32, no padding by 1e-7.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from rerank_actor.engines.base import EngineSpec
from rerank_actor.engines.families.description import EmbeddingHead, LabelHead, TokenHead
from rerank_actor.engines.model import fetch_weights
from rerank_actor.engines.vectors import finish_vectors, make_outputs
from rerank_actor.errors import EngineError, EngineMemoryError, EngineStartError, describe_cause

BATCH_TOKENS = 8192
BATCH_PROMPTS = 64
LEAST_BATCH_TOKENS = 64


class TransformersEngine:
    """A model run by Transformers, on the GPU where there is one."""

    name = "transformers"
    version = transformers.__version__
    path = ""
    cached_tokens = 0

    def __init__(self, spec: EngineSpec) -> None:
        transformers.utils.logging.disable_progress_bar()
        folder = fetch_weights(spec.model)
        self.dtype = spec.dtype
        self._batch_tokens = BATCH_TOKENS
        self._device = torch.device("cuda" if torch.cuda.is_available() and spec.device == "auto" else "cpu")
        self._description = spec.model.description
        auto: Any = getattr(transformers, spec.model.description.auto_class)
        model, report = auto.from_pretrained(
            folder,
            dtype=getattr(torch, spec.dtype),
            use_safetensors=True,  # never a pickle
            trust_remote_code=spec.model.trust_remote_code,
            output_loading_info=True,
        )
        _refuse_made_up(spec.model.name, report, spec.model.description.head)
        self._model: Any = model
        self._model.to(self._device).eval()
        if isinstance(self._description.head, LabelHead):
            # Decoder classifiers pool the last token that is not padding; our batches have none.
            self._model.config.pad_token_id = -1

    def compute_logits(self, prompts: Sequence[np.ndarray], head_tokens: Sequence[int] | None = None) -> np.ndarray:
        """Return float32 [num_prompts], or [num_prompts, size] of an embedding model; order of the input."""
        if self._model is None:
            raise EngineError("the engine is closed")
        logits = make_outputs(self._description.head, len(prompts))
        try:
            for positions in _batches([len(prompt) for prompt in prompts], self._batch_tokens):
                heads = [head_tokens[position] for position in positions] if head_tokens is not None else None
                logits[positions] = self._run([prompts[position] for position in positions], heads)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise EngineMemoryError(f"memory ran out on a batch ({describe_cause(error)})") from error
        except RuntimeError as error:
            raise EngineError(f"Transformers failed on a batch ({describe_cause(error)})") from error
        return logits

    def _run(self, prompts: list[np.ndarray], heads: list[int] | None) -> np.ndarray:
        ids = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(self._device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self._description.template.has_segments:
            if heads is None:
                raise EngineError("where the second text begins is not known, and the model has segment ids")
            starts = torch.tensor(heads, device=self._device)[:, None]
            inputs["token_type_ids"] = (torch.arange(ids.shape[1], device=self._device)[None] >= starts).long()
        with torch.inference_mode():
            output = self._read_head(self._compute(inputs))
        values = np.asarray(output.cpu().numpy(), np.float32)
        head = self._description.head
        return finish_vectors(head, values) if isinstance(head, EmbeddingHead) else values

    def _compute(self, inputs: dict[str, Any]) -> Any:
        """Return [num_prompts, num_outputs], outputs of the classifier or of the token after each prompt."""
        ids, loading = inputs["input_ids"], self._description.runtime.loading
        if loading == "bidirectional":
            # A mask that hides nothing, in place of the causal one.
            open_mask = torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1], dtype=self._model.dtype, device=ids.device)
            hidden = self._model.base_model(input_ids=ids, attention_mask=open_mask).last_hidden_state
            return self._model.score(hidden.float().mean(dim=1).to(hidden.dtype))
        if loading == "sequence_to_sequence":
            first = torch.full_like(ids[:, :1], self._model.config.decoder_start_token_id)
            return self._model(**inputs, decoder_input_ids=first).logits[:, -1]
        if isinstance(self._description.head, TokenHead):
            return self._model(**inputs, logits_to_keep=1).logits[:, -1]
        if isinstance(self._description.head, EmbeddingHead):
            return self._model(**inputs).last_hidden_state
        return self._model(**inputs).logits

    def _read_head(self, outputs: Any) -> Any:
        head = self._description.head
        if isinstance(head, EmbeddingHead):  # a batch has no padding
            states = outputs.float()
            return states.mean(dim=1) if head.pooling == "mean" else states[:, 0 if head.pooling == "cls" else -1]
        plus, minus = (head.true_id, head.false_id) if isinstance(head, TokenHead) else (head.row, head.minus)
        logits = outputs[:, plus].float()
        return logits if minus is None else logits - outputs[:, minus].float()

    def shrink_batches(self) -> int | None:
        """Halve the tokens of a batch."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._batch_tokens //= 2
        return self._batch_tokens if self._batch_tokens >= LEAST_BATCH_TOKENS else None

    def close(self) -> None:
        """Drop the model."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refuse_made_up(name: str, report: dict[str, Any], head: Any) -> None:
    """Refuse a model of which Transformers has made up tensors at random; it says so in its log alone."""
    made_up = sorted({*report["missing_keys"], *(tensor for tensor, *_ in report["mismatched_keys"])})
    if isinstance(head, EmbeddingHead):  # no vector is read behind the layer that a classifier would have
        made_up = [tensor for tensor in made_up if not tensor.startswith("pooler.")]
    if made_up:
        raise EngineStartError(
            f"{name}: its weight files lack {made_up[0]} and {len(made_up) - 1:,} more tensors, which Transformers would "
            "make up at random; fetch the model again",
            model=name,
        )


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield positions of prompts of one length, within the token budget."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        full = len(batch) >= BATCH_PROMPTS or (len(batch) + 1) * lengths[position] > batch_tokens
        if batch and (full or lengths[batch[0]] != lengths[position]):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
