"""Server-sent events of a streamed chat, put together into the completion body that a plain call would have returned.

A stream is complete only with a ``finish_reason`` for every choice and ``[DONE]``: after an error the one gateway sends
no ``[DONE]`` and the other does (both measured), and a cut connection looks like an end.
"""

from __future__ import annotations

from typing import Any

from pipeline.jsonio import loads

_STATUS_OF_TYPE = {
    "BadRequestError": 400,
    "AuthenticationError": 401,
    "PermissionDeniedError": 403,
    "NotFoundError": 404,
    "UnprocessableEntityError": 422,
    "RateLimitError": 429,
}


class Assembly:
    """``feed`` it the bytes as they come; ``body`` is the completion so far, ``error`` the error event, if one came."""

    def __init__(self) -> None:
        self._rest = b""
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take in some bytes; events may be split anywhere, also inside a character. Raises ``ValueError`` for nonsense."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        chunk = loads(data)
        if not isinstance(chunk, dict):
            raise ValueError("an event of the stream is no JSON object")
        error = chunk.get("error")
        if error:
            self.error = error if isinstance(error, dict) else {"message": str(error)}
            return
        if not self._head:
            self._head = {
                name: chunk[name] for name in ("id", "created", "model", "system_fingerprint") if name in chunk
            }
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        for choice in chunk.get("choices") or ():
            self._add(choice)

    def _add(self, piece: dict[str, Any]) -> None:
        index = piece.get("index", 0)
        if type(index) is not int or index < 0:
            raise ValueError("a choice of the stream has no number")
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = {"index": index, "message": {"role": "assistant"}, "finish_reason": None}
        delta = piece.get("delta") or {}
        message = choice["message"]
        for name, value in delta.items():
            if value is None or name == "role":
                continue
            if name == "tool_calls":
                _add_tool_calls(message.setdefault("tool_calls", []), value)
            elif isinstance(value, str):
                message.setdefault(name, []).append(value)
            else:
                message[name] = value
        if piece.get("finish_reason") is not None:  # LiteLLM's usage chunk comes after it, without one
            choice["finish_reason"] = piece["finish_reason"]

    @property
    def complete(self) -> bool:
        """Whether this is the whole answer."""
        return self.done and bool(self._choices) and all(c["finish_reason"] is not None for c in self._choices.values())

    def body(self) -> dict[str, Any]:
        """The completion, in the shape of an unstreamed one."""
        choices = []
        for index in sorted(self._choices):
            choice = self._choices[index]
            message = {name: _joined(value) for name, value in choice["message"].items()}
            message.setdefault("content", None)
            choices.append({**choice, "message": message})
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage}

    def error_status(self) -> int:
        """The status the error would have had without streaming: its code, else what its type says, else 500."""
        error = self.error or {}
        code = str(error.get("code"))
        if code.isdigit() and 400 <= int(code) < 600:
            return int(code)
        return _STATUS_OF_TYPE.get(str(error.get("type")), 500)


def _joined(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return "".join(value)
    return value


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
