"""Window, deadline and lead on a clock that is told what time it is: midnight, summer time, a laptop that slept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual import run_virtually

from pipeline.job import Limits
from pipeline.limits.hours import Deadline, Hours, Lead, Opening, Window, opened, over
from pipeline.records import Outcome

NEW_YORK = ZoneInfo("America/New_York")
BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # half an hour of summer time
APIA = ZoneInfo("Pacific/Apia")  # had no 30 December in 2011
H = 3600.0


def at(text: str, zone: ZoneInfo = NEW_YORK, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


def hours(window: str | None = None, *, deadline: str | None = None, zone: ZoneInfo = NEW_YORK, began: str = "2026-11-24 12:00") -> Hours:  # fmt: skip
    return Limits(window=window, deadline=deadline).hours(at(began, zone), zone)


def outcome(latency_s: float | None, status: str = "succeeded") -> Outcome:
    return Outcome(custom_id="r", index=1, fingerprint=b"", status=status, latency_s=latency_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "opens", "closes"),
    [
        ("2026-11-24 12:00", "2026-11-24 20:00", "2026-11-25 06:00"),
        ("2026-11-24 19:59:59", "2026-11-24 20:00", "2026-11-25 06:00"),
        ("2026-11-24 20:00", "2026-11-24 20:00", "2026-11-25 06:00"),
        ("2026-11-25 00:00", "2026-11-24 20:00", "2026-11-25 06:00"),
        ("2026-11-25 05:59:59", "2026-11-24 20:00", "2026-11-25 06:00"),
        ("2026-11-25 06:00", "2026-11-25 20:00", "2026-11-26 06:00"),
        ("2026-12-31 23:00", "2026-12-31 20:00", "2027-01-01 06:00"),
    ],
)
def test_a_window_across_midnight(now: str, opens: str, closes: str) -> None:
    found = hours("20:00-06:00").opening(at(now))
    assert found == Opening(opens_at=at(opens), closes_at=at(closes))


@pytest.mark.parametrize(
    ("window", "now", "opens", "closes"),
    [
        ("09:00-17:30", "2026-11-24 17:30", "2026-11-25 09:00", "2026-11-25 17:30"),
        ("9:00-17:30", "2026-11-24 12:00", "2026-11-24 09:00", "2026-11-24 17:30"),
        ("00:00-06:00", "2026-11-24 23:00", "2026-11-25 00:00", "2026-11-25 06:00"),
        ("18:00-24:00", "2026-11-24 23:59", "2026-11-24 18:00", "2026-11-25 00:00"),
        ("06:00-05:59", "2026-11-24 05:59", "2026-11-24 06:00", "2026-11-25 05:59"),
    ],
)
def test_a_window_by_day_and_one_that_ends_at_midnight(window: str, now: str, opens: str, closes: str) -> None:
    assert hours(window).opening(at(now)) == Opening(opens_at=at(opens), closes_at=at(closes))


@pytest.mark.parametrize(
    ("zone", "evening", "lasts_h"),
    [
        (NEW_YORK, "2026-03-06 21:00", 10.0),
        (NEW_YORK, "2026-03-07 21:00", 9.0),  # set forward at 2 in the night: a day of 23 hours
        (NEW_YORK, "2026-10-31 21:00", 11.0),  # set back: a day of 25
        (BERLIN, "2026-03-28 21:00", 9.0),
        (BERLIN, "2026-10-24 21:00", 11.0),
        (LORD_HOWE, "2026-04-04 21:00", 10.5),
        (LORD_HOWE, "2026-10-03 21:00", 9.5),
    ],
)
def test_nights_with_another_number_of_hours(zone: ZoneInfo, evening: str, lasts_h: float) -> None:
    found = hours("20:00-06:00", zone=zone).opening(at(evening, zone))
    assert (found.closes_at - found.opens_at) / H == lasts_h
    for moment, shows in ((found.opens_at, "20:00"), (found.closes_at, "06:00")):
        assert f"{datetime.fromtimestamp(moment, zone):%H:%M}" == shows


def test_a_time_of_day_that_does_not_exist_is_the_jump() -> None:
    jump = at("2026-03-08 03:00")
    assert at("2026-03-08 01:59:59") == jump - 1
    assert hours("20:00-02:30").opening(at("2026-03-07 21:00")).closes_at == jump
    assert hours("02:30-06:00").opening(at("2026-03-07 21:00")).opens_at == jump
    assert Deadline.parse("02:30").moment(at("2026-03-07 21:00"), NEW_YORK) == jump
    tomorrow = hours("02:10-02:50").opening(at("2026-03-07 21:00"))
    assert tomorrow.opens_at == at("2026-03-09 02:10"), "the jump swallowed that night's whole"
    assert hours("09:00-10:00", zone=APIA).opening(at("2011-12-29 12:00", APIA)).opens_at == at(
        "2011-12-31 09:00", APIA
    )


def test_a_time_of_day_that_exists_twice_is_the_first() -> None:
    first, second = at("2026-11-01 01:30"), at("2026-11-01 01:30", fold=1)
    assert second - first == H
    assert hours("20:00-01:30").opening(at("2026-10-31 21:00")).closes_at == first
    assert hours("01:30-06:00").opening(at("2026-10-31 21:00")).opens_at == first
    assert hours("20:00-01:30").left_s(second) == 0, "closed the second time, too"
    assert hours("01:30-06:00").left_s(second) == 4.5 * H
    assert Deadline.parse("01:30").moment(at("2026-10-31 21:00"), NEW_YORK) == first
    assert Deadline.parse("01:30").moment(first, NEW_YORK) == at("2026-11-02 01:30"), "the next, not the same again"


@pytest.fixture
def machine_in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rules themselves, so that no zone file is needed."""
    monkeypatch.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("window", ["20:00-06:00", "02:30-06:00", "20:00-02:30", "01:30-06:00", "20:00-01:30"])
def test_the_machines_own_zone_is_as_right_as_a_named_one(machine_in_new_york: None, window: str) -> None:
    own = Limits(window=window).hours(0.0)
    for month, day in ((3, 7), (3, 8), (7, 1), (10, 31), (11, 1)):
        now = datetime(2026, month, day, 12, tzinfo=NEW_YORK).timestamp()
        assert own.opening(now) == hours(window).opening(now)
    assert own.opens(at("2026-11-01 12:00")) == hours(window).opens(at("2026-11-01 12:00"))


@given(
    now=st.integers(1_700_000_000, 1_900_000_000),
    opens=st.times().map(lambda when: f"{when:%H:%M}"),
    closes=st.times().map(lambda when: f"{when:%H:%M}"),
    zone=st.sampled_from([NEW_YORK, BERLIN, LORD_HOWE]),
)
def test_openings_follow_each_other_and_end_as_the_clock_shows(
    now: int, opens: str, closes: str, zone: ZoneInfo
) -> None:
    if opens == closes:
        return
    window = hours(f"{opens}-{closes}", zone=zone)
    found = window.opening(now)
    following = window.opening(found.closes_at)
    assert max(now, found.opens_at) < found.closes_at < following.opens_at
    assert (window.left_s(now) > 0) == (found.opens_at <= now)
    for moment, shows in ((found.opens_at, opens), (found.closes_at, closes)):
        shown = datetime.fromtimestamp(moment, zone).replace(tzinfo=None)
        before = datetime.fromtimestamp(moment - 1, zone).replace(tzinfo=None)
        jumped = shown - before != timedelta(seconds=1)
        assert f"{shown:%H:%M}" == shows or (jumped and f"{before:%H:%M}" < shows < f"{shown:%H:%M}")
        assert shown.second == 0


@pytest.mark.parametrize(
    ("text", "began", "when"),
    [
        ("06:00", "2026-11-24 12:00", "2026-11-25 06:00"),
        ("06:00", "2026-11-24 05:59:59", "2026-11-24 06:00"),
        ("06:00", "2026-11-24 06:00", "2026-11-25 06:00"),
        ("8h", "2026-11-24 12:00", "2026-11-24 20:00"),
        ("90m", "2026-11-24 12:00", "2026-11-24 13:30"),
        ("1h30m", "2026-11-24 12:00", "2026-11-24 13:30"),
        ("1h 30min", "2026-11-24 12:00", "2026-11-24 13:30"),
        ("2d", "2026-11-24 12:00", "2026-11-26 12:00"),
        ("45s", "2026-11-24 12:00", "2026-11-24 12:00:45"),
        ("8h", "2026-10-31 21:00", "2026-11-01 04:00"),  # eight hours, whatever the clock does
    ],
)
def test_deadlines(text: str, began: str, when: str) -> None:
    assert Deadline.parse(text).moment(at(began), NEW_YORK) == at(when)


@pytest.mark.parametrize(
    "text", ["20:00", "20-6", "20:00-25:00", "20:60-06:00", "8pm-6am", "", "20:00-06:00-07:00", "-"]
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError, match=r'expected two times of day such as "20:00-06:00", not'):
        Window.parse(text)


def test_a_window_of_no_length_is_none() -> None:
    for text in ("20:00-20:00", "00:00-24:00"):
        with pytest.raises(ValueError, match="closes when it opens; leave it out to send at all hours"):
            Window.parse(text)


@pytest.mark.parametrize(
    "text", ["", " ", "8", "h", "0h", "-8h", "8.5h", "30m1h", "25:00", "6am", "367d", "99999h", "tomorrow"]
)
def test_what_is_no_deadline(text: str) -> None:
    with pytest.raises(
        ValueError, match=r'expected a time of day such as "06:00" or a while such as "8h" or "1h30m", not'
    ):
        Deadline.parse(text)


def test_the_lead_is_taken_off_the_end_and_the_nearer_end_counts() -> None:
    window = hours("20:00-06:00")
    assert window.left_s(at("2026-11-24 19:59:59")) == 0
    assert window.left_s(at("2026-11-24 20:00"), 60.0) == 10 * H - 60
    assert window.left_s(at("2026-11-25 05:59"), 60.0) == 0
    both = hours("20:00-06:00", deadline="04:00")
    assert both.left_s(at("2026-11-25 03:00"), 60.0) == H - 60
    assert hours("20:00-06:00", deadline="3d").left_s(at("2026-11-25 05:00")) == H
    assert hours().left_s(at("2026-11-25 05:00"), 60.0) == float("inf")


def test_what_is_waited_for_and_when_that_is_in_vain() -> None:
    noon = at("2026-11-24 12:00")
    assert hours("20:00-06:00").opens_in_s(noon) == 8 * H
    assert hours("20:00-06:00").opens_in_s(at("2026-11-24 20:00")) == 0
    assert hours().opens_in_s(noon) == 0
    assert hours("20:00-06:00", deadline="9h").opens_in_s(noon) == 8 * H
    in_vain = hours("20:00-06:00", deadline="8h")
    assert in_vain.opens_in_s(noon) == 0
    assert (
        in_vain.over(noon) == "the deadline, 20:00, leaves no time for new rows; the window 20:00-06:00 opens at 20:00"
    )


def test_the_words() -> None:
    night = at("2026-11-25 05:59")
    window = hours("20:00-06:00")
    assert window.opens(at("2026-11-24 12:00")) == "the window 20:00-06:00 opens at 20:00"
    assert (
        window.over(night, 75.4)
        == "the window 20:00-06:00 leaves no time for new rows (answers take up to 75 s); it opens again at 20:00"
    )
    assert (
        window.over(at("2026-11-25 09:00"))
        == "the window 20:00-06:00 leaves no time for new rows; it opens again at 20:00"
    )
    assert hours(deadline="06:00").over(night, 0.2) == "the deadline, 06:00, leaves no time for new rows"
    assert hours(deadline="3d").over(night, 9e5) == "the deadline, 2026-11-27 12:00, leaves no time for new rows (answers take up to 900,000 s)"  # fmt: skip
    both = hours("20:00-06:00", deadline="04:00")
    assert both.over(at("2026-11-25 04:00")) == "the deadline, 04:00, leaves no time for new rows"


@pytest.mark.parametrize(
    ("window", "now", "needed_h", "done", "openings"),
    [
        (None, "2026-11-24 12:00", 30.0, "2026-11-25 18:00", 1),
        ("20:00-06:00", "2026-11-24 12:00", 10.0, "2026-11-25 06:00", 1),
        ("20:00-06:00", "2026-11-24 12:00", 10.5, "2026-11-25 20:30", 2),
        ("20:00-06:00", "2026-11-25 05:00", 22.0, "2026-11-27 21:00", 4),
        ("20:00-06:00", "2026-10-31 12:00", 10.5, "2026-11-01 05:30", 1),  # the long night
        ("20:00-06:00", "2026-11-24 21:00", 0.0, "2026-11-24 21:00", 1),
        ("20:00-06:00", "2026-11-24 12:00", 5.0 + 10 * 99, "2027-03-04 01:00", 100),
    ],
)
def test_when_so_much_work_is_done(window: str | None, now: str, needed_h: float, done: str, openings: int) -> None:
    assert hours(window).finish(at(now), needed_h * H) == (at(done), openings)


def test_work_for_a_thousand_years_is_told_at_once() -> None:
    noon, began = at("2026-11-24 12:00"), time.perf_counter()
    done, openings = hours("20:00-06:00").finish(noon, 365_000 * 10 * H)
    assert openings == pytest.approx(365_000, abs=1)
    assert (done - noon) / 86_400 == pytest.approx(365_000, abs=1)
    assert time.perf_counter() - began < 0.1


def test_the_lead_is_what_19_of_20_of_the_latest_answers_took() -> None:
    lead = Lead(7.0)
    assert lead.seconds == 7.0
    lead.kept([outcome(None), outcome(99.0, "failed")])
    assert lead.seconds == 7.0, "of the journal, as long as nothing was answered"
    lead.kept([outcome(3.0)])
    assert lead.seconds == 3.0
    lead.kept([outcome(float(number)) for number in range(1, 101)])
    assert lead.seconds == 95.0
    lead.kept([outcome(0.5)] * 2000)
    assert lead.seconds == 0.5, "the latest count"


class Wall:
    """A wall clock that goes with the loop's, and jumps when told."""

    def __init__(self, start: str) -> None:
        self.ahead = at(start)

    def __call__(self) -> float:
        return self.ahead + asyncio.get_running_loop().time()

    def jump(self, seconds: float) -> None:
        self.ahead += seconds


def test_waiting_ends_when_the_window_opens_to_the_moment() -> None:
    async def main() -> tuple[float, set[str]]:
        wall = Wall("2026-10-31 12:00")
        said: set[str] = set()
        await opened(hours("20:00-06:00"), wall, said.add)
        return wall(), said

    assert run_virtually(main()) == (at("2026-10-31 20:00"), {"the window 20:00-06:00 opens at 20:00"})


@pytest.mark.parametrize(
    ("jump_s", "late_s"),
    [(7 * H, 0.0), (-1 * H, 0.0), (9 * H, 5.0)],  # a sleep, a clock put right, a sleep until after the opening
)
def test_waiting_looks_at_the_wall_and_not_at_its_watch(jump_s: float, late_s: float) -> None:
    async def main() -> float:
        wall = Wall("2026-11-24 12:00")
        asyncio.get_running_loop().call_later(1801, wall.jump, jump_s)
        await opened(hours("20:00-06:00"), wall, lambda text: None)
        return wall() - max(at("2026-11-24 20:00"), at("2026-11-24 12:00") + 1801 + jump_s)

    assert 0 <= run_virtually(main()) <= late_s


def test_who_sleeps_through_the_night_waits_for_the_next() -> None:
    async def main() -> float:
        wall = Wall("2026-11-24 12:00")
        asyncio.get_running_loop().call_later(1800, wall.jump, 20 * H)
        await opened(hours("20:00-06:00"), wall, lambda text: None)
        return wall()

    assert run_virtually(main()) == at("2026-11-25 20:00")


def test_the_end_comes_the_lead_before_it_to_the_moment() -> None:
    async def main() -> tuple[str, float]:
        wall, lead = Wall("2026-10-31 21:00"), Lead(60.0)
        asyncio.get_running_loop().call_later(100, lead.kept, [outcome(600.0)])
        return await over(hours("20:00-06:00"), wall, lead), wall()

    why, stopped = run_virtually(main())
    assert stopped == at("2026-11-01 05:50"), "after the hour that came twice"
    assert "(answers take up to 600 s)" in why


@pytest.mark.parametrize(
    ("jump_s", "stopped"),
    [
        (12 * H, "2026-11-25 10:00:05"),  # slept past the end: nothing more that day
        (23 * H, None),  # slept until the next evening: it is open again
        (-2 * H, "2026-11-25 06:00"),  # the clock was put right
    ],
)
def test_a_run_that_slept_looks_at_the_wall(jump_s: float, stopped: str | None) -> None:
    async def main() -> float:
        wall = Wall("2026-11-24 21:00")
        asyncio.get_running_loop().call_later(H, wall.jump, jump_s)
        await over(hours("20:00-06:00"), wall, Lead())
        return wall()

    found = run_virtually(main())
    assert found - at(stopped or "2026-11-26 06:00") <= 0
    assert found >= at(stopped or "2026-11-26 06:00") - 5
