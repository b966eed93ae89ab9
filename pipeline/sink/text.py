"""Results as text: JSONL, CSV, and OpenAI's own pair of batch output files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

import orjson

from pipeline.ground.jsonio import dumps, loads
from pipeline.journal.reader import Projected
from pipeline.sink.columns import Layout, ReadContent, ReadVector, values
from pipeline.sink.vectors import json_of, text_of


class RowWriter(Protocol):
    """Takes the rows of one stretch: the input's data beside the journal's rows, pairwise."""

    def write(self, data: Sequence[dict[str, Any]], rows: Sequence[Projected]) -> None: ...
    def close(self) -> None: ...


class JsonlWriter:
    """One object a line: kept columns that the row has, then the result columns."""

    def __init__(self, stream: IO[bytes], layout: Layout, read_content: ReadContent) -> None:
        self._stream = stream
        self._layout = layout
        self._read_content = read_content
        self._read_vector: ReadVector = json_of if layout.vectors else text_of

    def write(self, data: Sequence[dict[str, Any]], rows: Sequence[Projected]) -> None:
        """Append these rows."""
        kept, names = self._layout.kept, self._layout.results
        lines = []
        for record, cells in zip(data, _by_row(rows, self._read_content, self._read_vector), strict=True):
            line = record if tuple(record) == kept else {name: record[name] for name in kept if name in record}
            line.update(zip(names, cells, strict=True))
            lines.append(dumps(line))
        lines.append(b"")
        self._stream.write(b"\n".join(lines))

    def close(self) -> None:
        """Nothing is held back."""


class CsvWriter:
    """A header, then a record a row; lists and objects as JSON, null as an empty cell."""

    def __init__(self, stream: IO[bytes], layout: Layout, read_content: ReadContent) -> None:
        self._layout = layout
        self._read_content = read_content
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=False)
        self._csv = csv.writer(self._text)
        self._csv.writerow([*layout.kept, *layout.results])

    def write(self, data: Sequence[dict[str, Any]], rows: Sequence[Projected]) -> None:
        """Append these rows."""
        kept = self._layout.kept
        found = zip(data, _by_row(rows, self._read_content, text_of), strict=True)
        self._csv.writerows(
            [*(_cell(record.get(name)) for name in kept), *map(_cell, cells)] for record, cells in found
        )
        self._text.flush()  # whoever compares wants the stretch whole

    def close(self) -> None:
        """Hand the last characters to the file."""
        self._text.detach()


def _by_row(rows: Sequence[Projected], read_content: ReadContent, read_vector: ReadVector) -> Iterator[tuple[Any, ...]]:
    return zip(*values(rows, read_content, read_vector), strict=True)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return str(value).lower() if isinstance(value, bool) else value
    text = dumps(value)
    return text[1:-1].decode() if text.startswith(b'"') else text.decode()


class BatchWriter:
    """OpenAI's shape: succeeded rows in the output file, failed ones in the error file."""

    def __init__(self, output: IO[bytes], errors: IO[bytes]) -> None:
        self._output = output
        self._errors = errors

    def write(self, data: Sequence[dict[str, Any]], rows: Sequence[Projected]) -> None:
        """Append these rows to the one file or the other."""
        for row in rows:
            if row.status == "succeeded" and row.body is not None:
                self._output.write(self._line(row, response=self._response(row), error=None))
            else:
                error = {"code": row.error_code, "message": row.error_message}
                self._errors.write(self._line(row, response=None, error=error))

    def _response(self, row: Projected) -> dict[str, Any]:
        if row.form == "float32":
            return {"status_code": 200, "request_id": row.request_id, "body": _embeddings_body(row)}
        body = row.body or b"null"
        if b"\n" in body or b"\r" in body or b"\\ud" in body.lower():
            body = dumps(loads(body))  # a record is a line, and half a surrogate pair is no text for strict readers
        return {"status_code": 200, "request_id": row.request_id, "body": orjson.Fragment(body)}

    def _line(self, row: Projected, *, response: Any, error: Any) -> bytes:
        name = f"batch_req_{row.fingerprint.hex()}{row.no:08x}"  # equal requests are still different lines
        line = {"id": name, "custom_id": row.custom_id, "response": response, "error": error}
        return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    def close(self) -> None:
        """Nothing is held back."""


def _embeddings_body(row: Projected) -> dict[str, Any]:
    """The reply as it would have been, had this row been alone in its call."""
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": json_of(row.body or b"")}],
        "model": row.served_model,
        "usage": {"prompt_tokens": row.prompt_tokens, "total_tokens": row.prompt_tokens},
    }
