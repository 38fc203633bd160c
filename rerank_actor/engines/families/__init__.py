"""Families of rerankers: what a model folder says of itself and what is known of its architecture, as one description.

Takes the files of a model folder, gives a `ModelDescription` or refuses. Knows nothing of engines that run and loads no weight.
"""
