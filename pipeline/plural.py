"""A count in a sentence: one row, but two rows."""

from __future__ import annotations


def plural(count: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``2,000 rows``; ``many`` where the words for more are not those for ``one`` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
