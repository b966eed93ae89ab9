"""One Arrow type for each kept column, that takes every value of every file as it is; where none does, text of JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.ground.jsonio import dumps

JSON_TEXT = {b"pipeline": b"json"}
MOST_MEMBERS = 256  # objects with ever new keys would be as many columns
DEEPEST = 16  # Parquet readers stop at about 30 lists in each other
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, RecursionError)

Rows = Sequence[dict[str, Any]]


def schema_of_rows(stretches: Callable[[], Iterable[Rows]], names: Sequence[str]) -> pa.Schema:
    """The types of columns that come as Python values; walks the stretches a second time where a type had to widen."""
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.null())
    text: set[str] = set()
    widened: set[str] = set()
    for rows in stretches():
        for name in names:
            if name in text:
                continue
            before, found = types[name], _type_of([row.get(name) for row in rows])
            common = None if found is None else _common(before, found)
            if common is None or _members(common) > MOST_MEMBERS:
                text.add(name)
                continue
            if not all(pa.types.is_null(kind) or kind == common for kind in (before, found)):
                widened.add(name)
            types[name] = common
    text |= {name for name in names if _has_empty_struct(types[name])}
    fields = {name: pa.field(name, _without_nulls(types[name])) for name in names}
    if widened - text:
        text |= _unfit(stretches(), [fields[name] for name in widened - text])
    return pa.schema([_as_text(name) if name in text else fields[name] for name in names])


def _unfit(stretches: Iterable[Rows], fields: Sequence[pa.Field]) -> set[str]:
    """Which of these columns have a value that their type does not take as it is: 2**53 + 1 among fractions."""
    found: set[str] = set()
    for rows in stretches:
        for field in fields:
            if field.name not in found:
                try:
                    array([row.get(field.name) for row in rows], field)
                except _MISFITS:
                    found.add(field.name)
    return found


def schema_of_files(
    schemas: Sequence[pa.Schema], names: Sequence[str], batches: Callable[[], Iterable[pa.RecordBatch]]
) -> pa.Schema:
    """The types of columns that come from Parquet files, theirs; walks the batches only where the files disagree."""
    fields: dict[str, pa.Field] = {}
    doubtful: list[str] = []
    for name in names:
        found = [schema.field(name) for schema in schemas if name in schema.names]
        kinds = list(dict.fromkeys(field.type for field in found))
        kind = kinds[0] if len(kinds) == 1 else _common_to_all(kinds)
        metadata = {key: value for key, value in (found[0].metadata or {}).items() if key not in JSON_TEXT}
        nullable = len(found) < len(schemas) or any(field.nullable for field in found)
        fields[name] = _as_text(name) if kind is None else pa.field(name, kind, nullable, metadata or None)
        if kind is not None and not all(pa.types.is_null(one) or one == kind for one in kinds):
            doubtful.append(name)
    if doubtful:
        for batch in batches():
            for name in [name for name in doubtful if name in batch.schema.names and not is_text(fields[name])]:
                try:
                    batch.column(name).cast(fields[name].type)
                except _MISFITS:
                    fields[name] = _as_text(name)
    return pa.schema(list(fields.values()))


def array(column: Sequence[Any], field: pa.Field) -> pa.Array:
    """Python values as an array of this field."""
    if is_text(field):
        return pa.array([None if value is None else dumps(value).decode() for value in column], pa.string())
    return pa.array(column, field.type)


def is_text(field: pa.Field) -> bool:
    """Whether this column is text of JSON."""
    return bool(field.metadata == JSON_TEXT)


def _as_text(name: str) -> pa.Field:
    return pa.field(name, pa.string(), metadata=JSON_TEXT)


def _type_of(column: list[Any]) -> pa.DataType | None:
    if set(map(type, column)) == {str}:
        return pa.string()  # what most columns are; the rest of this takes four times as long
    try:
        kind = pa.infer_type(column)
        if _members(kind) > MOST_MEMBERS:
            return None  # before an array of it takes the memory
        pa.array(column, kind)
    except _MISFITS:
        return None
    return None if _hides_bools(column, kind) else kind


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other:
        return one
    left, right = pa.schema([pa.field("x", one)]), pa.schema([pa.field("x", other)])
    try:
        return pa.unify_schemas([left, right], promote_options="permissive").field("x").type
    except _MISFITS:
        return None


def _common_to_all(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    common: pa.DataType | None = pa.null()
    for kind in kinds:
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        common = None if common is None else _common(common, plain)
    return common


def _hides_bools(column: Sequence[Any], kind: pa.DataType) -> bool:
    """Arrow takes ``true`` among fractions for 1.0."""
    if pa.types.is_floating(kind):
        return bool in set(map(type, column))
    values = [value for value in column if value is not None]
    if pa.types.is_list(kind):
        return _hides_bools([item for value in values for item in value], kind.value_type)
    if pa.types.is_struct(kind):
        return any(_hides_bools([value.get(field.name) for value in values], field.type) for field in kind)
    return False


def _members(kind: pa.DataType, depth: int = 0) -> int:
    """How many columns a type really is; more than any limit when it is too deep."""
    if depth > DEEPEST:
        return MOST_MEMBERS + 1
    if pa.types.is_struct(kind):
        return sum(1 + _members(field.type, depth + 1) for field in kind)
    return 1 + _members(kind.value_type, depth + 1) if pa.types.is_list(kind) else 0


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields (an empty JSON object)."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    """What was null throughout becomes text: readers disagree on columns of no type."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _without_nulls(f.type)) for f in kind])
    return kind
