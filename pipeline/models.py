"""What ``models`` shows: the models a gateway lists for a key, as a table."""

from __future__ import annotations

from pipeline.gateways import dialect_of
from pipeline.job import Job
from pipeline.preflight import Preflight, connection_to, preflight
from pipeline.records import ModelInfo

_HEADINGS = ("MODEL", "MODE", "CONTEXT", "IN", "OUT", "CACHED", "CACHING", "STATUS")
_RIGHT = frozenset({"CONTEXT", "IN", "OUT", "CACHED"})


async def listed(job: Job) -> Preflight:
    """What the job's gateway lists."""
    key = job.api_key()
    dialect = dialect_of(job.preset.family, model_is_the_rows=True, unset_key=job.unset_key())
    if job.base_url is not None:
        connection = connection_to(job, job.base_url, dialect, key.get_secret_value() if key else None)
        return await preflight(connection, dialect, model=None)
    from pipeline.simulator import Settings, Simulator

    async with Simulator(Settings()) as simulator:
        return await preflight(connection_to(job, simulator.base_url, dialect, None), dialect, model=None)


def table(models: list[ModelInfo]) -> str:
    """Aligned columns; prices are per million tokens."""
    rows = [_HEADINGS, *map(_cells, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if heading in _RIGHT else cell.ljust(width)
            for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
        ).rstrip()
        for row in rows
    ]
    units = sorted({info.unit for info in models if info.input_per_million is not None})
    return "\n".join([*lines, *([f"Prices per million tokens, in {' and '.join(units)}."] if units else [])])


def _cells(info: ModelInfo) -> tuple[str, ...]:
    caching = "" if info.prompt_caching is None else "yes" if info.prompt_caching else "no"
    prices = (info.input_per_million, info.output_per_million, info.cached_per_million)
    told = ["" if price is None else f"{price:g}" for price in prices]
    if info.free:
        told = ["free", "free", ""]
    context = "" if info.context is None else f"{info.context:,}"
    return (info.id, info.mode or "", context, *told, caching, info.status or "")
