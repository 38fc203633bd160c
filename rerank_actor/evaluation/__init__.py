"""Evaluation: how well scored candidates are ranked, by the measures that rankings are compared by.

Scored outputs and judgements enter; a table leaves: each output's measures with intervals, beside those of the candidates'
own order and of the best possible order of the same candidates. Knows nothing of models, and needs no Ray.
"""
