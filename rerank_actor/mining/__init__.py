"""Training data mined from stored scores: hard negatives, false negatives, distillation labels.

`run.mine_scores` names the path: the scored pairs are surveyed, those of a query are brought together, the rules choose
its positives and negatives, and a format writes them down. Scores are read, never computed: no model, no GPU. Within the
package dependencies run from `run` down to `rules`. Knows nothing of Ray, engines or bitext.
"""
