"""Trained for real: a small sentence-transformers model learns from mined files, on a CPU, and its loss falls."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from mining_in_process import make_job, mine_in_process
from mining_inputs import make_pairs, write_scored
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss, TripletLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

STEPS = 20


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose positive shares words with its query, so that there is something to learn."""
    rows = make_pairs(40, 8)
    for row in rows:
        topic = row["query_id"] if row["label"] else f"q{(int(row['query_id'][1:]) + row['document_id']) % 40}"
        row["query"], row["document"] = f"tell of {row['query_id']}", f"text {row['document_id']} is on {topic}"
    return write_scored(tmp_path_factory.mktemp("training") / "scored", rows)


def make_model(folder: Path, scored: Path) -> SentenceTransformer:
    """Return a random model of two thin layers that knows the words of the pairs."""
    torch.manual_seed(0)
    table = pq.read_table(next(scored.glob("*.parquet")), columns=["query", "document"]).to_pylist()
    words = sorted({word for row in table for text in row.values() for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), hidden_dropout_prob=0.0, **sizes)).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32, pooling_mode="mean")], device="cpu")


def train(model: SentenceTransformer, data: Any, loss: Any, folder: Path) -> list[float]:
    """Train for some steps and return the loss of each."""
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (TripletLoss, {"format": "triplet", "teacher": "none"}),
        (MarginMSELoss, {"format": "triplet", "teacher": "score", "temperature": 4.0}),
        (DistillKLDivLoss, {"format": "n-tuple", "teacher": "logit"}),
    ],
)
def test_loss_falls_on_mined_data(tmp_path: Path, scored: Path, loss: Any, settings: dict[str, Any]) -> None:
    mine_in_process(make_job(scored, tmp_path / "mined", **{"num_negatives": 2, **settings}))
    data = load_dataset(
        "parquet", data_files=str(tmp_path / "mined/part-*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data.num_rows > 20
    model = make_model(tmp_path / "model", scored)
    losses = train(model, data, loss(model), tmp_path / "out")
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
