"""Translations: the column `translation` of datasets of Hugging Face, `{"en": .., "es": ..}`, as source and target.

Takes a batch of rows, gives one with `source` and `target` in its place, and the languages too where nothing else says them:
in the order that the folder's name has, or else the first row. Knows nothing of formats.
"""

from dataclasses import replace
from typing import Any

from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.languages import find_language
from rerank_actor.bitext.layouts import Source
from rerank_actor.errors import InputError
from rerank_actor.inputs.batches import Batch

COLUMN = "translation"
NO_TRANSLATION = "translation is no object of two languages and their texts"


class TranslationReader:
    """Takes the translations of a file's rows apart, where they are not beside columns of both sides; batches come in order.

    Args:
        source: the file.
        job: names the columns, and languages.
    """

    def __init__(self, source: Source, job: BitextJob) -> None:
        self._source, self._job = source, job
        self._order: list[str] = []  # codes as they first came
        self._chosen: dict[tuple[str, ...], list[str]] = {}  # by the keys of a row

    def read(self, batch: Batch) -> Batch:
        """Return a batch as it is, or with source and target where it has translations in their place.

        Raises:
            InputError: a row's languages are others than the file's, or more than two; or there is a column for one side too.
        """
        roles = (self._job.source_column, self._job.target_column)
        if COLUMN not in batch.names:
            return batch
        column = batch.columns.get(COLUMN, [None] * batch.num_rows)
        values = column if isinstance(column, list) else column.to_pylist()
        if beside := [name for name in roles if name in batch.names]:
            has_sides = len(beside) == len(roles) and not self._settled.intersection(beside)
            if has_sides or COLUMN in self._settled or not (self._order or any(map(_is_translation, values))):
                return batch
            batch = self._put_aside(batch, beside)
        if not self._order:
            row = next((row for row, value in enumerate(values) if _is_translation(value)), None)
            if row is None and values:
                raise InputError(f"{self._source.file.uri}: {NO_TRANSLATION}", uri=self._source.file.uri, column=COLUMN)
            self._choose(values[row or 0] if values else {}, batch, row or 0)
        faults = dict(batch.faults)
        names = [*roles, *(() if self._source.pair is not None else ("source_language", "target_language"))]
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for row, value in enumerate(values):
            if row not in faults and not _is_translation(value):
                faults[row] = NO_TRANSLATION
            codes: list[Any] = [None, None]
            if row not in faults:
                codes = self._chosen.get(tuple(value)) or self._choose(value, batch, row)
            texts = [value[code] if code is not None else None for code in codes]
            for name, item in zip(names, [*texts, *(codes if row not in faults else self._order[:2])], strict=False):
                columns[name].append(item)
        others = {name: values for name, values in batch.columns.items() if name != COLUMN}
        kept = tuple(name for name in batch.names if name != COLUMN)
        return replace(batch, names=(*names, *kept), columns={**columns, **others}, faults=faults)

    @property
    def _settled(self) -> set[str]:
        """Columns that flags leave out or call otherwise, so that they are no side."""
        return {*self._job.drop_columns, *self._job.rename_columns}

    def _put_aside(self, batch: Batch, names: list[str]) -> Batch:
        """Return a batch without columns that have the names of the sides, kept under the names that flags give them."""
        if unsettled := [name for name in names if name not in self._settled]:
            raise InputError(
                f"{self._source.file.uri}: has `{COLUMN}` beside `{unsettled[0]}`, and either may be the texts; for the "
                f"translations give --drop-columns {','.join(names)} or --rename-columns {unsettled[0]}=NEW, for the other "
                f"columns --drop-columns {COLUMN}",
                uri=self._source.file.uri,
                column=COLUMN,
            )
        renamed = {name: new for name, new in self._job.rename_columns.items() if name in names}
        moved = {new: batch.columns[name] for name, new in renamed.items() if name in batch.columns}
        others = {name: values for name, values in batch.columns.items() if name not in names}
        shown = (*(name for name in batch.names if name not in names), *renamed.values())
        return replace(batch, names=shown, columns={**others, **moved})

    def _choose(self, value: dict[str, Any], batch: Batch, row: int) -> list[str]:
        """Return the keys of a row's source and target."""
        pair = self._source.pair or self._match_folder(value)
        found = self._match(value, pair) if pair is not None else list(value)
        if len(found) != 2:
            wanted = f"{pair.name}; give --lang-pair" if pair is not None else "two; say which with --lang-pair"
            raise InputError(
                f"{self._source.file.uri}, {batch.describe(row)}: translation has the languages {', '.join(value)}, and not "
                f"{wanted}",
                uri=self._source.file.uri,
            )
        self._order += [code for code in found if code not in self._order]
        self._chosen[tuple(value)] = found if pair is not None else sorted(found, key=self._order.index)
        return self._chosen[tuple(value)]

    def _match_folder(self, value: dict[str, Any]) -> LanguagePair | None:
        pair = self._source.folder_pair
        return pair if pair is not None and len(self._match(value, pair)) == 2 else None

    def _match(self, value: dict[str, Any], pair: LanguagePair) -> list[str]:
        """Return the keys of a pair's languages, those that are there; `de` is `deu` here."""
        tags = {
            language.tag: code for code in value if (language := find_language(code, self._job.languages)) is not None
        }
        return [tags[side.tag] for side in (pair.source, pair.target) if side.tag in tags]


def _is_translation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 1
        and all(text is None or isinstance(text, str) for text in value.values())
    )
