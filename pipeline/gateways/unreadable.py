"""A reply that cannot be read: what nobody foresaw in one reply is that reply's trouble, and not the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pipeline.records import Failure, Reply

T = TypeVar("T")
WORDS_CHARACTERS = 200


def carefully(read: Callable[[Reply], T], reply: Reply) -> T:
    """``read(reply)``; where that raises, the same of a reply that was lost on the way, with the error's name as the reason.

    So it is tried again, bounded, and counted as one that may have been billed. Only reading is done in here: an error of
    ours anywhere else must end the run, and show.
    """
    try:
        return read(reply)
    except Exception as exc:  # noqa: BLE001 - the one place: a gateway may say anything, and pays for none of our rows
        return read(_lost(reply, exc))


def _lost(reply: Reply, exc: Exception) -> Reply:
    words = f"{type(exc).__name__}: {str(exc)[:WORDS_CHARACTERS]}"
    failure = Failure(
        code="unreadable_reply", message=f"HTTP {reply.status}, but it cannot be read ({words})", sent=True
    )
    return replace(reply, status=0, headers={}, body=b"", json=None, failure=failure)
