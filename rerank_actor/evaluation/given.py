"""Candidates that are there: which file holds those of a task's subset, and which part of a file that holds several.

Takes what `--candidates` names, and lists that a task brings; gives a file that the scoring job reads whole. MTEB writes all
subsets and splits of a task into one JSON; each becomes a file in the evaluation's folder, of which one at a time is in memory.
Knows nothing of how candidates are scored.
"""

import io
import itertools
import operator
from collections.abc import Mapping

from rerank_actor import storage
from rerank_actor.errors import InputError
from rerank_actor.evaluation.job import EvaluateJob, describe_subset
from rerank_actor.evaluation.task_texts import TaskData, write_if_other
from rerank_actor.evaluation.tasks import DEFAULT
from rerank_actor.inputs.formats import find_format, split_name
from rerank_actor.inputs.rankings.predictions import iterate_sections
from rerank_actor.inputs.text import TextFile
from rerank_actor.outputs.predictions import PredictionsWriter

PREDICTIONS = ("_predictions.json", "_predictions.json.gz")
ENDINGS = (".trec", ".run", *PREDICTIONS, ".parquet", ".tsv", ".trec.gz", ".run.gz")
UNSAID = (DEFAULT, "test")  # what exports say where nobody names subset and split


def find_given(job: EvaluateJob, data: TaskData, num_subsets: int) -> str | None:
    """Return where candidates of a task are that need not be found: those of the job, else the task's own.

    Raises:
        InputError: the job names candidates, and none are of this task.
    """
    if job.candidates is None:
        return data.candidates
    listed = [item.uri for item in storage.list_objects(job.candidates)]
    if listed == [job.candidates]:
        if num_subsets == 1 or (len(job.tasks) == 1 and _holds_sections(job.candidates)):
            return job.candidates
        raise InputError(
            f"--candidates {job.candidates}: is one file, and there are {num_subsets:,} tasks and subsets; give a folder with "
            "TASK.trec or TASK_SUBSET.trec for each"
        )
    stems = [f"{data.task}_{data.subset}_{data.split}", f"{data.task}_{data.subset}"]
    stems += [f"{data.task}_{data.split}", data.task] if data.subset == DEFAULT else []
    wanted = [stem + end for stem in stems for end in ENDINGS] + [data.task + end for end in PREDICTIONS]
    names = {uri.rpartition("/")[2]: uri for uri in listed}
    found = next((names[name] for name in wanted if name in names), None)
    if found is None and data.candidates is None:
        raise InputError(
            f"--candidates {job.candidates}: has none of {describe_subset(data.task, data.subset)}; a file "
            f"{stems[-1]}.trec or {stems[-1]}_predictions.json is wanted",
            uri=job.candidates,
        )
    return found or data.candidates


def _holds_sections(uri: str) -> bool:
    """Whether a file may hold the candidates of several subsets by its name."""
    return split_name(uri)[1] == ".json"


class Sections:
    """Subsets and splits of files of predictions, each file read once; `root` is the evaluation's folder."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._found: dict[str, Mapping[tuple[str, str], str]] = {}

    def pick(self, uri: str | None, data: TaskData) -> str | None:
        """Return the file of a subset's candidates, which is another one where a file holds several.

        Raises:
            InputError: it holds other subsets or splits, or is broken.
        """
        if uri is None or not _holds_sections(uri):
            return uri
        if uri not in self._found:
            self._found[uri] = _split(uri, storage.join_uri(self._root, "candidates", data.task))
        found = self._found[uri]
        wanted = (data.subset, data.split)
        if wanted not in found and list(found) != [UNSAID]:
            held = ", ".join(f"{subset}/{split}" for subset, split in list(found)[:20])
            raise InputError(
                f"--candidates {uri}: holds {held or 'no candidate'}, and {'/'.join(wanted)} of {data.task} is wanted",
                uri=uri,
            )
        return found.get(wanted) or found[UNSAID]


def _split(uri: str, folder: str) -> dict[tuple[str, str], str]:
    """Return the files of each subset and split: the file itself where it holds one, else a new one for each."""
    [item] = storage.list_objects(uri)
    file = TextFile(item.uri, item.size, item.etag, "lines", find_format(uri)[1])
    sections = [section for section, _ in itertools.groupby(iterate_sections(file), key=operator.itemgetter(0))]
    if len(sections) < 2:
        return dict.fromkeys(sections, uri)
    if len({*sections}) < len(sections):
        raise InputError(f"--candidates {uri}: a subset with its split is there twice; leave one of them", uri=uri)
    targets = {
        (subset, split): storage.join_uri(folder, f"{subset}_{split}_predictions.json") for subset, split in sections
    }
    for section, queries in itertools.groupby(iterate_sections(file), key=operator.itemgetter(0)):
        with io.StringIO() as text:
            writer = PredictionsWriter(text, None, None, *section)
            for _, query, candidates in queries:
                writer.write(query, dict(candidates))
            writer.finish()
            write_if_other(targets[section], text.getvalue().encode())
    return targets
