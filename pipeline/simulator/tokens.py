"""A simple tokenizer: words in pieces of up to eight characters, and punctuation marks."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\w{1,8}|[^\w\s]")


def count(text: str) -> int:
    """How many tokens ``text`` has."""
    return len(_PIECE.findall(text))


def cut(text: str, limit: int) -> str:
    """The first ``limit`` tokens of ``text``; all of it when it has no more."""
    if len(text) <= limit:
        return text
    end = 0
    for number, piece in enumerate(_PIECE.finditer(text)):
        if number == limit:
            return text[:end]
        end = piece.end()
    return text


def split(text: str) -> list[str]:
    """``text`` in pieces of one token each, white space in front; joined they are ``text`` again."""
    ends = [piece.end() for piece in _PIECE.finditer(text)]
    if not ends:
        return [text] if text else []
    ends[-1] = len(text)
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
