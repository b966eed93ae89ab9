"""Promise 8: the runs of one key share its slots and its pace, whoever joins, leaves, is killed or damages the file."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import clean_environment, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lease as module
from pipeline.ground.boot import boot_id
from pipeline.job import Job
from pipeline.lease import Lease, LeaseError, Memory, Pace, fair_shares, lease_name, state_folder, water_fill
from pipeline.lease import file as lease_file
from pipeline.lease import pace as lease_pace
from pipeline.sending.flow import Lasting, share_of

SLOTS = 5
MEMBER = Path(__file__).parent / "lease_member.py"


# Fair shares


wants = st.lists(st.integers(0, 40), min_size=1, max_size=9)


@given(slots=st.integers(0, 60), wanted=wants, turn=st.integers(0, 10**6))
def test_nobody_gets_more_while_another_lacks(slots: int, wanted: list[int], turn: int) -> None:
    shares = water_fill(slots, wanted, turn=turn)
    assert sum(shares) == min(slots, sum(wanted)), "a slot is idle, or given twice"
    for share, want in zip(shares, wanted, strict=True):
        assert 0 <= share <= want
        assert share == want or max(shares) <= share + 1


@given(slots=st.integers(0, 60), wanted=wants)
def test_the_slot_that_is_left_over_goes_around(slots: int, wanted: list[int]) -> None:
    turns = [water_fill(slots, wanted, turn=turn) for turn in range(math.lcm(*range(1, len(wanted) + 1)))]
    got = {sum(shares) for want, *shares in zip(wanted, *turns, strict=True) if min(shares) < want}
    assert len(got) <= 1, "of those that lack, one had more turns than another"


@given(slots=st.integers(0, 60), members=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1))
def test_what_nobody_wants_now_is_there_for_whoever_wants_it_next(slots: int, members: list[tuple[int, int]]) -> None:
    wanted, most = [low for low, _ in members], [low + more for low, more in members]
    shares = fair_shares(slots, wanted, most, turn=0)
    assert sum(shares) == min(slots, sum(most))
    assert all(share >= least for share, least in zip(shares, water_fill(slots, wanted, turn=0), strict=True))


# Several members, on a clock of the test's own


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Runner:
    """A run whose requests take ``seconds``; refreshes four times a second."""

    lease: Lease
    demand: int
    seconds: float
    ends: list[float] = field(default_factory=list)
    share: int = 0
    done: int = 0

    def step(self, now: float, *, refresh: bool) -> None:
        self.done += sum(end <= now for end in self.ends)
        self.ends = [end for end in self.ends if end > now]
        if refresh:
            self.share = self.lease.refresh(demand=self.demand, busy=len(self.ends), parallel=SLOTS)
        self.ends += [now + self.seconds] * (min(self.share, self.demand) - len(self.ends))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def join(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Lease]]:
    with ExitStack() as stack:
        yield lambda ceiling=SLOTS: stack.enter_context(
            Lease.join("key", ceiling=ceiling, folder=tmp_path, clock=clock)
        )


def spin(clock: Clock, runners: list[Runner], seconds: float) -> int:
    """Let them work; returns the most requests that were in flight at once. The refreshes are spread, as in real life."""
    most = 0
    for tick in range(round(seconds * 20)):
        clock.now += 0.05
        for number, runner in enumerate(runners):
            runner.step(clock.now, refresh=(tick + number) % 5 == 0)
            most = max(most, sum(len(runner.ends) for runner in runners))
    return most


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_all_progress_alike_and_the_slots_stay_busy(count: int, join: Callable[..., Lease], clock: Clock) -> None:
    runners = [Runner(join(), demand=SLOTS, seconds=0.83) for _ in range(count)]
    spin(clock, runners, 5)
    before = [runner.done for runner in runners]
    assert spin(clock, runners, 120) == SLOTS
    done = [runner.done - was for runner, was in zip(runners, before, strict=True)]
    used = sum(done) * 0.85 / (SLOTS * 120)  # 0.83 s are 0.85 on a clock that ticks every 0.05 s
    print(f"\n{count} runs on {SLOTS} slots: {used:.1%} of the slots' time used, requests {done}")
    assert used >= 0.95
    assert min(done) >= 0.85 * max(done)


def test_a_member_alone_has_all_at_once_whatever_its_demand(join: Callable[..., Lease]) -> None:
    lease = join(ceiling=16)
    assert lease.refresh(demand=0, busy=0, parallel=12) == 12
    assert lease.refresh(demand=40, busy=0, parallel=40) == 16
    assert lease.others == 0


def test_two_runs_in_one_process_share(join: Callable[..., Lease]) -> None:
    one, two = join(), join()
    assert one.refresh(demand=5, busy=0, parallel=5) == 5
    assert two.refresh(demand=5, busy=0, parallel=5) == 0, "the other has not given any back yet"
    shares = [lease.refresh(demand=5, busy=0, parallel=5) for lease in (one, two)]
    assert sorted(shares) == [2, 3]
    assert (one.others, two.others) == (1, 1)
    two.close()
    assert one.refresh(demand=5, busy=0, parallel=5) == 5
    assert one.others == 0


def test_a_slot_in_use_is_not_taken_away(join: Callable[..., Lease]) -> None:
    one, two = join(), join()
    one.refresh(demand=5, busy=0, parallel=5)
    assert two.refresh(demand=5, busy=0, parallel=5) == 0
    for busy in (5, 4):
        assert one.refresh(demand=5, busy=busy, parallel=5) <= 3, "nothing new may start"
        assert two.refresh(demand=5, busy=0, parallel=5) == 5 - busy


def test_the_slots_are_those_learned_else_of_the_largest_ceiling(join: Callable[..., Lease]) -> None:
    small, large = join(ceiling=2), join(ceiling=12)
    ask = {"demand": 20, "busy": 0, "parallel": 20}
    small.refresh(**ask)
    assert [large.refresh(**ask), small.refresh(**ask)] == [10, 2]
    with small.locked() as pace:
        pace.parallel = 4
    large.refresh(**ask)
    assert [small.refresh(**ask), large.refresh(**ask)] == [2, 2]


def test_a_stopped_run_keeps_nothing_from_the_others(join: Callable[..., Lease], clock: Clock) -> None:
    stopped, other = join(), join()
    stopped.refresh(demand=5, busy=0, parallel=5)
    stopped.refresh(demand=5, busy=2, parallel=5)
    assert other.refresh(demand=5, busy=0, parallel=5) <= 3
    clock.now += module.SILENT_S
    assert other.refresh(demand=5, busy=2, parallel=5) == 5
    assert stopped.refresh(demand=5, busy=2, parallel=5) <= 3
    assert other.refresh(demand=5, busy=2, parallel=5) <= 3, "it speaks again, so it counts again"


steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=20)


@settings(deadline=None, max_examples=examples(60))
@given(steps=steps)
def test_whatever_they_do_they_never_have_more_in_flight_than_there_are_slots(
    steps: list[tuple[int, int, int]],
) -> None:
    """Each step: a member ends some of its requests, refreshes with a new demand, and starts what it may."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clock = Clock()
        leases = [
            stack.enter_context(Lease.join("key", ceiling=SLOTS, folder=Path(folder), clock=clock)) for _ in range(4)
        ]
        busy = [0] * len(leases)
        for number, demand, ended in steps:
            clock.now += 0.7
            busy[number] = max(0, busy[number] - ended)
            may = leases[number].refresh(demand=demand, busy=busy[number], parallel=SLOTS)
            busy[number] = max(busy[number], may)
            assert sum(busy) <= SLOTS


# Several processes


@dataclass
class Child:
    """A ``lease_member.py`` and its log, the witness of what it had in flight and when."""

    process: subprocess.Popen[bytes]
    log: Path
    since: float
    killed: float = math.inf

    def want(self, demand: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{demand}\n".encode())
        self.process.stdin.flush()

    def kill(self) -> None:
        self.killed = min(self.killed, time.monotonic())
        self.process.kill()
        self.process.wait()

    def events(self) -> list[tuple[float, int]]:
        """(time, +1 or -1) for each start and end; what was in flight when it was killed ended before."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        events = [(float(words[0]), 1 if words[1] == "start" else -1) for words in lines if words[1] != "share"]
        return [*events, (self.killed, -sum(step for _, step in events))]

    def busy(self) -> int:
        return sum(step for _, step in self.events()[:-1])


Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(demand)``; all of them are one key's, and end with the test."""
    children: list[Child] = []

    def start(demand: int = SLOTS, *, seconds: float = 0.2, words: tuple[str, ...] = ()) -> Child:
        log = tmp_path / f"log{len(children)}"
        command = [sys.executable, str(MEMBER), str(tmp_path), str(log), str(demand), str(seconds), *words]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=clean_environment())
        wait(log.exists)
        children.append(Child(process, log, since=time.monotonic()))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        assert child.process.stdin is not None
        child.process.stdin.close()


def wait(what: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait until it is so; returns how long that took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, "it never came to that"
        time.sleep(0.01)
    return time.monotonic() - begun


def most_at_once(children: list[Child]) -> int:
    """The witness: the most requests of all together that were in flight at one time."""
    running = most = 0
    for _, step in sorted(event for child in children for event in child.events()):  # ends before starts
        running += step
        most = max(most, running)
    return most


def fair(children: list[Child]) -> bool:
    return sum(child.busy() for child in children) == SLOTS and all(
        child.busy() in (SLOTS // len(children), SLOTS // len(children) + 1) for child in children
    )


@pytest.mark.parametrize("locks", [(), ("elsewhere",)], ids=["linux", "elsewhere"])
def test_two_then_four_processes_share_and_a_killed_one_frees_its_slots(start: Start, locks: tuple[str, ...]) -> None:
    children = [start(words=locks)]
    alone = wait(lambda: children[0].busy() == SLOTS)
    children.append(start(words=locks))
    two = wait(lambda: fair(children), 2)
    children += [start(words=locks), start(words=locks)]
    four = wait(lambda: fair(children), 2)
    children[0].want(1)
    children[1].want(0)
    fell = wait(lambda: sum(child.busy() for child in children[2:]) == SLOTS - 1, 1)
    children[2].kill()
    freed = wait(lambda: children[3].busy() == SLOTS - 1, 1)
    print(
        f"\n{SLOTS} slots: alone {alone:.2f} s, fair shares for two {two:.2f} s, four {four:.2f} s after joining; "
        f"given back after {fell:.2f} s, after kill -9 {freed:.2f} s (requests of 0.2 s, a refresh every 0.25 s)"
    )
    for child in children:
        child.kill()
    assert most_at_once(children) == SLOTS


COUNT = """
import sys, time
from pathlib import Path
from pipeline.lease import Lease
lease = Lease.join("key", ceiling=1, folder=Path(sys.argv[1]))
print(flush=True)
sys.stdin.readline()
begun = time.perf_counter()
for _ in range(2000):
    with lease.locked() as pace:
        pace.started += 1
        pace.next_start += 0.5
print((time.perf_counter() - begun) / 2000 * 1e6)
"""


def test_no_turn_is_taken_twice(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    took = [float(process.communicate(timeout=30)[0]) for process in processes]
    print(f"\nfour processes at once: {max(took):.0f} us a turn")
    with Lease.join("key", ceiling=1, folder=tmp_path) as lease, lease.locked() as pace:
        assert (pace.started, pace.next_start) == (8000, 4000.0)


def test_what_it_costs(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for count in (1, 2, 4, 8):
            leases = [stack.enter_context(Lease.join(f"{count}", ceiling=5, folder=tmp_path)) for _ in range(count)]
            for lease in leases:
                lease.refresh(demand=5, busy=0, parallel=5)
            begun = time.perf_counter()
            for _ in range(500):
                leases[0].refresh(demand=5, busy=0, parallel=5)
            refresh = (time.perf_counter() - begun) / 500
            begun = time.perf_counter()
            for _ in range(500):
                with leases[0].locked() as pace:
                    pace.next_start += 0.1
            locked = (time.perf_counter() - begun) / 500
            print(f"\n{count} runs: refresh {refresh * 1e6:.0f} us, locked {locked * 1e6:.0f} us", end="")
            assert max(refresh, locked) < 0.002


# The pace in the file


def write_pace(folder: Path, data: bytes) -> None:
    with (folder / "key.lease").open("r+b") as file:
        file.write(data)


def read_pace(lease: Lease) -> Pace:
    with lease.locked() as pace:
        return pace


FULL = Pace(
    next_start=7.5, window_start=1.0, started=3, refused=1, paused_until=9.0, rpm=30.0, parallel=5, next_tokens=8.0,
    learned_at=time.time(),
)  # fmt: skip


def test_the_pace_is_what_all_of_them_know(join: Callable[..., Lease]) -> None:
    one, two = join(), join()
    with one.locked() as pace:
        for name in Pace.__slots__:
            setattr(pace, name, getattr(FULL, name))
    assert read_pace(two) == FULL
    one.close()
    two.close()
    assert read_pace(join()) == FULL, "the next run knows it too"


def test_what_was_learned_is_stamped_and_forgotten_after_a_day(join: Callable[..., Lease]) -> None:
    lease = join()
    with lease.locked() as pace:
        pace.rpm = 30.0
    assert read_pace(lease).learned_at == pytest.approx(time.time(), abs=5)
    with lease.locked() as pace:
        pace.learned_at -= 23 * 3600
    assert read_pace(lease).rpm == 30.0
    with lease.locked() as pace:
        pace.learned_at -= 2 * 3600
    assert read_pace(lease) == Pace()


def test_after_a_restart_of_the_machine_the_limits_stay_and_the_times_go(
    join: Callable[..., Lease], tmp_path: Path
) -> None:
    lease = join()
    write_pace(tmp_path, lease_pace.packed(FULL, "another start of the machine"))
    learned = Pace(rpm=FULL.rpm, parallel=FULL.parallel, learned_at=FULL.learned_at)
    assert read_pace(lease) == learned
    with lease.locked() as pace:
        pace.started = 1
    assert read_pace(lease) == replace(learned, started=1)


def test_where_the_system_does_not_tell_its_start_the_first_to_join_takes_no_times_over(
    join: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_file, "boot_id", lambda: "")
    one, two = join(), join()
    with one.locked() as pace:
        pace.next_start = 10.0**9
        pace.rpm = 30.0
    one.close()
    three = join()
    assert (read_pace(three).next_start, read_pace(three).rpm) == (10.0**9, 30.0)
    two.close()
    three.close()
    alone = join()
    assert (read_pace(alone).next_start, read_pace(alone).rpm) == (0.0, 30.0)


def broken(**changes: float) -> bytes:
    return lease_pace.packed(replace(FULL, **changes), boot_id())  # type: ignore[arg-type]


DAMAGE = {
    "empty": b"",
    "short": b"pipeline",
    "foreign": os.urandom(4096),
    "text": b"PRAGMA user_version;\n" * 400,
    "ones": b"\xff" * 4096,
    "cut": b"\xff" * 700,
    "long": bytes(100_000),
    "torn": broken()[:60] + bytes(4000),
    "other version": broken().replace(b"lease 1", b"lease 2") + bytes(4000),
    "nan": broken(next_start=math.nan) + bytes(4000),
    "endless": broken(paused_until=math.inf) + bytes(4000),
    "negative": broken(started=-1) + bytes(4000),
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_begun_anew(data: bytes, tmp_path: Path, join: Callable[..., Lease]) -> None:
    (tmp_path / "key.lease").write_bytes(data)
    one, two = join(), join()
    for again in (False, True):
        if again:
            (tmp_path / "key.lease").write_bytes(data)  # under their hands
        assert read_pace(one) == Pace()
        for _ in range(2):
            shares = [lease.refresh(demand=5, busy=0, parallel=5) for lease in (one, two)]
        assert sorted(shares) == [2, 3]
        with one.locked() as pace:
            pace.started = 4
        assert read_pace(two).started == 4


def test_whoever_deletes_the_file_parts_nobody(tmp_path: Path, join: Callable[..., Lease]) -> None:
    one, two = join(), join()
    with one.locked() as pace:
        pace.rpm = 30.0
    (tmp_path / "key.lease").unlink()
    for _ in range(2):
        shares = [lease.refresh(demand=5, busy=0, parallel=5) for lease in (one, two)]
    assert (sorted(shares), one.others, two.others) == ([2, 3], 1, 1)
    assert read_pace(one) == Pace(), "to delete it is how a user makes all runs forget"


def test_a_process_that_stopped_in_the_guard_stops_nobody(join: Callable[..., Lease]) -> None:
    stopped, lease = join(), join()
    with stopped.locked():
        begun = time.monotonic()
        lease.refresh(demand=5, busy=0, parallel=5)
        first = time.monotonic() - begun
        for _ in range(10):
            with lease.locked() as pace:
                pace.started += 1
        assert read_pace(lease).started == 10
        assert time.monotonic() - begun < 2 * first < 1.0, "only the first waits"


# Where there can be none


@contextmanager
def powerless() -> Iterator[None]:
    """Root may write everywhere: be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_cannot_be_written_is_a_lease_error(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o500)
    with powerless(), pytest.raises(LeaseError, match=r"Permission denied.*PIPELINE_STATE_DIR.*--no-lease"):
        Lease.join("key", ceiling=5, folder=folder)


def test_something_else_in_its_place_is_a_lease_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "key.lease").mkdir()
    (tmp_path / "link.lease").symlink_to(tmp_path / "elsewhere")
    for folder, name in ((tmp_path / "file", "key"), (tmp_path, "key"), (tmp_path, "link")):
        with pytest.raises(LeaseError, match="cannot be shared"):
            Lease.join(name, ceiling=5, folder=folder)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_a_lease_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(LeaseError, match="No locks available"):
        Lease.join("key", ceiling=5, folder=tmp_path)


@pytest.mark.parametrize("broken", ["pread", "pwrite"])
def test_a_lease_that_fails_ends_but_not_the_run(broken: str, join: Callable[..., Lease]) -> None:
    """What is known of the pace stays known, and the others do not wait for a member that has left."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch, closing(Lasting(join(), ceiling=SLOTS, say=said.append)) as share:
        with share.locked() as pace:
            pace.rpm, pace.parallel = 30.0, 3

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, broken, full)
        with share.locked() as pace:
            pace.parallel = 2
        with share.locked() as pace:
            assert (pace.rpm, pace.parallel) == (30.0, 2)
        assert share.refresh(demand=9, busy=0, parallel=9) == SLOTS
        patch.undo()
        other = join()
        other.refresh(demand=9, busy=0, parallel=9)
        assert other.others == 0
    assert len(said) == 1
    assert "No space left" in said[0]


def test_a_run_without_a_lease_to_be_had_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPELINE_STATE_DIR", str(tmp_path / "file"))
    settings = {
        "input": str(tmp_path / "in.jsonl"), "output": str(tmp_path / "out.jsonl"), "model": "m",
        "gateway": {"base_url": "http://127.0.0.1:1", "concurrency": "auto"}, "request": {"prompt": "{{ text }}"},
    }  # fmt: skip
    job = Job.load(None, overrides=settings)
    said: list[str] = []
    with closing(share_of(job, None, say=said.append)) as share:
        assert share.refresh(demand=1, busy=0, parallel=job.concurrency) == job.preset.ceiling, "auto: all there may be"
    assert len(said) == 1
    assert "This run does not heed others with the same key" in said[0]


def test_a_table_that_is_full_is_a_lease_error(join: Callable[..., Lease]) -> None:
    for _ in range(lease_file.MOST_MEMBERS):
        join()
    with pytest.raises(LeaseError, match="64 runs share"):
        join()


def test_folder_and_file_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Lease.join("key", ceiling=5, folder=tmp_path / "state" / "pipeline").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state" / "pipeline").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "pipeline" / "key.lease").stat().st_mode) == 0o600


# Names


def test_one_key_is_one_lease_under_all_names_of_its_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    name = lease_name("sk-SECRET-0123456789", "https://api.cborg.lbl.gov")
    assert name == lease_name("sk-SECRET-0123456789", "https://api-local.cborg.lbl.gov/v1")
    assert name != lease_name("sk-OTHER-0123456789", "https://api.cborg.lbl.gov")
    assert name.isalnum()
    assert "SECRET" not in name
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert name != lease_name("sk-SECRET-0123456789", "https://api.cborg.lbl.gov"), (
        "a home may be shared, a clock is not"
    )


def test_a_placeholder_is_no_account_that_servers_share() -> None:
    """Many servers take any key: `EMPTY` for two of them, or `none` for CBorg's and Lumen's simulators, is not one key."""
    one = lease_name("EMPTY", "http://gpu7:8000/v1")
    assert one == lease_name("EMPTY", "http://gpu7:8000/")
    assert one not in (lease_name("EMPTY", "http://gpu8:8000/v1"), lease_name("none", "http://gpu7:8000/v1"))


def test_without_a_key_the_server_is_the_lease() -> None:
    name = lease_name(None, "http://gpu7:8000/v1")
    assert name == lease_name("", "http://me@GPU7:8000/other/")
    assert lease_name(None, "https://gpu7") == lease_name(None, "https://gpu7:443/v1")
    others = [lease_name(None, url) for url in ("http://gpu7:8001/v1", "https://gpu7:8000/v1", "http://gpu8:8000/v1")]
    assert len({name, *others}) == 4


def test_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIPELINE_STATE_DIR", str(tmp_path / "mine"))
    assert state_folder() == tmp_path / "mine"
    monkeypatch.delenv("PIPELINE_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "pipeline"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "pipeline"
    with Lease.join("key", ceiling=5) as lease:
        assert lease.refresh(demand=5, busy=0, parallel=5) == 5
    assert (tmp_path / ".local" / "state" / "pipeline" / "key.lease").exists()


def test_a_run_that_shares_with_nobody() -> None:
    with Memory(ceiling=5) as lease:
        assert lease.refresh(demand=0, busy=0, parallel=8) == 5
        assert lease.refresh(demand=9, busy=0, parallel=3) == 3
        with lease.locked() as pace:
            pace.started += 1
        with lease.locked() as pace:
            assert (pace.started, lease.elsewhere) == (1, 0)
