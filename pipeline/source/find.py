"""What an input path means: a file, a pattern, or a folder."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from pipeline.errors import InputError
from pipeline.source.file import Compression, Format, InputFile, shown

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = ".jsonl, .ndjson, .csv, .tsv (each also with .gz or .zst), .parquet, .pq"


def find(spec: str, *, base: Path) -> list[InputFile]:
    """The input files ``spec`` names, each once, sorted by path.

    ``spec`` is a file, a pattern (``*``, ``?``, ``[a-z]``, ``**``) or a folder, relative to ``base``. A folder stands
    for all files below it with a known ending; hidden names, names that start with ``_`` and run folders (``*.run``)
    are passed over.
    """
    try:
        unique: dict[str, Path] = {}
        for path in _paths(spec, base.absolute()):
            # A link beside the file it points to (latest.jsonl) would double every row.
            unique.setdefault(os.path.realpath(path), path)
        return [_input_file(path) for path in unique.values()]
    except OSError as exc:
        _refuse(exc)


def _paths(spec: str, base: Path) -> list[Path]:
    if not spec.strip():
        raise InputError("the input path is empty; name a file, a pattern or a folder")
    path = base / _expanded(spec)
    if path.is_dir():
        paths = sorted(found for found in _walk(path, _set_aside) if _kind(found.name))
        expected = f"no input file in this folder; expected names that end in {ENDINGS}"
    elif path.exists():
        return [_without_dots(path)]
    elif any(sign in spec for sign in "*?["):
        paths = sorted(_matches(_expanded(spec), base))
        expected = "no file matches this pattern" + ("" if _expanded(spec).is_absolute() else f" (looked in {base})")
    else:
        looked = "" if path == Path(spec) else f" (looked for {path})"
        raise InputError(f"{spec}: no such file or folder{looked}")
    if not paths:
        raise InputError(f"{spec}: {expected}")
    return [_without_dots(path) for path in paths]


def _expanded(spec: str) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError as exc:
        raise InputError(f"{spec}: no such home folder; write the path out") from exc


def _without_dots(path: Path) -> Path:
    # Only where needed: the user's own name for a folder (a link, often) is the one to show.
    return path.parent.resolve() / path.name if ".." in path.parts else path


def _walk(folder: Path, apart: Callable[..., bool]) -> Iterator[Path]:
    """Files below ``folder`` but those set ``apart``; links to folders are followed, but none is entered twice."""
    entered: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in entered else sorted(name for name in folders if not apart(name, folder=True))
        if real not in entered:
            yield from (Path(root, name) for name in names if not apart(name))
        entered.add(real)


def _hidden(name: str, *, folder: bool = False) -> bool:
    return name.startswith(".") or (folder and name.endswith(".run"))


def _set_aside(name: str, *, folder: bool = False) -> bool:
    return name.startswith("_") or _hidden(name, folder=folder)


def _matches(pattern: Path, base: Path) -> Iterator[Path]:
    if "**" in pattern.parts:
        yield from _matches_below(base / pattern)
        return
    # Path.glob would match hidden names and take no absolute pattern.
    for match in glob.glob(str(pattern), root_dir=base, recursive=True):  # noqa: PTH207 - Path.glob knows no root_dir here
        # A wildcard must not feed the results of earlier runs back in; a run folder spelled out is meant.
        run_folder = any(part.endswith(".run") and part not in pattern.parts for part in Path(match).parts[:-1])
        if not run_folder and not (base / match).is_dir():
            yield base / match


def _matches_below(pattern: Path) -> Iterator[Path]:
    """``**``: glob goes round in links to folders that hold them; here none is entered twice."""
    at = pattern.parts.index("**")
    for top in glob.glob(str(Path(*pattern.parts[:at]))):  # noqa: PTH207 - hidden names are passed over here
        for path in _walk(Path(top), _hidden):
            if matches(path.relative_to(top).parts, pattern.parts[at:]):
                yield path


def matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path fit those of a pattern: ``**`` is any number of folders, and no sign stands for a slash."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        rest = pattern[1:]
        return not rest or any(matches(parts[at:], rest) for at in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _input_file(path: Path) -> InputFile:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{shown(path)}: the name is not UTF-8, so that no journal can hold it; rename it") from None
    kind = _kind(path.name)
    if kind is None:
        also = "; a JSON document becomes JSON Lines with: jq -c '.[]'" if path.suffix.lower() == ".json" else ""
        raise InputError(f"{shown(path)}: unknown ending; expected one of {ENDINGS}{also}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{shown(path)}: not a regular file; the input is read more than once, so save it to a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{shown(path)}: Permission denied; check the path and its rights")
    return InputFile(path=path, format=kind[0], compression=kind[1])


def _kind(name: str) -> tuple[Format, Compression | None] | None:
    stem, dot, ending = name.lower().rpartition(".")
    compression = COMPRESSIONS.get(dot + ending)
    if compression:
        stem, dot, ending = stem.rpartition(".")
    form = FORMATS.get(dot + ending) if stem else None
    return None if form is None or (compression and form == "parquet") else (form, compression)


def _refuse(exc: OSError) -> NoReturn:
    path = shown(Path(os.fsdecode(exc.filename))) if exc.filename else "the input"
    raise InputError(f"{path}: {exc.strerror}; check the path and its rights") from exc
