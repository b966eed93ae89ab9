"""The pictures of a row: found in its columns, named by their content for the fingerprint, sent as data URIs."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from pipeline.errors import RowError
from pipeline.ground.jsonio import loads

CACHED = 100_000  # digests of files
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """``identity`` stands for it in the fingerprint, ``url`` is what goes out (the identity where nothing goes out)."""

    identity: str
    url: str


class Images:
    """The pictures that the job's image columns name."""

    def __init__(self, columns: list[str], *, most: int, most_bytes: int) -> None:
        self.columns = columns
        self._most = most
        self._most_bytes = most_bytes
        self._digests: dict[tuple[str, int, int], str] = {}

    def of(self, data: dict[str, Any], folder: Path, *, whole: bool) -> list[Image]:
        """The row's pictures, in the order of the columns; with ``whole`` as they go out. Raises ``RowError``.

        Without it, files are only digested, and no more than one picture is held at a time.
        """
        found: list[Image] = []
        for column in self.columns:
            for value in _listed(data.get(column)):
                if len(found) == self._most:
                    raise RowError("too_many_images", f"the row has more than {self._most} images (request.max_images)")
                found.append(self._image(value, column, folder, whole))
        if not found:
            raise RowError(
                "image_missing", f"the row has no image: {' and '.join(map(repr, self.columns))} is null or empty"
            )
        return found

    def _image(self, value: Any, column: str, folder: Path, whole: bool) -> Image:
        if isinstance(value, dict):  # as Hugging Face's data sets have them
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            return Image(identity=value, url=value)
        if isinstance(value, str) and value.startswith("data:"):
            return self._made(self._decoded(value, column), column, whole)
        if isinstance(value, bytes):
            return self._made(value, column, whole)
        if isinstance(value, str):
            return self._from_file(folder / value, whole)
        raise RowError("image_unknown_type", f"the column {column!r} holds a {type(value).__name__}, no image or path")

    def _from_file(self, path: Path, whole: bool) -> Image:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise RowError("image_missing", f"{path} is no file")
            self._check_size(status.st_size, str(path))
            if whole:
                return self._made(path.read_bytes(), str(path), whole)
            key = (str(path), status.st_size, status.st_mtime_ns)
            if (identity := self._digests.get(key)) is None:
                identity = _digest_of(path)
                if len(self._digests) >= CACHED:
                    self._digests.clear()
                self._digests[key] = identity
        except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
            words = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc)
            raise RowError("image_missing", f"cannot read the image {path}: {words}") from exc
        return Image(identity=identity, url=identity)

    def _made(self, content: bytes, where: str, whole: bool) -> Image:
        self._check_size(len(content), where)
        kind = _type_of(content[:16], where)
        identity = _named(hashlib.blake2b(content, digest_size=16).hexdigest())
        if not whole:
            return Image(identity=identity, url=identity)
        return Image(identity=identity, url=f"data:{kind};base64,{base64.b64encode(content).decode()}")

    def _decoded(self, uri: str, column: str) -> bytes:
        head, _, payload = uri.partition(",")
        if not head.endswith(";base64"):
            return unquote_to_bytes(payload)
        self._check_size(len(payload) * 3 // 4 - 2, column)  # before it is decoded
        try:
            return base64.b64decode(payload)
        except (binascii.Error, ValueError) as exc:
            raise RowError("image_unknown_type", f"the data URI in the column {column!r} is no base64: {exc}") from exc

    def _check_size(self, size: int, where: str) -> None:
        if size > self._most_bytes:
            text = f"the image of {where} has {size:,} bytes, over the {self._most_bytes:,} of request.max_image_bytes"
            raise RowError("image_too_large", text)


def _listed(value: Any) -> Iterator[Any]:
    """The values of one cell: none, one or several; a list may come as JSON text (CSV has nothing else)."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = loads(value.encode())
        except ValueError:
            yield value  # a path with a bracket
            return
    for one in value if isinstance(value, list) else [value]:
        if one not in (None, "", b""):
            yield one


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        _type_of(file.read(16), str(path))
        file.seek(0)
        return _named(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())


def _named(digest: str) -> str:
    return f"blake2b:{digest}"


def _type_of(start: bytes, where: str) -> str:
    """The media type by the first bytes: names and declared types are often wrong."""
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    raise RowError("image_unknown_type", f"the image of {where} is no PNG, JPEG, GIF or WebP")
