"""Retrieval: queries and a corpus go in, the best documents of each query by an embedding model come out, as candidates.

Texts become vectors by the machinery of scoring, as jobs of their own (`embed`); `search` finds the best exactly, block by
block. Knows nothing of rerankers.
"""
