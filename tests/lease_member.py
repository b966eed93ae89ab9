"""A member of a lease in a process of its own: sends pretended requests as its share allows and writes down what it does.

``python lease_member.py FOLDER LOG DEMAND SECONDS [elsewhere]``; a number on stdin is its demand from then on. A request's
start is written after the lease allowed it and its end before the lease hears of it, so that what the log shows in flight
was within what the member held. ``elsewhere``: with the locks of systems that have none of open files.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from pipeline.lease import Lease, file

CEILING = PARALLEL = 5
REFRESH_S = 0.25


def main(folder: str, log: str, demand: int, seconds: float) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lease = Lease.join("key", ceiling=CEILING, folder=Path(folder))
    ends: list[float] = []
    refresh_at = 0.0
    while True:
        while ends and ends[0] <= time.monotonic():
            os.write(out, f"{time.monotonic()} end\n".encode())
            ends.pop(0)
        if time.monotonic() >= refresh_at:
            share = lease.refresh(demand=demand, busy=len(ends), parallel=PARALLEL)
            os.write(out, f"{time.monotonic()} share {share}\n".encode())
            refresh_at = time.monotonic() + REFRESH_S
        while len(ends) < min(share, demand):
            os.write(out, f"{time.monotonic()} start\n".encode())
            ends.append(time.monotonic() + seconds)
        if select.select([0], [], [], 0.005)[0]:
            demand = int(os.read(0, 100).split()[-1])
            refresh_at = 0.0


if __name__ == "__main__":
    file.OPEN_DESCRIPTION = file.OPEN_DESCRIPTION and "elsewhere" not in sys.argv
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
