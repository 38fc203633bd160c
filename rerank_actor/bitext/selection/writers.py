"""Delivery: selected pairs as the files that trainers and translators read.

Takes sorted rows with texts, gives the objects of a part, by suffix. TSV is LASER's `score<TAB>source<TAB>target` without
header or quoting; Moses is a file a side, line by line; there each run of control characters is one space. TMX 1.4b has a
`tu` a pair with its score as a `prop`, BCP 47 codes, and a space for what XML 1.0 cannot hold. Parquet keeps texts as they
are. Knows nothing of where they are put.
"""

from importlib.metadata import version
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor import storage
from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.selection.job import Format
from rerank_actor.bitext.selection.normalize import clean_for_xml, flatten_texts

ADDED = {"combined_score": pa.float32(), "margin": pa.float32(), "ratio_margin": pa.float32()}
SORTING = ("_rank", "_tie", "_position")
LEFT_OUT = ("error",)  # null in every row that has a score
ROWS_AT_ONCE = 16_384
_XML = {"\r": "&#13;"}  # a reader of XML would make a newline of it


def name_files(kind: Format, pair: LanguagePair) -> list[str]:
    """Return the suffixes of a part's files."""
    return [pair.source.code, pair.target.code] if kind == "moses" else [kind]


def rename_taken(table: pa.Table) -> pa.Table:
    """Return rows without what is not delivered; a kept column with a name of ours gets `input_` before it."""
    table = table.drop_columns([name for name in LEFT_OUT if name in table.column_names])
    return table.rename_columns([f"input_{name}" if name in ADDED else name for name in table.column_names])


def build_objects(
    kind: Format, table: pa.Table, scores: np.ndarray, sides: tuple[str, str], pair: LanguagePair
) -> tuple[dict[str, bytes], int]:
    """Return the files of a part, by suffix, and in how many texts characters had to be replaced.

    Args:
        kind: the format.
        table: the rows, best first.
        scores: float64 [num_rows], what stands beside each pair.
        sides: columns of source and target.
        pair: the languages.
    """
    suffixes = name_files(kind, pair)
    if kind == "parquet":
        return {suffixes[0]: _to_parquet(table)}, 0
    texts = [table[side].combine_chunks().cast(pa.string()) for side in sides]
    replaced = [flatten_texts(side) if kind != "tmx" else clean_for_xml(side) for side in texts]
    altered = sum(number for _, number in replaced)
    sources, targets = (side for side, _ in replaced)
    if kind == "moses":
        return {suffix: _to_lines(side) for suffix, side in zip(suffixes, (sources, targets), strict=True)}, altered
    written = write_scores(scores)
    if kind == "tsv":
        lines = pc.binary_join_element_wise(pa.array(written, pa.string()), sources, targets, "\t")
        return {suffixes[0]: _to_lines(lines)}, altered
    return {suffixes[0]: _to_tmx(written, sources, targets, pair)}, altered


def write_scores(values: np.ndarray) -> list[str]:
    """Return values in the fewest digits that tell them apart in float32."""
    return [str(value) for value in values.astype(np.float32)]


def _to_lines(texts: pa.Array) -> bytes:
    if not len(texts):
        return b""
    return ("\n".join(texts.to_pylist()) + "\n").encode()


def _to_parquet(table: pa.Table) -> bytes:
    table = table.drop_columns([name for name in SORTING if name in table.column_names])
    return storage.to_parquet(table, row_group_size=ROWS_AT_ONCE)


def _to_tmx(scores: list[str], sources: pa.Array, targets: pa.Array, pair: LanguagePair) -> bytes:
    tags = [pair.source.tag, pair.target.tag]
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4">\n'
        f'<header creationtool="rerank-actor" creationtoolversion="{version("rerank-actor")}" segtype="sentence" '
        f'o-tmf="Parquet" adminlang="en" srclang="{tags[0]}" datatype="plaintext"/>\n<body>\n'
    )
    body = "".join(
        f'<tu><prop type="score">{score}</prop><tuv xml:lang="{tags[0]}"><seg>{escape(source, _XML)}</seg></tuv>'
        f'<tuv xml:lang="{tags[1]}"><seg>{escape(target, _XML)}</seg></tuv></tu>\n'
        for score, source, target in zip(scores, sources.to_pylist(), targets.to_pylist(), strict=True)
    )
    return (head + body + "</body>\n</tmx>\n").encode()
