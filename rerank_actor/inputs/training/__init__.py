"""Training files as input: rows that have their positives and their negatives in columns apart.

`layouts` says which columns these are in the files of the trainers, `documents` makes one list of documents of them, with a
label for each. Knows nothing of scores, nor of what the trainers do.
"""

from typing import Literal, get_args

TrainingFormat = Literal["flagembedding", "tevatron", "tuples", "msmarco-hard-negatives"]
TRAINING_FORMATS: tuple[str, ...] = get_args(TrainingFormat)
IN_LISTS = ("flagembedding", "tevatron")  # of these, those whose documents are lists
