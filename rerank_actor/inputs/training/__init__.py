"""Training files as input: rows that have their positives and their negatives in columns apart.

`layouts` says which columns these are in the files of the trainers, `documents` makes one list of documents of them, with a
label for each. Knows nothing of scores, nor of what the trainers do.
"""

from typing import Literal, get_args

TrainingFormat = Literal["flagembedding", "tevatron", "tuples", "msmarco-hard-negatives"]
TRAINING_FORMATS: tuple[str, ...] = get_args(TrainingFormat)
Holds = Literal[
    "", "text", "texts", "structs"
]  # a column: a text, a list of texts or of structs; empty where it is not told
HOLDS: dict[str, Holds] = {"flagembedding": "texts", "tevatron": "structs", "tuples": "text"}
