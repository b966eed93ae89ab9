"""What a run stands on: a run folder that is still the one it opened, and room on its disk for what is in flight.

A journal whose folder was deleted can still be written, and nobody will ever read it: a run must not go on paying into that.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from pipeline.errors import LookError, PipelineError
from pipeline.journal import Journal, bytes_for, history, sentences

FILES = ("journal.sqlite", "journal.sqlite-wal", "inflight", "lock")
TELLING_BYTES = 4 << 20  # the journal has grown by more than its log: from then on it tells what a row takes


class Footing:
    """Made while the folder is known to be the run's own, by its lock."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._folder = journal.path.parent
        self._began = _size(journal.path)
        self._opened = {name: (self._folder / name).stat() for name in FILES if (self._folder / name).exists()}
        # Such a descriptor, unlike one for reading, takes no lock of SQLite's with it when it is closed.
        self._fd = os.open(journal.path, os.O_PATH | os.O_CLOEXEC) if hasattr(os, "O_PATH") else -1

    def close(self) -> None:
        """Stop looking."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    # the folder

    def lost(self) -> LookError | None:
        """What became of the run folder, if it is not the one that was opened any more."""
        gone = [name for name, opened in self._opened.items() if not _is_there(self._folder / name, opened)]
        if not gone:
            return None
        files = "" if FILES[0] in gone and len(gone) > 1 else f" ({', '.join(gone)})"
        if (place := self._moved_to()) is not None and FILES[0] in gone:
            return LookError(f"the run folder {self._folder} was moved to {place} while this run worked")
        return LookError(f"the run folder {self._folder}{files} was deleted or replaced while this run worked")

    gone = lost

    def _moved_to(self) -> Path | None:
        """Where the journal is now; None when it has no name any more."""
        if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:
            return None
        place = Path(f"/proc/self/fd/{self._fd}").readlink()
        return place.parent if _is_there(place, self._opened[FILES[0]]) else None

    def rescue(self) -> tuple[Path, str]:
        """Where the journal is to be found after all, and what to do about it in words."""
        folder = self._folder
        if (place := self._moved_to()) is not None:
            return place, f"move it back to {folder}" if place != folder else "its journal is still there"
        saved = folder.with_name(f"{folder.name}.rescued-{self._journal.name}")
        try:
            with sentences(saved):
                self._journal.save_to(saved)
        except (PipelineError, OSError) as exc:
            return folder, f"its journal could not be saved: {exc}"
        return saved, f"its journal with all answers was saved in {saved}: move that to {folder}"

    # the room

    def hold(self, *, rows_at_once: int, to_send: int) -> None:
        """Make the reserve, before anything is paid for. Raises ``IncompleteError`` where there is no room for it."""
        rows = min(2 * rows_at_once, to_send)
        self._journal.reserve.hold(bytes_for(rows, history.reply_bytes(self._journal.db)))

    def keep_up(self, *, rows_at_once: int, kept: int) -> None:
        """Have a larger reserve where rows turn out to be larger than was thought."""
        if (row := self._grown_by(kept)) is not None:  # no question to the journal: that would wait for its commits
            self._journal.reserve.try_to_hold(bytes_for(2 * rows_at_once, row))

    def needed(self, *, left: int, kept: int) -> float | None:
        """About how many bytes the rest of the rows will take; None while nobody can know."""
        row = self._grown_by(kept)
        if row is None:
            with suppress(PipelineError), sentences(self._journal.path):  # asked where the disk is in trouble already
                row = history.reply_bytes(self._journal.db)
        return None if row is None else left * row

    def _grown_by(self, kept: int) -> float | None:
        grown = _size(self._journal.path) - self._began
        return grown / kept if kept and grown > TELLING_BYTES else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_there(path: Path, opened: os.stat_result) -> bool:
    """Only a clear answer counts: a folder that cannot be looked into just now is not a deleted one."""
    try:
        return os.path.samestat(path.stat(), opened)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        return exc.errno != errno.ESTALE
