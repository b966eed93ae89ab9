"""Vectors as the journal keeps them (little-endian float32), in the forms that results have."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import orjson


def numbers(blob: bytes) -> list[float]:
    """The vector's numbers."""
    return list(struct.unpack(f"<{len(blob) // 4}f", blob))


def json_of(blob: bytes) -> orjson.Fragment:
    """The vector as a JSON list, each number in the fewest digits that are still the same float32."""
    return orjson.Fragment(text_of(blob).encode())


def text_of(blob: bytes) -> str:
    """The vector as JSON text."""
    import pyarrow as pa

    array = pa.Array.from_buffers(pa.float32(), len(blob) // 4, [None, pa.py_buffer(blob)])
    return f"[{','.join(array.cast(pa.string()).to_pylist())}]"


def array_of(blobs: Sequence[bytes | None], kind: Any) -> Any:
    """Vectors as an Arrow array of this list type; None is null."""
    import pyarrow as pa

    valid = pa.array([blob is not None for blob in blobs], pa.bool_()).buffers()[1]
    if pa.types.is_fixed_size_list(kind):
        nothing = bytes(4 * kind.list_size)
        whole = b"".join(nothing if blob is None else blob for blob in blobs)
        return pa.Array.from_buffers(kind, len(blobs), [valid], children=[_floats(whole)])
    ends = [0]
    for blob in blobs:
        ends.append(ends[-1] + len(blob or b"") // 4)
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    whole = b"".join(blob for blob in blobs if blob is not None)
    return pa.Array.from_buffers(kind, len(blobs), [valid, offsets], children=[_floats(whole)])


def type_of(dimensions: Sequence[int]) -> Any:
    """The Arrow type of vectors: of fixed size where all have the same."""
    import pyarrow as pa

    return pa.list_(pa.float32(), dimensions[0]) if len(dimensions) == 1 else pa.list_(pa.float32())


def _floats(whole: bytes) -> Any:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.float32(), len(whole) // 4, [None, pa.py_buffer(whole)])
