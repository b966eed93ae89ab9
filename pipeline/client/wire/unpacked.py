"""A packed body (gzip, deflate), taken apart as it comes and never further than asked: some are bombs."""

from __future__ import annotations

import zlib

MOST_MEMBERS = 100  # each copies what is left of the body
PACKED = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB = 47  # zlib's word for "see which of the two it is"
_DEFLATED, _GZIP_BEGINS = 8, 0x1F  # first bytes: the low half of zlib's, the whole of gzip's


class Unpacked:
    """``more(data, most)`` as the bytes come; ``is_cut`` when their end has not. Raises ``zlib.error`` for what is none."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._begun = False
        self._members = 1

    @property
    def is_cut(self) -> bool:
        """Whether more should have come."""
        return self._begun and not self._inflate.eof

    def more(self, data: bytes, most: int) -> bytes:
        """What these bytes hold, up to a byte more than ``most``. "deflate" is zlib's form, or by mistake the bare one."""
        if not self._begun and data[0] & 0x0F != _DEFLATED and data[0] != _GZIP_BEGINS:
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._begun = True
        parts = [self._inflate.decompress(data, most + 1)]
        size = len(parts[0])
        while self._inflate.eof and self._inflate.unused_data and size <= most:  # joined archives
            rest, self._inflate = self._inflate.unused_data, zlib.decompressobj(_GZIP_OR_ZLIB)
            self._members += 1
            if self._members > MOST_MEMBERS:
                raise zlib.error(f"more than {MOST_MEMBERS} archives in one")
            parts.append(self._inflate.decompress(rest, most + 1 - size))
            size += len(parts[-1])
        return b"".join(parts)
