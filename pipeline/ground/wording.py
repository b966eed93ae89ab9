"""Counts, amounts and times in a sentence: one row, but two rows."""

from __future__ import annotations

import time


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``2,000 rows``; ``many`` where the words for more are not those for ``one`` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def money(cost: dict[str, float], unknown: int = 0) -> str:
    """Amounts by unit, and that some are unknown: ``$0.0123``, ``3.5 coins``, ``unknown``."""
    known = [f"${_amount(amount)}" if unit == "USD" else f"{_amount(amount)} {unit}" for unit, amount in cost.items()]
    if not known:
        return "unknown" if unknown else "$0"
    return " + ".join(known) + (f" + {plural(unknown, 'row')} of unknown cost" if unknown else "")


def _amount(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 100 or amount == 0 else f"{amount:,.4f}" if amount >= 0.01 else f"{amount:.7f}"


def number(value: float) -> str:
    """``0.5``, ``27.3``, ``12,000``: never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_one_line(text: str, most: int | None = None) -> str:
    """What a gateway says may have many lines, and be long: where ``most`` cuts it off, dots say so."""
    line = " ".join(text.split())
    return line if most is None or len(line) <= most else line[: most - 4].rstrip() + " ..."


def outage(started_at: float, ended_at: float | None, cause: str, *, is_said: bool = False) -> str:
    """An outage in a sentence, without the ``cause`` where that is said elsewhere; an empty budget is one, too."""
    who, how = ("The budget", "used up") if cause.startswith("budget_exceeded") else ("The gateway", "away")
    was = f"is still {how}, since" if ended_at is None else f"was {how} for {duration(ended_at - started_at)}, from"
    why = "" if is_said or not cause else f" ({in_one_line(cause, 160)})"
    return f"{who} {was} {time.strftime('%H:%M:%S', time.localtime(started_at))}{why}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min 5 s``, ``3 h 20 min``, ``2 d 4 h``."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    if s < 86_400:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86_400} d {s % 86_400 // 3600} h"
