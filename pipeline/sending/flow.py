"""A job's flow control: how many requests at once, how fast, and whom it shares both with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pipeline.errors import LeaseError
from pipeline.job import Job
from pipeline.lease import Lease, Memory, Pace, lease_name
from pipeline.limits.rates import Allowance, Rates, least
from pipeline.limits.slots import Slots
from pipeline.records import KeyInfo

Tell = Callable[[str], None]


class Lasting:
    """A lease that a failing disk ends, but not the run: from then on it shares with nobody, and says so once."""

    def __init__(self, share: Lease | Memory, *, ceiling: int, say: Tell) -> None:
        self._share: Lease | Memory = share
        self._ceiling = ceiling
        self._say = say
        self._pace = Pace()  # as it was last

    @property
    def others(self) -> int:
        """Other runs of the key that live."""
        return self._share.others

    @property
    def elsewhere(self) -> int:
        """Requests that the other runs of the key have in flight at the most."""
        return self._share.elsewhere

    def refresh(self, *, demand: int, busy: int, parallel: int) -> int:
        """How many requests this run may have in flight now; see ``Lease.refresh``."""
        try:
            return self._share.refresh(demand=demand, busy=busy, parallel=parallel)
        except LeaseError as exc:
            self._go_alone(exc)
            return self._share.refresh(demand=demand, busy=busy, parallel=parallel)

    @contextmanager
    def locked(self) -> Iterator[Pace]:
        """The pace, to be read and changed; see ``Lease.locked``."""
        stack = ExitStack()
        try:
            self._pace = stack.enter_context(self._share.locked())
        except LeaseError as exc:
            self._go_alone(exc)
        try:
            with stack:
                yield self._pace
        except LeaseError as exc:  # it could be read, but not be written
            self._go_alone(exc)

    def close(self) -> None:
        """Leave."""
        self._share.close()

    def _go_alone(self, exc: LeaseError) -> None:
        self._say(f"{exc}. From here on this run does not heed others with the same key")
        self._share.close()
        self._share = Memory(ceiling=self._ceiling, pace=self._pace)


def share_of(job: Job, key: str | None, *, say: Tell) -> Lasting:
    """What the job's key shares with other runs on this machine; nothing for the simulator that is built in."""
    share: Lease | Memory = Memory(ceiling=job.concurrency)
    if job.gateway.lease and job.base_url is not None:
        try:
            share = Lease.join(lease_name(key, job.base_url), ceiling=job.concurrency)
        except LeaseError as exc:
            say(f"{exc}. This run does not heed others with the same key")
    return Lasting(share, ceiling=job.concurrency, say=say)


def slots_of(job: Job, share: Lasting, key: KeyInfo, *, note: Tell) -> Slots:
    """The controller of parallel requests."""
    slots = Slots(ceiling=job.concurrency, share=share, note=note)
    if key.parallel is not None:
        slots.announced(key.parallel)
    return slots


def rates_of(job: Job, share: Lasting, key: KeyInfo, *, note: Tell) -> Rates:
    """The pace."""
    return Rates(allowance_of(job, key), share=share, note=note)


def allowance_of(job: Job, key: KeyInfo) -> Allowance:
    """What a run keeps to: the job's own rates and the key's, else what the preset assumes."""
    rpm, tpm = least(job.gateway.rpm, key.rpm), least(job.gateway.tpm, key.tpm)
    if rpm is None:
        return Allowance(rpm=job.preset.rpm, tpm=tpm, assumed=True)
    return Allowance(rpm=rpm, tpm=tpm)
