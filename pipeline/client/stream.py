"""Server-sent events of a streamed chat, put together into the completion body that a plain call would have returned.

A stream is complete only with a ``finish_reason`` for every choice and ``[DONE]``: after an error the one gateway sends
no ``[DONE]`` and the other does (both measured), and a cut connection looks like an end.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from pipeline.ground.jsonio import dumps, loads, text_or_json

EVENTS = "text/event-stream"
_STATUS_OF_TYPE = {
    "BadRequestError": 400,
    "AuthenticationError": 401,
    "PermissionDeniedError": 403,
    "NotFoundError": 404,
    "UnprocessableEntityError": 422,
    "RateLimitError": 429,
}
_BOM = b"\xef\xbb\xbf"
_QUOTE, _BACKSLASH = b'"\\'  # to look for a number takes a tenth of the time
_NO_MOULD = (b"\n", b"\n", 1, -1)  # in no line
_MOST_MOULDS = 8  # of one stream; one whose events differ in more than a text is looked at in vain no longer
_ERROR_STATUS = re.compile("[45][0-9][0-9]")


class Assembly:
    """``feed`` it the bytes as they come; ``body`` is the completion so far, ``error`` the error event, if one came."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # of a line whose end has not come; joined once, however many pieces it comes in
        self._first = True
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None
        # Most events differ from the one before in nothing but a text: what stands in front of it and behind, and where
        # it begins and ends. Such texts are only cut out, and read together: parsing each event takes four times as long.
        self._mould = _NO_MOULD
        self._moulds = 0
        self._texts: list[bytes] = []
        self._place: tuple[dict[str, Any], str] = ({}, "")  # the message and the field that they belong to
        self.error: dict[str, Any] | None = None
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take in some bytes; events may be split anywhere, also inside a character. Raises ``ValueError`` for nonsense."""
        ended, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._rest.append(data)
            return
        lines = b"".join([*self._rest, ended]).split(b"\n")
        self._rest = [rest]
        if self._first:
            self._first, lines[0] = False, lines[0].removeprefix(_BOM)
        self._take(lines)

    def _take(self, lines: list[bytes]) -> None:
        before, after, start, end = self._mould
        texts = self._texts
        try:
            for line in filter(None, lines):
                if (
                    line[:start] == before
                    and line[end:] == after
                    and (text := line[start:end])
                    and _QUOTE not in text
                    and _BACKSLASH not in text
                ):
                    texts.append(text)
                elif line[:5] == b"data:":
                    self._settle()
                    self._event(line)
                    before, after, start, end = self._mould
        except (TypeError, AttributeError, LookupError) as exc:  # events that are JSON, but not of a chat
            raise ValueError(str(exc)) from exc

    def _settle(self) -> None:
        """Read the texts that were cut out."""
        if self._texts:
            whole = b"".join(self._texts)
            self._texts.clear()
            _add_text(*self._place, loads(b'"%b"' % whole, exact=False))

    def _event(self, line: bytes) -> None:
        data = line[5:]
        if data.strip() == b"[DONE]":
            self.done = True
            return
        chunk = loads(data, exact=False)
        if not isinstance(chunk, dict):
            raise ValueError("an event of the stream is no JSON object")
        if error := chunk.get("error"):
            self.error = error if isinstance(error, dict) else {"message": text_or_json(error)}
            return
        if not self._head:
            self._head = {
                name: chunk[name] for name in ("id", "created", "model", "system_fingerprint") if name in chunk
            }
        if (usage := chunk.get("usage")) is not None and isinstance(usage, dict):
            self._usage = usage
        for choice in chunk.get("choices") or ():
            self._add(choice)
        if self._moulds < _MOST_MOULDS and not self._fits(line):
            self._learn(line, chunk)

    def _fits(self, line: bytes) -> bool:
        before, after, _, _ = self._mould
        return line.startswith(before) and line.endswith(after)

    def _learn(self, line: bytes, chunk: dict[str, Any]) -> None:
        """Make a mould of an event that says one text and nothing else."""
        index, delta = _only_delta(chunk)
        said = [name for name, value in delta.items() if value is not None and name != "role"]
        text = delta[said[0]] if len(said) == 1 else None
        if type(text) is not str or not text:
            return
        self._moulds += 1
        before, _, after = line.partition(dumps(text))
        delta[said[0]] = ""
        with suppress(ValueError, RecursionError):
            if loads(before[5:] + b'""' + after, exact=False) == chunk:  # this was its only place
                self._mould = (before + b'"', b'"' + after, len(before) + 1, -1 - len(after))
                self._place = (self._choices[index]["message"], said[0])

    def _add(self, piece: dict[str, Any]) -> None:
        choice = self._choices.get(piece.get("index", 0)) or self._new_choice(piece.get("index", 0))
        message = choice["message"]
        for name, value in (piece.get("delta") or {}).items():
            if value is None or name == "role":
                continue
            if type(value) is str:
                _add_text(message, name, value)
            elif name == "tool_calls":
                _add_tool_calls(message.setdefault("tool_calls", []), value)
            else:
                _add_value(message, name, value)
        if isinstance(logprobs := piece.get("logprobs"), dict):
            for name, value in logprobs.items():
                _add_value(choice.setdefault("logprobs", {}), name, value)
        if (reason := piece.get("finish_reason")) is not None:  # LiteLLM's usage chunk comes after it, without one
            choice["finish_reason"] = reason

    def _new_choice(self, index: Any) -> dict[str, Any]:
        if type(index) is not int or index < 0:
            raise ValueError("a choice of the stream has no number")
        choice = {"index": index, "message": {"role": "assistant"}, "finish_reason": None}
        return self._choices.setdefault(index, choice)

    @property
    def complete(self) -> bool:
        """Whether this is the whole answer."""
        return self.done and bool(self._choices) and all(c["finish_reason"] is not None for c in self._choices.values())

    def body(self) -> dict[str, Any]:
        """The completion, in the shape of an unstreamed one."""
        self._settle()
        choices = []
        for index in sorted(self._choices):
            choice = self._choices[index]
            message = {name: _joined(value) for name, value in choice["message"].items()}
            message.setdefault("content", None)
            choices.append({**choice, "message": message})
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage}

    def whole(self, status: int) -> tuple[int, dict[str, Any] | None]:
        """Status and body as they would have been without streaming; a body of None when the stream ended too early."""
        self._settle()
        if self._rest:
            with suppress(ValueError):  # half an event
                self.feed(b"\n")
        if self.error is not None:
            return self.error_status(), {"error": self.error}
        return status, self.body() if self.complete else None

    def error_status(self) -> int:
        """The status the error would have had without streaming: its code, else what its type says, else 500."""
        error = self.error or {}
        code, kind = error.get("code"), error.get("type")
        if isinstance(code, str | int) and _ERROR_STATUS.fullmatch(str(code)):
            return int(code)
        return _STATUS_OF_TYPE.get(kind, 500) if isinstance(kind, str) else 500


def _joined(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "".join(value)
    return value


def _only_delta(chunk: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The one choice of an event that tells of nothing else, and what comes for it."""
    choices = chunk.get("choices") or []
    if len(choices) != 1 or chunk.get("usage") is not None:
        return 0, {}
    if any(choices[0].get(name) is not None for name in ("finish_reason", "logprobs")):
        return 0, {}
    return choices[0].get("index", 0), choices[0].get("delta") or {}


def _add_text(message: dict[str, Any], name: str, text: str) -> None:
    parts = message.get(name)
    if parts is None:
        message[name] = [text]
    else:
        parts.append(text)


def _add_value(whole: dict[str, Any], name: str, value: Any) -> None:
    """Lists of objects come in pieces, such as the log probabilities of tokens; of all else the last is kept."""
    before = whole.get(name)
    if isinstance(value, list) and isinstance(before, list) and before and isinstance(before[0], dict):
        before.extend(value)
    elif value is not None or before is None:
        whole[name] = value


def _add_tool_calls(calls: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    """Tool calls come in pieces by index; names and ids once, arguments bit by bit."""
    for piece in pieces:
        at = piece.get("index", len(calls))
        if type(at) is not int or not 0 <= at <= len(calls):
            raise ValueError("a tool call of the stream comes before those in front of it")
        if at == len(calls):
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[at], piece.get("function") or {}
        if piece.get("id"):
            call["id"] = piece["id"]
        if function.get("name"):
            call["function"]["name"] = function["name"]
        call["function"]["arguments"] += function.get("arguments") or ""
