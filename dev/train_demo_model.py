"""Make the demo's model, or measure it: `python dev/train_demo_model.py --help`.

Trains on texts made from the word lists in `dev/demo_model/words` alone, from a fixed seed, with torch on one thread,
and writes model, tokenizer and figures. Held-out queries and sample pairs are read only to measure the result.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from demo_model.evaluation import compute_figures, compute_known_pair_figures  # noqa: E402
from demo_model.training import Recipe, make_demo_model  # noqa: E402

from rerank_actor.benchmark.sample import DEMO_MODEL  # noqa: E402


def main() -> None:
    """Train unless told only to measure, then write the figures beside the model."""
    parser = argparse.ArgumentParser(description="Make and measure the demo's model.")
    parser.add_argument("--output", type=Path, default=DEMO_MODEL, help="folder of the model (default: the package's)")
    parser.add_argument("--measure-only", action="store_true", help="measure the model that is there")
    parser.add_argument("--also", type=Path, help="folder of known pairs (*.tsv, *.jsonl) to report on too")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help=f"(default {Recipe.steps})")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1; another number, other roundings)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    if not arguments.measure_only:
        start, cpu = time.monotonic(), time.process_time()
        make_demo_model(arguments.output, Recipe(steps=arguments.steps))
        spent = f"{(time.monotonic() - start) / 60:.1f} minutes, {(time.process_time() - cpu) / 60:.1f} CPU minutes"
        print(f"trained in {spent}", flush=True)
    figures = compute_figures(arguments.output)
    if not arguments.measure_only:
        (arguments.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.also:
        figures["known_pairs"] = compute_known_pair_figures(arguments.output, arguments.also)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
