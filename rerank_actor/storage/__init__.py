"""The one door to storage: local folders, object stores and, for reading, the Hugging Face hub, under functions of URIs.

A URI is an absolute local path, `s3://bucket/key`, `gs://bucket/key`, `az://container/key`, `abfss://container@account.../key`
or, for reading alone, `hf://datasets/owner/name/path`. What enters are
URIs and bytes; what leaves are objects read or written whole, listings, leases, and rows that are shuffled or found by key
through objects. Listing is one paginated listing, writing is whole or not at all, and what storage answers is turned into
the project's own errors. Knows nothing of Ray, nor of what the rows mean.
"""

from rerank_actor.storage.conditional import Version, create_bytes, read_version, replace_bytes
from rerank_actor.storage.objects import (
    choose_cache,
    delete_folder,
    delete_objects,
    download_folder,
    find_mark,
    list_children,
    list_everything,
    list_objects,
    look_at_object,
    open_input,
    read_bytes,
    read_if_present,
    read_range,
    refuse_changed,
    write_bytes,
)
from rerank_actor.storage.parquet import open_parquet, to_parquet
from rerank_actor.storage.retry import patient, retries_made, retrying
from rerank_actor.storage.s3_client import adopt_environment, capture_environment
from rerank_actor.storage.seal import is_broken, open_json, seal_json, seal_parquet, seal_text
from rerank_actor.storage.uri import (
    LOCATIONS,
    Listing,
    StoredObject,
    find_root,
    group_by_file,
    is_glob,
    is_remote,
    is_within,
    join_uri,
    normalize_uri,
    refuse_overlap,
    resolve_links,
)

__all__ = [
    "LOCATIONS",
    "Listing",
    "StoredObject",
    "Version",
    "adopt_environment",
    "capture_environment",
    "choose_cache",
    "create_bytes",
    "delete_folder",
    "delete_objects",
    "download_folder",
    "find_mark",
    "find_root",
    "group_by_file",
    "is_broken",
    "is_glob",
    "is_remote",
    "is_within",
    "join_uri",
    "list_children",
    "list_everything",
    "list_objects",
    "look_at_object",
    "normalize_uri",
    "open_input",
    "open_json",
    "open_parquet",
    "patient",
    "read_bytes",
    "read_if_present",
    "read_range",
    "read_version",
    "refuse_changed",
    "refuse_overlap",
    "replace_bytes",
    "resolve_links",
    "retries_made",
    "retrying",
    "seal_json",
    "seal_parquet",
    "seal_text",
    "to_parquet",
    "write_bytes",
]
