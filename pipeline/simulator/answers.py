"""What a made-up model says: a pure function of the request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

_BULLET = r"\n+[ \t]*(?:[-*•]|\d+[.)])[ \t]+[^\n]+"
_LABELS = re.compile(
    r"(?:\b(?:labels|categories|classes|options|one of)\b[^:\n,|]{0,60}:|\bone of\b|\b(?:labels|categories) are\b)"
    rf"(?P<inline>[^\n]*)(?P<bullets>(?:{_BULLET})*)",
    re.IGNORECASE,
)
_MARK = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_SUMMARY = re.compile(r"\bsummar(?:y|ies|i[sz]e|i[sz]ing)\b|\btl;?dr\b", re.IGNORECASE)
_WORD = re.compile(r"\w{3,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation in short: every instruction, and the last thing the user said."""

    system: str
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A prompt taken apart: the labels to choose from (maybe none), and the text it is about."""

    labels: tuple[str, ...]
    text: str

    def label(self) -> str:
        """The label that fits the text."""
        return choose(self.labels, self.text)


def answer(prompt: Prompt) -> str:
    """A label, a summary, or the prompt said back."""
    task = understand(prompt)
    if task.labels:
        return task.label()
    if _SUMMARY.search(prompt.system) or _SUMMARY.search(prompt.user):
        return summary(prompt)
    return f"You said: {first_sentences(task.text, 400)}"


def understand(prompt: Prompt) -> Task:
    """Finds a list of labels in the system message or, failing that, in what the user said."""
    for text in (prompt.system, prompt.user):
        for found in _LABELS.finditer(text):
            labels = _items(found)
            if len(labels) > 1:
                about = prompt.user if text is prompt.system else text[: found.start()] + text[found.end() :]
                return Task(labels=labels, text=about)
    return Task(labels=(), text=prompt.user)


def choose(labels: tuple[str, ...], text: str) -> str:
    """The label with most words in common with the text; without any, one picked by the text's hash."""
    words = _stems(text)
    scores = [len(words & _stems(label)) for label in labels]
    best = max(scores)
    return labels[scores.index(best) if best else pick(text, len(labels))]


def summary(prompt: Prompt) -> str:
    """The first sentence of what is to be summarised (what follows the instruction, if there is one)."""
    text = prompt.user.strip()
    head, _, rest = text.partition("\n")
    if _SUMMARY.search(head):
        text = rest.strip() or head.partition(":")[2].strip() or head
    return first_sentences(text, 200)


def first_sentences(text: str, most: int) -> str:
    """The first sentence of ``text``, in at most ``most`` characters."""
    text = " ".join(text[: 4 * most].split())
    end = _SENTENCE_END.search(text)
    return text[: end.end() if end else len(text)][:most].rstrip()


def pick(text: str, choices: int) -> int:
    """A number below ``choices``, always the same for the same text."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=6).digest()) % choices


def _items(found: re.Match[str]) -> tuple[str, ...]:
    inline = found["inline"].strip()
    if inline:
        inline = _SENTENCE_END.split(inline, maxsplit=1)[0]
        mark = next((mark for mark in "|,;/" if mark in inline), " or ")
        parts = re.sub(r"\b(?:or|and)\b", mark, inline).split(mark)
    else:
        parts = [re.split(r":|\(| - ", _MARK.sub("", line))[0] for line in found["bullets"].splitlines()]
    names = (part.strip(" \t\"'`[](){}<>*.") for part in parts)
    return tuple(dict.fromkeys(name for name in names if name and len(name.split()) <= 4))


def _stems(text: str) -> set[str]:
    return {word[:5] for word in _WORD.findall(text.lower())}
