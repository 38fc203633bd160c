"""Settings of an earlier run beside those of now: which differ, and the refusal to go on under others.

Takes settings as JSON values, as an output keeps them. Knows nothing of what they mean, but that `inputs` lists files.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rerank_actor.errors import OutputConflictError


def hash_fingerprint(settings: dict[str, Any]) -> str:
    """Return the fingerprint of everything that can change a score: 32 hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:32]


def list_differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that are not the same in both, in order."""
    return sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))


def refuse_other_rules(uri: str, holds: str, cure: str, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that was filled by other rules or from other scores.

    Args:
        uri: the folder.
        holds: what is there and was made with or by other rules, in words.
        cure: what to do about it.
        earlier: settings that it was filled by.
        now: those of now.

    Raises:
        OutputConflictError: they differ; says in what.
    """
    differing = list_differing(earlier, now)
    if differing:
        shown = "; ".join(_format_difference(name, earlier.get(name), now.get(name)) for name in differing)
        raise OutputConflictError(
            f"{uri}: holds {holds} other rules or from other scores ({shown}); {cure}", uri=uri, differing=differing
        )


def _format_difference(name: str, there: Any, now: Any) -> str:
    if name == "inputs":
        before, after = {tuple(item) for item in there or []}, {tuple(item) for item in now or []}
        return f"scored files: {len(before - after):,} there that are gone or changed, {len(after - before):,} new or changed"
    return f"{name.replace('_', '-')}: there {there!r}, now {now!r}"
