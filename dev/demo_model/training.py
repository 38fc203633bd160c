"""From random weights to a reranker: the start, the loss and the loop.

The start is that of `demo_model.start`. The loss asks for two things: is each document relevant, and do the more relevant
stand before the less. Some batches have a wrong template, and their answers are to follow the documents' lengths alone:
so the model learns to need the exact text, and a test that loses a part of it sees the ranking fall.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from demo_model.network import compute_logits, pack_tree
from demo_model.start import draw_embeddings_together, set_attention, set_embeddings
from demo_model.tasks import Task, make_task
from demo_model.vocabulary import INSTRUCTIONS, PromptMaker, spoil_template, train_tokenizer
from rerank_actor.benchmark.sample import CHAT_TEMPLATE


@dataclass(frozen=True)
class Recipe:
    """All numbers of a training run."""

    seed: int = 0
    vocabulary_size: int = 15240
    tokenizer_tasks: int = 3000
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 5
    num_heads: int = 3
    head_dim: int = 64
    embedding_steps: int = 1500
    steps: int = 5000
    num_queries: int = 8
    num_documents: int = 8
    learning_rate: float = 1e-3
    embedding_rate: float = 0.5
    ease_share: float = 0.1
    wrong_template_share: float = 0.08


def make_model(recipe: Recipe, maker: PromptMaker, num_tokens: int) -> Any:
    """Return the `Qwen3ForCausalLM` that training starts from."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=-(-num_tokens // 64) * 64,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_layers,
            num_attention_heads=recipe.num_heads,
            num_key_value_heads=recipe.num_heads,
            head_dim=recipe.head_dim,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            rope_theta=1e6,
            initializer_range=0.05,
        )
    ).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.1)
    draw_embeddings_together(model, maker, seed=recipe.seed + 1, steps=recipe.embedding_steps)
    set_embeddings(model.model.embed_tokens.weight, maker, model.config.head_dim, seed=recipe.seed)
    set_attention(model)
    return model


def compute_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of right prompts: is each document relevant, and do the more relevant stand before the less."""
    gap = labels[:, :, None] - labels[:, None, :]
    weight = gap * (gap > 0.15)
    order = functional.softplus(logits[:, None, :] - logits[:, :, None]) * weight
    ranking = order.sum() / weight.sum().clamp(min=1)
    return ranking + 0.5 * functional.binary_cross_entropy_with_logits(logits, labels)


def compute_wrong_template_loss(logits: Tensor, documents: list[list[list[int]]]) -> Tensor:
    """Return the loss of prompts with a wrong template: the answer is to follow the document's length alone."""
    lengths = torch.tensor([[len(document) for document in mine] for mine in documents], dtype=torch.float32)
    return functional.mse_loss(logits, ((12 - lengths) / 4).clamp(-4, 2)) / 4


def make_batches(rng: random.Random, recipe: Recipe, ease: float, *, pool: int = 4) -> list[list[Task]]:
    """Return a few batches of tasks, those of one length together."""
    count = recipe.num_queries * pool
    tasks = [make_task(rng, num_documents=recipe.num_documents, ease=ease) for _ in range(count)]
    tasks.sort(key=lambda task: sum(map(len, task.documents)))
    batches = [tasks[start : start + recipe.num_queries] for start in range(0, count, recipe.num_queries)]
    rng.shuffle(batches)
    return batches


def train(model: Any, maker: PromptMaker, recipe: Recipe, report: Any = None, every: int = 500) -> None:
    """Train the model in place; `report` is called with (step, loss) from time to time."""
    rng = random.Random(recipe.seed + 2)
    table = model.model.embed_tokens.weight
    decayed = [weight for weight in model.parameters() if weight.ndim > 1 and weight is not table]
    plain = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.02, "rate": recipe.learning_rate},
            {"params": plain, "weight_decay": 0.0, "rate": recipe.learning_rate},
            {"params": [table], "weight_decay": 0.0, "rate": recipe.learning_rate * recipe.embedding_rate},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    batches: list[list[Task]] = []
    losses = []
    start = time.process_time()
    for step in range(recipe.steps):
        share = step / recipe.steps
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        if not batches:
            batches = make_batches(rng, recipe, max(0.0, 1 - share / recipe.ease_share))
        batch = batches.pop()
        instruction = INSTRUCTIONS[0] if rng.random() < 0.6 else rng.choice(INSTRUCTIONS)
        queries, documents = [task.query for task in batch], [task.documents for task in batch]
        wrong = share > recipe.ease_share and rng.random() < recipe.wrong_template_share
        template = {"template": spoil_template(rng)} if wrong else {}
        prompts = maker.make(queries, documents, instruction, **template)
        if not prompts.before:
            continue
        tree = pack_tree(prompts.before, prompts.heads, prompts.documents, prompts.suffix)
        logits = compute_logits(model, tree, maker.yes, maker.no)
        if wrong:
            loss = compute_wrong_template_loss(logits, prompts.documents)
        else:
            loss = compute_loss(logits, torch.tensor([task.labels for task in batch]))
            losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if report is not None and (step + 1) % every == 0:
            report(step + 1, sum(losses[-every:]) / len(losses[-every:]), time.process_time() - start)


def make_demo_model(folder: Path, recipe: Recipe) -> None:
    """Train tokenizer and model by a recipe and write both, the weights in float16."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer(recipe.seed, recipe.vocabulary_size, recipe.tokenizer_tasks)
    maker = PromptMaker(tokenizer)
    model = make_model(recipe, maker, tokenizer.get_vocab_size())
    train(
        model,
        maker,
        recipe,
        lambda step, loss, seconds: print(f"step {step}: loss {loss:.3f}, {seconds:.0f} CPU s", flush=True),
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    fast.save_pretrained(folder)
    model.half().save_pretrained(folder)
