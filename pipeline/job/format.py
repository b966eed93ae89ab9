"""In which format results are written: the ending of their file says it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

OutputFormat = Literal["parquet", "jsonl", "csv", "batch"]
FORMAT_OF_ENDING: dict[str, OutputFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".jsonl.gz": "jsonl",
    ".ndjson.gz": "jsonl",
    ".csv.gz": "csv",
}


def format_of_ending(path: Path) -> OutputFormat:
    """The format that a name's ending means. Raises ``ValueError`` where it means none."""
    for ending, known in FORMAT_OF_ENDING.items():
        if path.name.lower().endswith(ending):
            return known
    raise ValueError(f"the ending of {path.name!r} names no format; use {', '.join(FORMAT_OF_ENDING)}")
