"""When a run may send: the window of each day, the deadline, and how both are read off a wall clock that may jump.

Moments are Unix seconds, times of day those of ``zone`` (None: this machine's). A time of day means the first moment at
which the clock shows it or more: where the clock is set forward past it that is the jump, where it is set back and shows it
twice the first of the two.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from itertools import count

from pipeline.records import Attempt, Outcome

RECHECK_S = 5.0  # a laptop sleeps, a clock is set: the wall clock is looked at so often
DAY_S = 86_400.0
EXACT = 60  # openings; it is worked out twice a second
LATEST = 1_000  # answers that tell how long answers take now
MOST_AFTER_S = 366 * DAY_S
_TIME = re.compile(r"(\d{1,2}):(\d\d)")
_SECONDS = re.compile(r"(?:(\d{1,3})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m(?:in)?)?(?:(\d{1,8})s)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A stretch of time in which rows may be sent."""

    opens_at: float
    closes_at: float


ALWAYS = Opening(opens_at=-math.inf, closes_at=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """From ``opens`` to ``closes`` every day or, where it closes before it opens, every night."""

    opens: time
    closes: time

    @classmethod
    def parse(cls, text: str) -> Window:
        """``20:00-06:00``. Raises ``ValueError``."""
        opens, closes = (_time(part) for part in text.partition("-")[::2])
        if opens is None or closes is None:
            raise ValueError(f'expected two times of day such as "20:00-06:00", not {text!r}')
        if opens == closes:
            raise ValueError(f"{text!r} closes when it opens; leave it out to send at all hours")
        return cls(opens=opens, closes=closes)

    def __str__(self) -> str:
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"

    def opening(self, now: float, zone: tzinfo | None) -> Opening:
        """The one that lasts at ``now``, else the next; one that a jump of the clock swallows whole is none."""
        today = datetime.fromtimestamp(now, zone).date()
        overnight = timedelta(days=self.closes < self.opens)
        openings = (
            Opening(opens_at=moment(day, self.opens, zone), closes_at=moment(day + overnight, self.closes, zone))
            for day in (today + timedelta(days=number) for number in count(-1))
        )
        return next(opening for opening in openings if opening.closes_at > max(now, opening.opens_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The next ``at``, a time of day; or so long after the run began."""

    at: time | None = None
    after_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Deadline:
        """``06:00``, or ``8h``, ``90m``, ``1h30m``. Raises ``ValueError``."""
        if (at := _time(text)) is not None:
            return cls(at=at)
        after_s = seconds(text)
        if after_s is None or not 0 < after_s <= MOST_AFTER_S:
            raise ValueError(f'expected a time of day such as "06:00" or a while such as "8h" or "1h30m", not {text!r}')
        return cls(after_s=after_s)

    def moment(self, began: float, zone: tzinfo | None) -> float:
        """When it is, for a run that began then."""
        if self.at is None:
            return began + self.after_s
        today, at = datetime.fromtimestamp(began, zone).date(), self.at
        moments = (moment(today + timedelta(days=number), at, zone) for number in count())
        return next(found for found in moments if found > began)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """When one run may send: in the ``window``, until the ``deadline``; None: at all hours, without end."""

    window: Window | None = None
    deadline: float | None = None
    zone: tzinfo | None = None

    def opening(self, now: float) -> Opening:
        """The window's opening that lasts at ``now``, else its next."""
        return ALWAYS if self.window is None else self.window.opening(now, self.zone)

    def closes_at(self, now: float) -> float:
        """When that opening ends, or the deadline comes."""
        closes_at = self.opening(now).closes_at
        return closes_at if self.deadline is None else min(closes_at, self.deadline)

    def left_s(self, now: float, lead_s: float = 0.0) -> float:
        """For how long rows that take ``lead_s`` may still be started; 0 when they may not."""
        left_s = max(self.closes_at(now) - lead_s - now, 0.0)
        return left_s if self.opening(now).opens_at <= now else 0.0

    def opens_in_s(self, now: float) -> float:
        """How long to wait until rows may be started; 0 when it is open, or there is nothing to wait for."""
        opens_at = self.opening(now).opens_at
        in_vain = self.deadline is not None and self.deadline <= opens_at
        return 0.0 if in_vain else max(opens_at - now, 0.0)

    def opens(self, now: float) -> str:
        """When the window opens next, in words."""
        return f"the window {self.window} opens at {self._reopens(now)}"

    def over(self, now: float, lead_s: float = 0.0) -> str:
        """Why no rows are started any more, in words, and when they are again."""
        opening = self.opening(now)
        why = "leaves no time for new rows" + (f" (answers take up to {lead_s:,.0f} s)" if lead_s >= 1 else "")
        if self.deadline is None or self.deadline > opening.closes_at:
            return f"the window {self.window} {why}; it opens again at {self._reopens(now)}"
        text = f"the deadline, {shown(self.deadline, now, self.zone)}, {why}"
        return f"{text}; {self.opens(now)}" if opening.opens_at > now else text

    def finish(self, now: float, needed_s: float) -> tuple[float, int]:
        """When so much sending is done that begins now, whatever the deadline, and in how many openings.

        After ``EXACT`` of them the rest is taken to be like the last.
        """
        opening, openings = self.opening(now), 1
        while (now := max(now, opening.opens_at)) + needed_s > opening.closes_at:
            if openings > EXACT:
                more, needed_s = divmod(needed_s, opening.closes_at - opening.opens_at)
                return now + more * DAY_S + needed_s, openings + int(more)
            needed_s -= opening.closes_at - now
            now = opening.closes_at
            opening, openings = self.opening(now), openings + 1
        return now + needed_s, openings

    def _reopens(self, now: float) -> str:
        opening = self.opening(now)
        later = opening if opening.opens_at > now else self.opening(opening.closes_at)
        return shown(later.opens_at, now, self.zone)


class Lead:
    """How long before the end nothing new may start: so long that 19 of 20 answers would still come in time.

    That is what the latest answers took, and before there are any, ``known_s``.
    """

    def __init__(self, known_s: float = 0.0) -> None:
        self._known_s = known_s
        self._latest: deque[float] = deque(maxlen=LATEST)

    def kept(self, records: Sequence[Outcome | Attempt]) -> None:
        """These ended."""
        for record in records:
            if isinstance(record, Outcome) and record.status == "succeeded" and record.latency_s is not None:
                self._latest.append(record.latency_s)

    @property
    def seconds(self) -> float:
        """The lead now."""
        if not self._latest:
            return self._known_s
        return sorted(self._latest)[math.ceil(0.95 * len(self._latest)) - 1]


async def opened(hours: Hours, wall_clock: Callable[[], float], waiting: Callable[[str], object]) -> None:
    """Wait until rows may be started; ``waiting`` is told what for, again and again."""
    while (wait_s := hours.opens_in_s(now := wall_clock())) > 0:
        waiting(hours.opens(now))
        await asyncio.sleep(min(wait_s, RECHECK_S))


async def over(hours: Hours, wall_clock: Callable[[], float], lead: Lead) -> str:
    """Wait until no rows may be started any more; returns why, in words."""
    while True:
        now, lead_s = wall_clock(), lead.seconds
        if (left_s := hours.left_s(now, lead_s)) <= 0:
            return hours.over(now, lead_s)
        await asyncio.sleep(min(left_s, RECHECK_S))


def moment(day: date, at: time, zone: tzinfo | None) -> float:
    """The first moment of that day when the clock shows ``at`` or more."""
    wall = datetime.combine(day, at)
    late, early = (wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if late <= early:  # once, or twice: then fold 0 is the first
        return late
    while late - early > 1:  # never shown: the clock jumps somewhere between
        middle = (early + late) // 2
        if datetime.fromtimestamp(middle, zone).replace(tzinfo=None) < wall:
            early = middle
        else:
            late = middle
    return late


def shown(at: float, now: float, zone: tzinfo | None) -> str:
    """A moment as a person says it: the time of day, and which day where it is not within 24 hours."""
    local = datetime.fromtimestamp(at, zone)
    return f"{local:%H:%M}" if abs(at - now) < DAY_S else f"{local:%Y-%m-%d %H:%M}"


def seconds(text: str) -> float | None:
    """``45s``, ``90m``, ``1h30m``, ``2d``; None for what is no such time."""
    found = _SECONDS.fullmatch("".join(text.split()))
    if found is None or not text.strip():
        return None
    days, hours, minutes, rest = (int(number or 0) for number in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def _time(text: str) -> time | None:
    """``20:00``; ``24:00`` is midnight. None for what is no time of day."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return None
    hours, minutes = int(found[1]), int(found[2])
    if (hours, minutes) == (24, 0):
        hours = 0
    return time(hours, minutes) if hours < 24 and minutes < 60 else None
