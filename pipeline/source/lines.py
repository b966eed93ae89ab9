"""The lines of a text file, plain or compressed, in blocks: a loop turn per line would cost more than parsing it."""

from __future__ import annotations

import gzip
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

from pipeline.errors import InputError
from pipeline.source.file import InputFile, place, reading, shown

BLOCK = 1 << 20
MAX_LINE_BYTES = 64 << 20


def blocks(file: InputFile, *, max_line_bytes: int) -> Generator[list[bytes], None, None]:
    """Whole lines without their newline, about a MiB at a time; a byte order mark is dropped."""
    read, held = 0, 0
    tail: list[bytes] = []
    with reading(file), _opened(file) as stream:
        for block in _raw_blocks(file, stream, min(BLOCK, max_line_bytes)):
            lines = block.split(b"\n")
            tail.append(lines[0])
            held += len(lines[0])
            if held > max_line_bytes:
                raise InputError(
                    f"{place(file, read + 1)}: a line of more than {max_line_bytes:,} bytes; one record, one line"
                )
            if len(lines) > 1:
                lines[0] = b"".join(tail)
                tail = [lines.pop()]
                held = len(tail[0])
                read += len(lines)
                yield lines
        if held:
            yield [b"".join(tail)]


def _raw_blocks(file: InputFile, stream: Any, size: int) -> Iterator[bytes]:
    block = stream.read(size)
    if block[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(block) > 1 and (block[0] == 0) != (block[1] == 0)):
        raise InputError(f"{shown(file.path)}: looks like UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    block = block.removeprefix(b"\xef\xbb\xbf")
    while block:
        yield block
        block = stream.read(size)


def _opened(file: InputFile) -> AbstractContextManager[Any]:
    with file.path.open("rb") as raw:
        found = _content(raw.read(4))
    if found != file.compression:
        said, is_ = file.compression or "plain text", found or "not compressed"
        raise InputError(f"{shown(file.path)}: the name says {said}, the content is {is_}; give it the right ending")
    if found == "gzip":
        return gzip.open(file.path)
    if found == "zstd":
        import pyarrow as pa

        stream: AbstractContextManager[Any] = pa.input_stream(str(file.path), compression="zstd")
        return stream
    return file.path.open("rb", buffering=0)


def _content(head: bytes) -> str | None:
    """What the first four bytes tell; zip is what a spreadsheet saved under a text file's name is."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18":  # a frame, or one to skip (pzstd starts so)
        return "zstd"
    return "zip" if head == b"PK\x03\x04" else None
