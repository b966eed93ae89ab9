"""Text from outside, as people may see it: no terminal takes orders from a row, a file name or a gateway's reply."""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES_SHOWN = 40
# All control characters but the line break and the tab, half surrogate pairs, and the signs that turn the direction of text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with what a terminal would obey, or could not write, as Python writes it: ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: the first of them, and how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - NAMES_SHOWN:,} more" if len(shown) > NAMES_SHOWN else ""
    return ", ".join(shown[:NAMES_SHOWN]) + more
