"""Measure how the job grows: `python dev/bench_scale.py [--measurements NAME...]`. Prints tables, writes result.json."""

import argparse
import json
from pathlib import Path

from scale.measurements import FULL, make_scale_tables, measure_scale

from rerank_actor.benchmark.ratios import extract_ratios, report_moved, store_ratios


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", nargs="+", choices=list(FULL), default=list(FULL))
    parser.add_argument(
        "--folder", default="benchmark-out/scale", help="for inputs, outputs, logs and result.json; new"
    )
    parser.add_argument("--compare", metavar="FILE", help="print which ratios moved from those stored there")
    parser.add_argument("--store", metavar="FILE", help="put the ratios into those stored there")
    args = parser.parse_args()
    folder = Path(args.folder).absolute()
    figures = measure_scale(
        folder, lambda words: print(words, flush=True), {name: FULL[name] for name in args.measurements}
    )
    print(make_scale_tables(figures))
    (folder / "result.json").write_text(json.dumps({"scale": figures}, indent=1))
    ratios = extract_ratios({"scale": figures})
    if args.compare:
        report_moved(ratios, Path(args.compare))
    if args.store:
        store_ratios(ratios, Path(args.store))


if __name__ == "__main__":
    main()
