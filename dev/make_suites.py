"""Write the suites of `jobs.evaluate`: rerank_actor/data/suites.yaml, from the tasks and statistics of an installed mteb.

Run it in an environment with mteb (2.26.24 was taken): `python dev/make_suites.py > rerank_actor/data/suites.yaml`.
Instructions are those of the publisher's evaluation (task_prompts.json), of which two of mteb's models keep a copy: what both
say is taken. Besides there are facts alone: names, places, splits, counts.
"""

import logging
from typing import Any

import mteb
import yaml
from mteb.models.model_implementations.ict_time_and_querit_models import boom_4b_instructions
from mteb.models.model_implementations.tarka_models import tarka_embedding_350_v1_instruction_prompts

COLUMNS = {
    "MTEB-R": "MTEB(eng, v2)",
    "CMTEB-R": "MTEB(cmn, v1)",
    "MMTEB-R": "MTEB(Multilingual, v2)",
    "MLDR": ["MultiLongDocRetrieval"],
    "MTEB-Code": "MTEB(Code, v1)",
    "FollowIR": ["Core17InstructionRetrieval", "News21InstructionRetrieval", "Robust04InstructionRetrieval"],
}
DENSE, DENSE_CHARACTERS = ("zho", "cmn", "jpn"), 1.5  # scripts whose characters are about a word each
LAYOUTS = {"BelebeleRetrieval": "belebele", "CodeEditSearchRetrieval": "code-edits"}
DEFAULT = (
    "Given the user query, retrieval the relevant passages"  # of the publisher's evaluation, for tasks without one
)
PUBLISHED = {
    "Qwen/Qwen3-Embedding-0.6B": [61.82, 71.02, 64.64, 50.26, 75.41, 5.09],
    "jinaai/jina-reranker-v2-base-multilingual": [58.22, 63.37, 63.73, 39.66, 58.98, -0.68],
    "Alibaba-NLP/gte-multilingual-reranker-base": [59.51, 74.08, 59.44, 66.33, 54.18, -1.64],
    "BAAI/bge-reranker-v2-m3": [57.03, 72.16, 58.36, 59.51, 41.38, -0.01],
    "Qwen/Qwen3-Reranker-0.6B": [65.80, 71.31, 66.36, 67.28, 73.42, 5.41],
    "Qwen/Qwen3-Reranker-4B": [69.76, 75.94, 72.74, 69.97, 81.20, 14.84],
    "Qwen/Qwen3-Reranker-8B": [69.02, 77.45, 72.94, 70.19, 81.22, 8.05],
}
MEASURES = {"ndcg_at_10": "ndcg@10", "ndcg_at_1": "ndcg@1", "recall_at_10": "recall@10", "p-MRR": "p-mrr"}


class Dumper(yaml.SafeDumper):
    """YAML with lists on one line each."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.Node:
        """Return a list on one line."""
        return super().represent_sequence(tag, sequence, flow_style=True)


def list_tasks(place: Any) -> list[Any]:
    """Return the tasks of retrieval of a benchmark, or those of some names."""
    if isinstance(place, list):
        return [mteb.get_task(name) for name in place]
    return [task for task in mteb.get_benchmark(place).tasks if task.metadata.type == "Retrieval"]


def find_instruction(task: Any, *, is_card: bool) -> str:
    """Return the publisher's instruction for a task of the card, else mteb's."""
    if not is_card:
        return str(task.metadata.prompt["query"])
    found = []
    for prompts in (tarka_embedding_350_v1_instruction_prompts, boom_4b_instructions):
        prompt = prompts.get(task.metadata.name)
        found.append(prompt["query"] if isinstance(prompt, dict) else prompt)
    first, second = found
    if not first:
        return DEFAULT
    if first.rstrip(". ") != second.rstrip(". "):
        raise ValueError(f"{task.metadata.name}: {first!r} and {second!r}")
    return str(first)


def describe(task: Any, *, is_card: bool) -> dict[str, Any]:
    """Return a task as the file has it."""
    data, name = task.metadata.dataset, task.metadata.name
    split = task.eval_splits[0]  # of several, the publisher's summary takes the first
    found: dict[str, Any] = {
        "data": f"{data['path']}@{data['revision']}",
        "split": split,
        "measure": MEASURES[task.metadata.main_score],
        "instruction": find_instruction(task, is_card=is_card),
    }
    if task.hf_subsets != ["default"]:
        found["subsets"] = list(task.hf_subsets)
    if task.ignore_identical_ids:
        found["ignore_identical_ids"] = True
    languages = {language[:3] for language in task.metadata.languages}
    if languages <= {*DENSE}:
        found["characters_per_token"] = DENSE_CHARACTERS
    if name in LAYOUTS:
        found["layout"] = LAYOUTS[name]
    statistics = (task.metadata.descriptive_stats or {}).get(split, {})
    for role in ("queries", "documents"):
        texts = statistics.get(f"{role}_text_statistics") or {}
        length = texts.get("average_text_length")
        count = statistics.get(f"num_{role}")
        if length and not count:
            count = round(texts["total_text_length"] / length)
        if length and count:
            found[role] = [count, round(length)]
    listed = (statistics.get("top_ranked_statistics") or {}).get("average_top_ranked_per_query")
    if listed:
        found["listed"] = round(listed)
    return found


def main() -> None:
    """Print the file."""
    logging.disable(logging.WARNING)
    columns = {name: list_tasks(place) for name, place in COLUMNS.items()}
    nano = list(mteb.get_benchmark("NanoBEIR").tasks)
    tasks = {task.metadata.name: describe(task, is_card=True) for found in columns.values() for task in found}
    tasks |= {task.metadata.name: describe(task, is_card=False) for task in nano}
    suites = {
        "qwen3-card": {
            "retriever": "Qwen/Qwen3-Embedding-0.6B",
            "columns": {name: [task.metadata.name for task in found] for name, found in columns.items()},
            "source": "model card of Qwen/Qwen3-Reranker-0.6B, top 100 candidates of Qwen3-Embedding-0.6B",
            "published": PUBLISHED,
        },
        "nano": {
            "retriever": "Qwen/Qwen3-Embedding-0.6B",
            "columns": {"NanoBEIR": [task.metadata.name for task in nano]},
        },
    }
    print("# Made by dev/make_suites.py from mteb", mteb.__version__)
    print("# queries, documents: how many, and their mean length in characters, by mteb's statistics of the split.")
    print(
        yaml.dump({"suites": suites, "tasks": tasks}, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120),
        end="",
    )


if __name__ == "__main__":
    main()
