"""Rankings: files of retrieval with a line for each candidate of a query, and judgements of these.

What a line is (`lines`), how a file of them is told (`sniff`) and read as shards of pairs of ids (`files`; MTEB's
JSON by `predictions`), and what a file of qrels says as a whole (`qrels`). Knows nothing of plans, of texts or of scores.
"""
