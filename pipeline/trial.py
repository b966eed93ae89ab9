"""What ``try`` shows: a few rows with prompt, answer, tokens and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import RowError
from pipeline.ground.wording import money, plural
from pipeline.journal import Projected, Projection
from pipeline.records import Row
from pipeline.sink import vector_numbers
from pipeline.source import chunks
from pipeline.workspace import Workspace, opened_for_reading

PROMPT_CHARACTERS = 600
NUMBERS_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row as a person wants to see it; ``messages`` is what was sent."""

    custom_id: str
    status: str
    messages: list[dict[str, Any]]
    content: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    cost_unit: str | None
    error: str | None
    attempts: int

    @property
    def text(self) -> str:
        """The row in a few lines."""
        prompt = "\n".join(f"{message.get('role')}: {_said(message.get('content'))}" for message in self.messages)
        if len(prompt) > PROMPT_CHARACTERS:
            prompt = prompt[:PROMPT_CHARACTERS] + f" ... ({len(prompt):,} characters)"
        answer = self.content if self.error is None else f"FAILED {self.error}"
        return f"--- {self.custom_id} ---\n{prompt}\n=> {answer}\n   ({', '.join(filter(None, self._facts))})\n"

    @property
    def _facts(self) -> list[str | None]:
        if self.prompt_tokens is None and not self.attempts:
            return ["not sent"]
        tokens = f"{_count(self.prompt_tokens)} + {_count(self.completion_tokens)} tokens"
        cost = "cost unknown" if self.cost is None else money({self.cost_unit or "USD": self.cost})
        return [tokens, cost, self.finish_reason]


def _said(content: Any) -> Any:
    """Text and images of a message, one below the other."""
    if not isinstance(content, list):
        return content
    parts = (part if isinstance(part, dict) else {} for part in content)
    return "\n".join(str(part.get("text") or f"[image {part.get('image_url', {}).get('url')}]") for part in parts)


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else f"{tokens:,}"


def shown_rows(folder: Path, most: int) -> list[ShownRow]:
    """The rows that the last run sent; where it sent none, the first that have an outcome."""
    found: list[ShownRow] = []
    with opened_for_reading(folder) as space:
        projection = Projection(space.journal.db)
        sent = space.journal.sent_last(most)
        for file in space.files:
            for chunk in chunks(file):
                stretch = projection.stretch(str(file.path), chunk.first, chunk.last)
                rows = {row.line: row for row in stretch if row.status and (not sent or row.no in sent)}
                for line, data in chunk.rows(frozenset(rows)):
                    source = Row(custom_id=None, index=line, data=data)
                    found.append(_shown(space, rows[line], source, file.path.parent))
                    if len(found) == most:
                        return found
    return found


def cut_off(rows: Sequence[ShownRow], params: Mapping[str, Any]) -> str | None:
    """That some answers were cut off, and what to set; None where none was. ``params`` are the job's."""
    count = sum(row.finish_reason == "length" for row in rows)
    if not count:
        return None
    name = "max_completion_tokens" if "max_completion_tokens" in params else "max_tokens"
    bound = f"{name} = {params[name]}" if name in params else "the gateway's own bound"
    return (
        f"{plural(count, 'answer was', 'answers were')} cut off by {bound} (finish_reason length): set a higher {name} in "
        f"[request] params, or --set request.params.{name}=N"
    )


def _shown(space: Workspace, row: Projected, source: Row, folder: Path) -> ShownRow:
    try:
        messages = _messages(orjson.loads(space.template.compose(source, folder, whole=False).body))
    except RowError:
        messages = []
    return ShownRow(
        custom_id=row.custom_id,
        status=str(row.status),
        messages=messages,
        content=_content(space, row),
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        cost=row.cost,
        cost_unit=row.cost_unit,
        error=None if row.error_code is None else f"{row.error_code}: {row.error_message}",
        attempts=row.attempts,
    )


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What was sent; the text of an embedding or a legacy completion as one message."""
    messages: list[dict[str, Any]] = body.get("messages") or [
        {"role": name, "content": body[name]} for name in ("input", "prompt") if name in body
    ]
    return messages


def _content(space: Workspace, row: Projected) -> str | None:
    if row.body is None:
        return None
    if row.form != "float32":
        return space.dialect.content(row.body)
    first = ", ".join(f"{number:.4f}" for number in vector_numbers(row.body[: 4 * NUMBERS_SHOWN]))
    return f"{len(row.body) // 4} dimensions: {first}, ..."
