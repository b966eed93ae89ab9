"""``status.json``: where a run stands, for those who are not the run."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import PipelineError
from pipeline.ground.disk import unwritable
from pipeline.ground.folders import AtomicFile
from pipeline.progress import Snapshot

STATUS_FILE = "status.json"


def status_in(folder: Path) -> dict[str, Any] | None:
    """The last status in a run folder; None where there is none that can be read."""
    try:
        status = orjson.loads((folder / STATUS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None


def shown_in(folder: Path) -> int:
    """How many rows the last status in a run folder says were done; 0 where it does not say."""
    status = status_in(folder) or {}
    counts = [status.get(name) for name in ("completed", "failed")]
    return sum(count for count in counts if type(count) is int)


class StatusFile:
    """``status.json`` in the run folder, replaced atomically: what ``pipeline status`` reads, also after a kill.

    That a run has begun and how it ended is synced. What it says in between need not be, for after a power cut the journal
    tells; but no earlier run's end must be left there then.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._path = folder / STATUS_FILE
        self._facts = facts
        self._begun = False

    def write(self, snapshot: Snapshot | None, **more: Any) -> None:
        """Replace the file's text. Raises ``IncompleteError``, or ``RunFolderError`` where it may not be written."""
        status = {**self._facts, **(asdict(snapshot) if snapshot else {}), **more, "written_at": time.time()}
        text = orjson.dumps(status, option=orjson.OPT_INDENT_2)
        try:
            with AtomicFile(self._path, sync=snapshot is None or not self._begun) as file:
                file.stream.write(text)
        except OSError as exc:
            raise unwritable(self._path, exc, what="the status") from exc
        self._begun = True

    def unwritten(self, snapshot: Snapshot) -> PipelineError | None:
        """Write it; why that cannot be done, if so: while a run works that is a reason to stop, after what is in flight."""
        try:
            self.write(snapshot)
        except PipelineError as exc:
            return exc
        return None
