"""The weights that training starts from: a model that already compares each token with those before it.

Random weights take most of a short training to find that documents are to be compared with the query at all. So some
heads of the first layers start as matching heads. Each reads dimensions of its own, in which the words of a concept were
drawn together first. Its query and key weights are equal where the rotary embedding turns slowly, so that a token
attends to its like far away; where it turns fast they are opposed, so that a token does not attend to itself and its
neighbours; what has no like attends to the first token, a sink, and so writes into a dimension that says so. Training
is free to change all of it.
"""

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from demo_model.sentences import CATEGORIES
from demo_model.vocabulary import PromptMaker
from demo_model.words import LANGUAGES, load_concepts

MATCHING_HEADS = 1
MATCHING_LAYERS = 2
CONSTANT, SINK, FLAGS = 0, 1, 2  # dimensions of the residual stream with a meaning of their own
NUM_RESERVED = FLAGS + MATCHING_LAYERS * MATCHING_HEADS
FAST_PAIRS, SLOW_FROM = 6, 10  # of the 32 pairs of a head
NUM_KIND_DIMENSIONS = 24
SHARPNESS = 3.2**0.5
NEAR_EVEN = 0.3


def list_slow_dimensions(head_dim: int) -> list[int]:
    """Return the dimensions of a head that turn slowly, without the slowest pair, which serves the sink."""
    half = head_dim // 2
    return [dimension for pair in range(SLOW_FROM, half - 1) for dimension in (pair, pair + half)]


def list_content_dimensions(head: int, head_dim: int) -> slice:
    """Return the dimensions of the residual stream that a matching head reads."""
    width = len(list_slow_dimensions(head_dim))
    return slice(NUM_RESERVED + head * width, NUM_RESERVED + (head + 1) * width)


def draw_embeddings_together(model: Any, maker: PromptMaker, *, seed: int, steps: int, batch: int = 400) -> float:
    """Move what matching heads read so that the words of a concept are near each other; return the last loss."""
    rng = random.Random(seed)
    table = model.model.embed_tokens.weight
    head_dim = model.config.head_dim
    words = []
    for concept in load_concepts():
        forms = [concept.forms[language] for language in LANGUAGES]
        words.append([[maker.encode(" " + form) for form in mine] for mine in forms])
    optimizer = torch.optim.Adam([table], lr=3e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        chosen = rng.sample(words, min(batch, len(words)))
        sides = []
        for _ in range(2):
            picks = [rng.choice(rng.choice(concept)) for concept in chosen]
            flat = torch.tensor([token for pick in picks for token in pick])
            starts = torch.tensor([0, *[len(pick) for pick in picks[:-1]]]).cumsum(0)
            sides.append(functional.embedding_bag(flat, table, starts, mode="sum"))
        loss = torch.zeros(())
        for head in range(MATCHING_HEADS):
            mine = list_content_dimensions(head, head_dim)
            one, other = (functional.normalize(side[:, mine], dim=1) for side in sides)
            loss = loss + functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(chosen)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item() / MATCHING_HEADS


@torch.no_grad()
def set_embeddings(table: Tensor, maker: PromptMaker, head_dim: int, *, seed: int) -> None:
    """Give all embeddings equal lengths, a constant, their categories and room for the flags, and the sink its mark."""
    sink_id = maker.encode("<|im_start|>")[0]
    parts = [list_content_dimensions(head, head_dim) for head in range(MATCHING_HEADS)]
    kinds = slice(parts[-1].stop, parts[-1].stop + NUM_KIND_DIMENSIONS)
    table[:, kinds] = 0.3 * table[:, kinds] + _make_kind_vectors(len(table), maker, seed)
    for part, length in [*((part, 0.566) for part in parts), (kinds, 0.6), (slice(kinds.stop, None), 0.69)]:
        table[:, part] *= length / table[:, part].norm(dim=1, keepdim=True)
    table[:, :NUM_RESERVED] = 0
    table[:, CONSTANT] = 0.35
    table[sink_id, SINK] = 0.7


def _make_kind_vectors(num_tokens: int, maker: PromptMaker, seed: int) -> Tensor:
    """Return vectors that words of one category share, and in part those of one role: [num_tokens, dimensions]."""
    generator = torch.Generator().manual_seed(seed)
    names = sorted({concept.category for concept in load_concepts()})
    roles = {name: role for role, mine in CATEGORIES.items() for name in mine}
    of_role = {role: torch.randn(NUM_KIND_DIMENSIONS, generator=generator) for role in sorted({*CATEGORIES, "M"})}
    of_category = {
        name: torch.randn(NUM_KIND_DIMENSIONS, generator=generator) + of_role[roles.get(name, "N")] for name in names
    }
    vectors = torch.zeros(num_tokens, NUM_KIND_DIMENSIONS)
    for concept in load_concepts():
        for forms in concept.forms.values():
            for form in forms:
                ids = maker.encode(" " + form)
                vectors[ids] += of_category[concept.category] * (1.0 if len(ids) == 1 else 0.2)
    for digit in "0123456789":
        vectors[maker.encode(digit)[0]] = of_role["M"] * 2
    lengths = vectors.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, vectors / lengths.clamp(min=1e-6), vectors)


@torch.no_grad()
def set_attention(model: Any) -> None:
    """Set the query, key, value and output weights of all heads."""
    config = model.config
    half = config.head_dim // 2
    slow, fast = list_slow_dimensions(config.head_dim), list(range(FAST_PAIRS))
    calm, calm_too = half - 1, 2 * half - 1
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        attention.q_norm.weight.fill_(SHARPNESS)
        attention.k_norm.weight.fill_(SHARPNESS)
        attention.o_proj.weight[:NUM_RESERVED] = 0
        layer.mlp.down_proj.weight[:NUM_RESERVED] = 0
        for head in range(config.num_attention_heads):
            start = head * config.head_dim
            queries = attention.q_proj.weight[start : start + config.head_dim]
            keys = attention.k_proj.weight[start : start + config.head_dim]
            if head < MATCHING_HEADS and number < MATCHING_LAYERS:
                part = list_content_dimensions(head, config.head_dim)
                queries.zero_()
                queries[slow, range(part.start, part.stop)] = 1.0
                keys.copy_(queries)
                queries[fast, CONSTANT], keys[fast, CONSTANT] = 0.43, -0.43
                queries[calm, CONSTANT], keys[calm, SINK] = 1.355, 0.83
                attention.v_proj.weight[start] = 0
                attention.v_proj.weight[start, SINK] = 0.2
                attention.o_proj.weight[:, start] = 0
                attention.o_proj.weight[FLAGS + number * MATCHING_HEADS + head, start] = 0.4
            else:
                # Nearly even attention, whatever the sharpness.
                queries *= NEAR_EVEN
                keys *= NEAR_EVEN
                queries[calm, CONSTANT], keys[calm_too, CONSTANT] = 1.0, 1.0
