"""A dialect's table: rules in order, the first that fits says what a reply means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.gateways.complaint import Complaint, Shape
from pipeline.records import Verdict

# What a gateway says itself stands in front; further on it may quote an upstream, or the row's own text.
OPENING_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the table: all conditions that are given must hold; then the reply ``means`` this verdict.

    ``means.message`` is what to tell the user after the gateway's own words, ``means.retry_after_s`` how long to wait
    when the gateway does not say; an empty ``means.code`` stands for ``http_<status>``.
    """

    means: Verdict
    statuses: frozenset[int] = frozenset()
    shapes: frozenset[Shape] = frozenset()
    names: frozenset[str] = frozenset()  # the error's type or code is one of these
    prefixes: tuple[str, ...] = ()  # the message starts with one of these
    contains: tuple[str, ...] = ()  # one of these stands in the message's opening
    header: str = ""  # this header is there,
    header_is: str | None = None  # and says this
    without_header: str = ""  # this one is not
    own_code: bool = False  # the reply's own code goes before the rule's
    of_model: bool = False  # about the model asked for: a row that names its own is to blame itself
    heeds_retry_after: bool = True

    def fits(self, said: Complaint) -> bool:
        """Whether all conditions hold."""
        return (
            (not self.statuses or said.status in self.statuses)
            and (not self.shapes or said.shape in self.shapes)
            and (not self.names or not self.names.isdisjoint(said.names))
            and (not self.prefixes or said.message.startswith(self.prefixes))
            and (not self.contains or _any_in(self.contains, said.message[:OPENING_CHARACTERS]))
            and (not self.header or self._header_fits(said.headers))
            and (not self.without_header or self.without_header not in said.headers)
        )

    def _header_fits(self, headers: Mapping[str, str]) -> bool:
        value = headers.get(self.header)
        return value is not None and self.header_is in (None, value)

    def code_for(self, said: Complaint) -> str:
        """The verdict's code."""
        own = said.names[0] if self.own_code and said.names else ""
        return own or self.means.code or f"http_{said.status}"

    def message_for(self, said: Complaint) -> str:
        """The gateway's words, then ours."""
        if not self.means.message:
            return said.sentence
        return f"{said.sentence.rstrip('. ')}. {self.means.message}"


def _any_in(needles: tuple[str, ...], text: str) -> bool:
    return any(needle in text for needle in needles)
