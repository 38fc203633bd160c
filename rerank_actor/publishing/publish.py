"""Publishing an output: checked, compared with what the repository holds, uploaded, the card last.

Takes an output and the name of a repository, gives what was or would be done. Where something fails the same command again
goes on: files that are there are not sent again. Knows nothing of what is in the files.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from rerank_actor import storage
from rerank_actor.errors import JobError, OutputConflictError
from rerank_actor.mining.output import DATA_NAME
from rerank_actor.outputs.part import METADATA_PREFIX, OF_ONE_PART, read_part_metadata
from rerank_actor.outputs.report.provenance import shorten
from rerank_actor.outputs.row_groups import open_part, refuse_damaged
from rerank_actor.progress import QuietReporter, Reporter
from rerank_actor.publishing.card import make_card, mark_fingerprint
from rerank_actor.publishing.contents import Contents, list_contents
from rerank_actor.storage.hub_upload import HubRepository

CARD = "README.md"
HUBS_OWN = (".gitattributes",)
DATA = re.compile(
    rf"part-[^/]*|(?:[^/=]+=[^/]*/)?(?:{DATA_NAME.pattern})"
)  # of scores, and mined ones, by value or not


@dataclass(frozen=True)
class PublishSpec:
    """What to publish, and where.

    Attributes:
        output: a scored or mined output.
        repository: owner and name of a dataset repository, created where there is none.
        branch: of it.
        private: whether it is created private.
        license_name: for the card, by the hub's list.
        replace: whether what the repository holds of other data is deleted.
    """

    output: str
    repository: str
    branch: str = "main"
    private: bool = False
    license_name: str = "unknown"
    replace: bool = False


def prepare(spec: PublishSpec) -> tuple[Contents, str]:
    """Return what would be published, and the card; the hub is not asked.

    Raises:
        InputError: the output is not complete, or not as it was written.
        JobError, StorageError: it cannot be read.
    """
    contents = list_contents(spec.output)
    return contents, make_card(contents, spec.repository, spec.license_name)


def publish(spec: PublishSpec, reporter: Reporter | None = None) -> str:
    """Publish an output and return the address of the dataset.

    Raises:
        JobError: there is no token, the name is none, or the output is not complete.
        OutputConflictError: the repository holds other data.
        StorageError: the hub did not answer.
    """
    reporter = reporter or QuietReporter()
    repository = HubRepository(spec.repository, spec.branch)
    contents, card = prepare(spec)
    present = repository.list_files()
    _refuse_public(spec, repository, present)
    with tempfile.TemporaryDirectory() as folder:
        sizes = _stage(contents, Path(folder))
        stale = _compare(spec, contents.fingerprint, sizes, repository, present or {})
        repository.create(private=spec.private)
        reporter.info(f"{spec.repository}: {len(sizes):,} files, {sum(sizes.values()):,} bytes")
        Path(folder, CARD).write_text(card, encoding="utf-8")
        words = f"{contents.kind.capitalize()} data {contents.fingerprint}"
        repository.upload(Path(folder), words, only=None, deleted=stale)
        repository.upload(Path(folder), f"Card of {contents.fingerprint}", only=CARD)
    return f"hf://datasets/{spec.repository}" + (f"@{spec.branch}" if spec.branch != "main" else "")


def refuse_other_data(spec: PublishSpec, fingerprint: str) -> None:
    """Refuse to make what could not be published, because the repository is public or holds other data.

    Args:
        spec: what is to be published; its output has no data yet.
        fingerprint: of the output.

    Raises:
        JobError, OutputConflictError, StorageError: as of `publish`.
    """
    repository = HubRepository(spec.repository, spec.branch)
    present = repository.list_files()
    _refuse_public(spec, repository, present)
    _compare(spec, fingerprint, {}, repository, present or {})


def _refuse_public(spec: PublishSpec, repository: HubRepository, present: dict[str, int] | None) -> None:
    if present is not None and spec.private and not repository.is_private():
        raise JobError(
            f"{spec.repository}: is there and public; make it private on the hub, or do not ask for a private one"
        )


def _compare(
    spec: PublishSpec, fingerprint: str, sizes: dict[str, int], repository: HubRepository, present: dict[str, int]
) -> list[str]:
    """Return the files of the repository to delete, or refuse it where it holds other data."""
    files = {name: size for name, size in present.items() if name not in HUBS_OWN}
    card = repository.read(CARD, files.pop(CARD)).decode(errors="replace") if CARD in files else ""
    is_same = mark_fingerprint(fingerprint) in card
    others = [name for name, size in files.items() if sizes.get(name) != size]
    if spec.replace:
        return [name for name in present if name not in HUBS_OWN and name not in sizes]
    if is_same:  # of the job before it was extended
        return [name for name in others if name not in sizes and DATA.fullmatch(name)]
    others += [CARD] if card else []
    if others:
        shown = ", ".join(sorted(others)[:3])
        raise OutputConflictError(
            f"{spec.repository}: holds {len(others):,} files that are not of this output ({shown}); choose another repository, "
            f"or delete them with jobs.publish {spec.output} --to {spec.repository} --replace"
        )
    return []


def _stage(contents: Contents, folder: Path) -> dict[str, int]:
    """Lay the files out as the repository is to have them, without places in their metadata; return their sizes."""
    sizes = {}
    for name, item in contents.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet") and _write_without_places(item, target):
            pass
        elif not storage.is_remote(item.uri):
            target.symlink_to(item.uri)
        else:
            with storage.open_input(item.uri, size=item.size, etag=item.etag) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        sizes[name] = target.stat().st_size
    return sizes


def _write_without_places(item: storage.StoredObject, target: Path) -> bool:
    """Write a part with nothing in its metadata of where it was made; return whether there was such a thing."""
    with open_part(item) as part:
        schema = part.schema_arrow
        known = read_part_metadata(schema)
        if not known:
            return False
        kept = {name: shorten(name, value) for name, value in known.items() if name not in OF_ONE_PART}
        others = {
            name: value
            for name, value in (schema.metadata or {}).items()
            if not name.decode(errors="replace").startswith(METADATA_PREFIX)
        }
        schema = schema.with_metadata(
            others | {f"{METADATA_PREFIX}{name}".encode(): value for name, value in kept.items()}
        )
        with (
            refuse_damaged(item.uri),
            pq.ParquetWriter(target, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for group in range(part.metadata.num_row_groups):
                writer.write_table(part.read_row_group(group).replace_schema_metadata(schema.metadata))
    return True
