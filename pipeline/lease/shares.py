"""What is fair: slots for all that want them, filled up like water, so that nobody gets more while another lacks."""

from __future__ import annotations

from collections.abc import Sequence


def fair_shares(slots: int, wanted: Sequence[int], most: Sequence[int], *, turn: int) -> list[int]:
    """Whole shares of ``slots``, one for each member; they add up to no more than ``slots``.

    First what is ``wanted`` now; what then is left over goes to whoever could still use it up to its ``most``, so that a
    member whose demand rises need not ask first. The same numbers give the same shares, whoever works them out.
    """
    shares = water_fill(slots, wanted, turn=turn)
    room = [max(0, limit - share) for limit, share in zip(most, shares, strict=True)]
    spare = water_fill(slots - sum(shares), room, turn=turn)
    return [share + more for share, more in zip(shares, spare, strict=True)]


def water_fill(slots: int, wanted: Sequence[int], *, turn: int) -> list[int]:
    """Max-min fair whole shares: nobody has less than it wants while another has over one slot more.

    That one slot, where the division leaves a remainder, goes around with ``turn``.
    """
    left = slots
    level = 0
    for place, want in enumerate(sorted(wanted)):
        level = left // (len(wanted) - place)
        if want > level:
            break
        left -= want
    shares = [min(want, level) for want in wanted]
    lacking = [number for number, want in enumerate(wanted) if want > level]
    for place in range(min(slots - sum(shares), len(lacking))):
        shares[lacking[(turn + place) % len(lacking)]] += 1
    return shares
