"""What a run stands on: a run folder that is still the one it opened.

A journal whose folder was deleted can still be written, and nobody will ever read it: a run must not go on paying into that.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.errors import LookError, PipelineError
from pipeline.journal import FILE_NAME, Journal, sentences

FILES = (FILE_NAME, f"{FILE_NAME}-wal", "inflight", "lock")


class Footing:
    """Made while the folder is known to be the run's own, by its lock."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._folder = journal.path.parent
        self._opened = {name: (self._folder / name).stat() for name in FILES if (self._folder / name).exists()}
        # Such a descriptor, unlike one for reading, takes no lock of SQLite's with it when it is closed.
        self._fd = os.open(journal.path, os.O_PATH | os.O_CLOEXEC) if hasattr(os, "O_PATH") else -1

    def close(self) -> None:
        """Stop looking."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def gone(self) -> LookError | None:
        """What became of the run folder, if it is not the one that was opened any more."""
        lacks = [name for name, opened in self._opened.items() if not _is_there(self._folder / name, opened)]
        if not lacks:
            return None
        files = "" if FILE_NAME in lacks and len(lacks) > 1 else f" ({', '.join(lacks)})"
        if (place := self._moved_to()) is not None and FILE_NAME in lacks:
            return LookError(f"the run folder {self._folder} was moved to {place} while this run worked")
        return LookError(f"the run folder {self._folder}{files} was deleted or replaced while this run worked")

    def _moved_to(self) -> Path | None:
        """Where the journal is now; None when it has no name any more, or one that is no journal's, or nobody can tell.

        On its own client NFS gives an open file that is deleted such a name (``.nfs...``), and deletes it in the end.
        """
        try:
            if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:
                return None
            place = Path(f"/proc/self/fd/{self._fd}").readlink()
        except OSError:
            return None
        return place.parent if place.name == FILE_NAME and _is_there(place, self._opened[FILE_NAME]) else None

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


def _is_there(path: Path, opened: os.stat_result) -> bool:
    """Only a clear answer counts: a folder that cannot be looked into just now is not a deleted one."""
    try:
        return os.path.samestat(path.stat(), opened)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        return exc.errno != errno.ESTALE
