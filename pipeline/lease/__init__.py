"""A key's limits are kept by the machine, not by the process: its runs share its parallel slots and its pace.

Each run is a member of one small file a key (``file``). A few times a second it says what it wants there, sees who else
lives, works out its fair share (``shares``) and takes or gives back slots; nobody waits for anybody, and no daemon is
needed. The sum of what the members hold never exceeds the key's slots, and a killed one holds nothing. The pace of the
key (``pace``) lies in the same file. ``name`` says where it lies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from pipeline.errors import LeaseError
from pipeline.lease.file import LeaseFile, Member
from pipeline.lease.name import lease_name, state_folder
from pipeline.lease.pace import Pace, without_times
from pipeline.lease.shares import fair_shares, water_fill

__all__ = ["Lease", "LeaseError", "Memory", "Pace", "Share", "fair_shares", "lease_name", "state_folder", "water_fill"]

TURN_S = (
    5.0  # how long a member has a slot that is one too few for all; each change of turns idles it for a refresh or two
)
SILENT_S = 15.0  # a member that says nothing for so long is stopped (Ctrl-Z): its share is used until it speaks again


class Lease:
    """This run's membership; one loop's own, not for several threads. ``clock`` is the clock of all times in ``Pace``."""

    def __init__(self, path: Path, *, ceiling: int, clock: Callable[[], float]) -> None:
        self._path = path
        self._ceiling = ceiling
        self._clock = clock
        self._others = 0
        self._elsewhere = 0
        self._file = self._enter()

    @classmethod
    def join(
        cls, name: str, *, ceiling: int, folder: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> Lease:
        """Become a member of the lease ``name`` (of ``lease_name``) that never wants more than ``ceiling`` slots.

        Raises ``LeaseError`` where there can be no such file, or no locks in it: warn, and use ``Memory``.
        """
        try:
            folder = folder or state_folder()
        except RuntimeError as exc:
            raise LeaseError(
                f"no home folder to keep this key's lease in ({exc}): set PIPELINE_STATE_DIR, or say --no-lease"
            ) from exc
        return cls(folder / f"{name}.lease", ceiling=max(1, ceiling), clock=clock)

    def _enter(self) -> LeaseFile:
        file = LeaseFile(self._path)
        with file.guarded():
            pace, others = file.read()
            if not (file.has_boot_id or others):  # nobody can tell whether its times are of this start of the machine
                file.keep(without_times(pace))
            file.keep(Member(seen=self._clock(), wanted=0, most=0, ceiling=self._ceiling, held=0))
        self._others = len(others)
        return file

    @property
    def others(self) -> int:
        """Other runs that live, as of the last ``refresh``."""
        return self._others

    @property
    def elsewhere(self) -> int:
        """Requests that the other runs have in flight at the most, as of the last ``refresh``."""
        return self._elsewhere

    def refresh(self, *, demand: int, busy: int, parallel: int) -> int:
        """Say how many requests could be in flight now (``demand``) and are (``busy``); returns how many may be.

        ``parallel`` is what this run makes of the key's slots. Call it about four times a second, and when the demand
        changes a lot: what this run does not want any more, others get from then on. A slot in use is never taken away:
        the answer may be less than ``busy``, and then nothing new is to start. Raises ``LeaseError`` when the file fails.
        """
        if self._file.is_deleted():
            self._file.close()
            self._file = self._enter()
        now = self._clock()
        most = min(parallel, self._ceiling)
        wanted = min(max(demand, busy), most)
        me = Member(seen=now, wanted=wanted, most=most, ceiling=self._ceiling, held=busy)
        with self._file.guarded():
            pace, others = self._file.read()
            others = {place: other for place, other in others.items() if now - other.seen < SILENT_S}
            slots = pace.parallel or max([self._ceiling, *(other.ceiling for other in others.values())])
            share = self._share(me, others, slots=slots, turn=int(now / TURN_S))
            free = slots - sum(other.held for other in others.values())
            held = max(busy, min(share, free))
            self._file.keep(replace(me, held=held))
        self._others = len(others)
        self._elsewhere = sum(min(other.wanted, other.held) for other in others.values())
        return min(share, held)

    def _share(self, me: Member, others: Mapping[int, Member], *, slots: int, turn: int) -> int:
        members = {**others, self._file.place: me}
        places = sorted(members)
        shares = fair_shares(
            slots,
            [members[place].wanted for place in places],
            [members[place].most for place in places],
            turn=turn,
        )
        return shares[places.index(self._file.place)]

    @contextmanager
    def locked(self) -> Iterator[Pace]:
        """The key's pace, to be read and changed while no other run does; never ``await`` within.

        Take a turn (move ``next_start`` on) only when its request is ready to go: a turn taken ahead is lost to all when
        this process dies. Raises ``LeaseError`` when the file fails.
        """
        with self._file.guarded():
            pace = self._file.pace()
            before = replace(pace)
            yield pace
            learned = (pace.rpm, pace.parallel) != (before.rpm, before.parallel)
            if learned and pace.learned_at == before.learned_at:
                pace.learned_at = time.time()
            if pace != before:
                self._file.keep(pace)

    def close(self) -> None:
        """Leave; what this run held is free at once."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Memory:
    """The same for a run that shares with nobody: ``--no-lease``, no lease to be had, tests in virtual time."""

    others = 0
    elsewhere = 0

    def __init__(self, *, ceiling: int, pace: Pace | None = None) -> None:
        """``pace`` is what is known of it already."""
        self._ceiling = ceiling
        self._pace = pace or Pace()

    def refresh(self, *, demand: int, busy: int, parallel: int) -> int:
        """How many requests may be in flight: as many as this run knows of."""
        return min(parallel, self._ceiling)

    @contextmanager
    def locked(self) -> Iterator[Pace]:
        """The pace, which only this run knows."""
        yield self._pace

    def close(self) -> None:
        """Nothing to leave."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Share(Protocol):
    """What a lease and its stand-ins can do."""

    @property
    def others(self) -> int: ...
    @property
    def elsewhere(self) -> int: ...
    def refresh(self, *, demand: int, busy: int, parallel: int) -> int: ...
    def locked(self) -> AbstractContextManager[Pace]: ...
