"""Selection: what is kept of scored translation pairs, one language pair at a time, and in which files it is delivered.

`run.select_pairs` names the path: scored parts are read, duplicates dropped, margins computed, thresholds calibrated and
applied, sides aligned, and what is kept is written. Scores are read, never computed: no model, no GPU. Within the package
dependencies run from `run` down to `rules`. Knows nothing of Ray or engines.
"""
