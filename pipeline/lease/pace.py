"""The pace of a key, as all its runs know it, and how it stands in the lease file."""

from __future__ import annotations

import math
import struct
import time
import zlib
from dataclasses import dataclass, fields
from operator import attrgetter

MAGIC = b"pipeline lease 1"  # another version's pace is not understood: it is begun anew
FORGET_S = 24 * 3600.0
KEPT = ("rpm", "parallel", "learned_at")  # what was learned outlives a restart of the machine; its clocks do not
_BOOT = struct.Struct("<36s")
_CHECK = struct.Struct("<I")


@dataclass(slots=True, kw_only=True)
class Pace:
    """What the runs of one key share. Times are seconds on the lease's clock (``time.monotonic``, one for all processes)."""

    next_start: float = 0.0
    """no request of any run starts before; a run takes its turn by moving it on by its interval"""
    window_start: float = 0.0
    """when the current rate window began, with its first request"""
    started: int = 0
    """requests started in that window"""
    refused: int = 0
    """of those, refused for the rate"""
    paused_until: float = 0.0
    """nobody starts before: the window has to end first"""
    rpm: float = 0.0
    """learned requests a minute; 0: not known"""
    parallel: int = 0
    """learned or announced parallel slots; 0: not known"""
    next_tokens: float = 0.0
    """like ``next_start``, of the token rate"""
    learned_at: float = 0.0
    """``time.time()`` when ``rpm`` or ``parallel`` were learned (set when they change); forgotten after 24 h"""


_BODY = struct.Struct("<" + "".join({"float": "d", "int": "q"}[str(field.type)] for field in fields(Pace)))
_VALUES = attrgetter(*Pace.__slots__)  # dataclasses.astuple takes 7 us, this 0.2
PACE_BYTES = len(MAGIC) + _CHECK.size + _BOOT.size + _BODY.size


def packed(pace: Pace, boot: str) -> bytes:
    """The pace as it stands in the file, with the start of the machine its times belong to."""
    body = _BOOT.pack(boot.encode()) + _BODY.pack(*_VALUES(pace))
    return MAGIC + _CHECK.pack(zlib.crc32(body)) + body


def unpacked(data: bytes, boot: str) -> Pace:
    """The pace that ``data`` holds: a new one where it is torn, foreign or of another version, and never an error."""
    head, body = data[: len(MAGIC) + _CHECK.size], data[len(MAGIC) + _CHECK.size : PACE_BYTES]
    if len(data) < PACE_BYTES or head != MAGIC + _CHECK.pack(zlib.crc32(body)):
        return Pace()
    values = _BODY.unpack_from(body, _BOOT.size)
    if not all(0 <= value < math.inf for value in values):  # NaN is not, either
        return Pace()
    pace = Pace(**dict(zip(Pace.__slots__, values, strict=True)))
    if body[: _BOOT.size].rstrip(b"\0") != boot.encode():
        pace = without_times(pace)
    if abs(time.time() - pace.learned_at) >= FORGET_S:
        pace.rpm, pace.parallel, pace.learned_at = 0.0, 0, 0.0
    return pace


def without_times(pace: Pace) -> Pace:
    """What of a pace is true after the machine was started anew."""
    return Pace(**{name: getattr(pace, name) for name in KEPT})
