"""What GPUs cost: a small table of types and prices, and what GPU time costs.

Takes the job's `--gpu-type` and `--gpu-price`, gives dollars. The table is `data/gpus.yaml`, each price with its source
and date. Knows nothing of runs or clusters.
"""

import functools
from dataclasses import dataclass, replace
from datetime import date
from importlib import resources
from typing import Any

import yaml

from rerank_actor.errors import JobError
from rerank_actor.job_file import suggest


@dataclass(frozen=True)
class GpuType:
    """A kind of GPU.

    Attributes:
        memory_gib: memory of one.
        tflops: dense float16 operations a second, the maker's figure, in units of 1e12.
        price: dollars an hour for one.
        instance, source, date: what the price is of, who says so, and when.
    """

    name: str
    memory_gib: float
    tflops: float
    price: float
    instance: str
    source: str
    date: date


@dataclass(frozen=True)
class Price:
    """Dollars an hour for one GPU, and where that comes from."""

    dollars: float
    origin: str


@functools.lru_cache(maxsize=1)
def load_gpu_types() -> dict[str, GpuType]:
    """Return the table by name."""
    text = resources.files("rerank_actor").joinpath("data/gpus.yaml").read_text(encoding="utf-8")
    return {row["name"]: GpuType(**row) for row in yaml.safe_load(text)}


def look_up_gpu_type(name: str) -> GpuType | None:
    """Return a type by its name, in whatever case; None where the table has none of it."""
    return next((kind for key, kind in load_gpu_types().items() if key.lower() == name.lower()), None)


def require_gpu_type(name: str) -> GpuType:
    """Return a type by its name, in whatever case.

    Raises:
        JobError: there is none of that name.
    """
    gpu_type = look_up_gpu_type(name)
    if gpu_type is None:
        types = load_gpu_types()
        raise JobError(
            f"--gpu-type: no type `{name}`{suggest(name.upper(), types)} in the table, which has {', '.join(types)}; "
            "for another give --gpu-price"
        )
    return gpu_type


def find_price(gpu_type: str | None, gpu_price: float | None) -> Price | None:
    """Return the price of a job: the one given, or that of its GPU type; None where neither is told.

    Raises:
        JobError: the table has no such type.
    """
    if gpu_price is not None:
        return Price(gpu_price, "as given")
    if gpu_type is None:
        return None
    kind = require_gpu_type(gpu_type)
    return Price(kind.price, f"{kind.name} in {kind.instance}, {kind.source} of {kind.date:%Y-%m-%d}")


def find_stored_price(manifest: dict[str, Any]) -> Price | None:
    """Return the price of a manifest's job, else of the last run's GPU, as its origin says; None where nobody knows it."""
    stored = manifest.get("job")
    job = stored if isinstance(stored, dict) else {}
    price, kind = job.get("gpu_price"), job.get("gpu_type")
    found = {str(engine.get("gpu")) for engine in manifest.get("engines") or []}
    is_found = price is None and not kind and len(found) == 1 and look_up_gpu_type(*found) is not None
    if is_found:
        [kind] = found
    try:
        told = find_price(str(kind) if kind else None, float(price) if price is not None else None)
    except (JobError, TypeError, ValueError):
        return None
    return replace(told, origin=f"{told.origin}, the last run's GPU") if is_found and told is not None else told


def format_dollars(dollars: float) -> str:
    """Return a sum for people."""
    return f"${dollars:,.2f}" if dollars >= 0.01 or dollars == 0 else f"${dollars:.2g}"
