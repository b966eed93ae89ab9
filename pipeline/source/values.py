"""Python values for Arrow columns, without pandas: nanoseconds are cut to microseconds, maps become dicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What a value may raise on its way to Python: a year past 9999, an unknown time zone, bytes that are not UTF-8.
UNFIT = (ArithmeticError, LookupError, ValueError, NotImplementedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How one column turns into Python values: what to cast it to (``cast``), and whether it holds maps."""

    name: str
    type: Any
    cast: bool
    maps: bool


def column(field: Any) -> Column:
    """The plan for one field of a schema."""
    plain = _plain(field.type)
    return Column(name=field.name, type=plain, cast=not plain.equals(field.type), maps="map<" in str(plain))


def rows(batch: Any, columns: list[Column]) -> list[dict[str, Any]]:
    """One dict per row of ``batch``; ValueError names the column with a value that Python cannot hold."""
    names = [column.name for column in columns]
    values = [_values(array, column) for array, column in zip(batch.columns, columns, strict=True)]
    if not values:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _values(array: Any, column: Column) -> list[Any]:
    try:
        plain = array.cast(column.type, safe=False) if column.cast else array
        found: list[Any] = plain.to_pylist()
    except UNFIT as exc:
        what = f"column {column.name!r} ({array.type}) has a value Python cannot hold"
        raise ValueError(f"{what} ({exc}); change or drop it") from exc
    return [_with_dicts(value, column.type) for value in found] if column.maps else found


def _plain(kind: Any) -> Any:
    """``kind`` with no dictionaries (decoded) and no nanoseconds (Python has none), at any depth."""
    import pyarrow as pa

    is_ = pa.types
    if is_.is_dictionary(kind):
        return _plain(kind.value_type)
    if is_.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if is_.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if is_.is_time64(kind):
        return pa.time64("us")
    if is_.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if is_.is_map(kind):
        return pa.map_(_plain(kind.key_type), kind.item_field.with_type(_plain(kind.item_type)))
    if is_.is_fixed_size_list(kind):
        return pa.list_(_plain_item(kind), kind.list_size)
    if is_.is_large_list(kind):
        return pa.large_list(_plain_item(kind))
    return pa.list_(_plain_item(kind)) if is_.is_list(kind) else kind


def _plain_item(kind: Any) -> Any:
    return kind.value_field.with_type(_plain(kind.value_type))


def _with_dicts(value: Any, kind: Any) -> Any:
    """Maps, which Arrow gives as lists of pairs, as dicts; those whose keys are no strings stay pairs."""
    import pyarrow as pa

    is_ = pa.types
    if value is None:
        return None
    if is_.is_map(kind):
        pairs = [[key, _with_dicts(item, kind.item_type)] for key, item in value]
        return dict(pairs) if is_.is_string(kind.key_type) or is_.is_large_string(kind.key_type) else pairs
    if is_.is_struct(kind):
        return {field.name: _with_dicts(value[field.name], field.type) for field in kind}
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        return [_with_dicts(item, kind.value_type) for item in value]
    return value
