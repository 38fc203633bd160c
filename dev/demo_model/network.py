"""The forward pass of a Qwen3 model over one query and many documents, for training on a CPU.

Takes the parameters of a `Qwen3ForCausalLM` and gives the log-odds that its own forward pass gives; what differs is
the work. The tokens before the query are computed once a batch, those of a query once for all of its documents, and
the last layer only where a prompt ends, so that a pair costs its document and the suffix alone. Documents of a query
lie in one row behind it and do not see each other; each has the positions it has in a prompt of its own.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MASKED = -1e9


@dataclass(frozen=True)
class Tree:
    """A batch of queries with their documents, packed one query a row.

    Attributes:
        before: int64 [num_before], the tokens before the query, the same for all rows.
        ids: int64 [num_rows, width].
        positions: int64 [num_rows, width].
        mask: float32 [num_rows, 1, width, num_before + width], to be added to the attention weights.
        ends: int64 [num_rows, num_documents], where in its row the prompt of a document ends.
    """

    before: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    ends: Tensor


def pack_tree(before: list[int], heads: list[list[int]], documents: list[list[list[int]]], suffix: list[int]) -> Tree:
    """Return the batch of queries whose prompts are `before`, a head, one of its documents, `suffix`."""
    rows = [
        sum(len(text) + len(suffix) for text in mine) + len(head) for head, mine in zip(heads, documents, strict=True)
    ]
    count, width = len(heads), -(-max(rows) // 8) * 8
    ids = np.zeros((count, width), np.int64)
    positions = np.zeros((count, width), np.int64)
    owner = np.full((count, width), -1)  # 0 the query, then the documents from 1
    ends = np.zeros((count, len(documents[0])), np.int64)
    for row, (head, mine) in enumerate(zip(heads, documents, strict=True)):
        ids[row, : len(head)] = head
        positions[row, : len(head)] = len(before) + np.arange(len(head))
        owner[row, : len(head)] = 0
        start = len(head)
        for number, document in enumerate(mine):
            tokens = [*document, *suffix]
            end = start + len(tokens)
            ids[row, start:end] = tokens
            positions[row, start:end] = len(before) + len(head) + np.arange(len(tokens))
            owner[row, start:end] = number + 1
            ends[row, number] = end - 1
            start = end
    causal = np.tri(width, dtype=bool)[None]
    seen = (owner[:, None, :] == owner[:, :, None]) | ((owner[:, None, :] == 0) & (owner[:, :, None] > 0))
    mask = np.where(causal & seen, np.float32(0), np.float32(MASKED))
    mask = np.concatenate([np.zeros((count, width, len(before)), np.float32), mask], axis=2)
    return Tree(
        torch.tensor(before),
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(mask)[:, None],
        torch.from_numpy(ends),
    )


def compute_logits(model: torch.nn.Module, tree: Tree, yes: int, no: int) -> Tensor:
    """Return the log-odds of `yes` against `no`, float32 [num_rows, num_documents]."""
    body, config = model.model, model.config
    rotation = _Rotation(config)
    shared = body.embed_tokens(tree.before)[None]
    states = body.embed_tokens(tree.ids)
    early = rotation.at(torch.arange(len(tree.before))[None])
    late = rotation.at(tree.positions)
    causal = torch.full((len(tree.before),) * 2, MASKED).triu(1)[None, None]
    for number, layer in enumerate(body.layers):
        last = number == len(body.layers) - 1
        attention = layer.self_attn
        shared_inputs, inputs = _normalise(layer.input_layernorm, shared), _normalise(layer.input_layernorm, states)
        shared_keys = _heads(attention.k_norm, attention.k_proj(shared_inputs), config, early)
        shared_values = _heads(None, attention.v_proj(shared_inputs), config, None)
        keys = _heads(attention.k_norm, attention.k_proj(inputs), config, late)
        values = _heads(None, attention.v_proj(inputs), config, None)
        mask, turn = tree.mask, late
        if last:
            rows = torch.arange(len(states))[:, None]
            states, inputs, mask = states[rows, tree.ends], inputs[rows, tree.ends], mask[rows, 0, tree.ends][:, None]
            turn = (late[0][rows, 0, tree.ends][:, None], late[1][rows, 0, tree.ends][:, None])
        queries = _heads(attention.q_norm, attention.q_proj(inputs), config, turn)
        states = states + attention.o_proj(
            _attend(
                queries,
                torch.cat([shared_keys.expand(len(states), -1, -1, -1), keys], dim=2),
                torch.cat([shared_values.expand(len(states), -1, -1, -1), values], dim=2),
                mask,
            )
        )
        states = states + layer.mlp(_normalise(layer.post_attention_layernorm, states))
        if not last:
            shared_queries = _heads(attention.q_norm, attention.q_proj(shared_inputs), config, early)
            shared = shared + attention.o_proj(_attend(shared_queries, shared_keys, shared_values, causal))
            shared = shared + layer.mlp(_normalise(layer.post_attention_layernorm, shared))
    head = model.lm_head.weight
    return _normalise(body.norm, states) @ (head[yes] - head[no])


class _Rotation:
    """The rotary position embedding of the configuration."""

    def __init__(self, config: object) -> None:
        base = config.rope_parameters["rope_theta"]
        self._speeds = 1.0 / base ** (torch.arange(0, config.head_dim, 2) / config.head_dim)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self._speeds
        sine = angles.sin()
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos(), torch.cat([-sine, sine], dim=-1)[:, None]


def _normalise(norm: torch.nn.Module, states: Tensor) -> Tensor:
    return functional.rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


def _heads(norm: object, states: Tensor, config: object, turn: tuple[Tensor, Tensor] | None) -> Tensor:
    """Split into heads [rows, heads, width, head_dim], normalise and rotate."""
    states = states.unflatten(-1, (-1, config.head_dim))
    if norm is not None:
        states = functional.rms_norm(states, (config.head_dim,), norm.weight, norm.variance_epsilon)
    states = states.transpose(1, 2)
    if turn is not None:
        first, second = states.chunk(2, dim=-1)
        states = states * turn[0] + torch.cat([second, first], dim=-1) * turn[1]
    return states


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    repeats = queries.shape[1] // keys.shape[1]
    if repeats > 1:
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)
