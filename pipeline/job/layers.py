"""The layers of a job before it is checked: the TOML file, what is laid over it, and where each layer's paths start."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pipeline.errors import JobError
from pipeline.ground.readable import read_text
from pipeline.ground.visible import visible

_DEEPEST = 64
_PATHS = (("input", "path"), ("output", "path"), ("request", "prompt_file"), ("gateway", "api_key_file"))
_RIVALS = (("request", {"prompt", "prompt_file"}), ("gateway", {"api_key_env", "api_key_file"}))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a job file. Raises ``JobError``."""
    hint = "" if path.suffix == ".toml" else "; a job file ends in .toml, the input is given with -i"
    try:
        return checked(tomllib.loads(read_text(path)), str(path))
    except FileNotFoundError:
        raise JobError(f"there is no job file {path} (looked in {Path.cwd()})") from None
    except IsADirectoryError:
        raise JobError(f"{path} is a folder; give the job's .toml file") from None
    except UnicodeDecodeError as exc:
        raise JobError(f"{path} is not UTF-8 text (byte {exc.start + 1}){hint}") from None
    except OSError as exc:
        raise JobError(f"cannot read the job file {path}: {exc.strerror}") from exc
    except tomllib.TOMLDecodeError as exc:
        words = "; text must stand in quotes" if str(exc).startswith("Invalid value") else ""
        raise JobError(f"{path} is not valid TOML: {exc}{hint or words}") from None
    except ValueError:  # of int()
        raise JobError(f"{path}: a whole number of more than 4,300 digits{hint}") from None
    except RecursionError:
        raise JobError(f"{path}: nested too deeply for a job{hint}") from None


def checked(tables: dict[str, Any], where: str) -> dict[str, Any]:
    """The tables, if all in them can be kept: no endless nesting, no half characters. Raises ``JobError``."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), tables)]
    while todo:
        path, value = todo.pop()
        key = visible(".".join(path)[:200])
        if len(path) > _DEEPEST:
            raise JobError(f"{where}: {key}: nested too deeply; expected at most {_DEEPEST} levels")
        if isinstance(value, dict):
            todo += [((*path, str(name)), member) for name, member in value.items()]
            todo += [((*path, str(name)), name) for name in value]
        elif isinstance(value, list):
            todo += [((*path, str(at)), item) for at, item in enumerate(value)]
        elif isinstance(value, str) and not _is_text(value):
            raise JobError(f"{where}: {key}: expected UTF-8 text, not {value[:200]!a}")
        elif isinstance(value, int) and abs(value) >= 2**64:
            raise JobError(f"{where}: {key}: expected a number of at most 64 bits")
    return tables


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def lay(tables: dict[str, Any], key: str | tuple[str, ...], value: Any) -> None:
    """Put the value of one key, dotted or as a path, into ``tables``."""
    *path, last = key.split(".") if isinstance(key, str) else key
    for part in path:
        inner = tables.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = tables[part] = {"preset" if part == "gateway" else "path": inner}
        tables = inner
    if last == "gateway" and isinstance(tables.get(last), dict):
        tables[last]["preset"] = value
    else:
        tables[last] = value


def merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Lay one layer over another; what it says in one of two ways takes the place of the other way, too."""
    for table, rivals in _RIVALS:
        have, given = below.get(table), above.get(table)
        if isinstance(have, dict) and isinstance(given, dict) and rivals & given.keys():
            for name in rivals - given.keys():
                have.pop(name, None)
    _merge(below, above)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        have = below.get(key)
        if key == "gateway":
            below[key] = {**_as_table(have, "preset"), **_as_table(value, "preset")}
        elif key in ("input", "output"):
            below[key] = {**_as_table(have, "path"), **_as_table(value, "path")}
        elif isinstance(value, dict) and isinstance(have, dict):
            _merge(have, value)
        else:
            below[key] = value


def _as_table(value: Any, key: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else {} if value is None else {key: value}


def anchor(tables: dict[str, Any], base: Path) -> None:
    """Make the paths of one layer absolute, relative to where that layer was written. Raises ``JobError``."""
    for table, key in _PATHS:
        if isinstance(tables.get(table), dict) and key in tables[table]:
            tables[table][key] = _absolute(tables[table][key], base, f"{table}.{key}")
        elif table in ("input", "output") and table in tables:
            tables[table] = _absolute(tables[table], base, f"{table}.{key}")
    if "run_dir" in tables:
        tables["run_dir"] = _absolute(tables["run_dir"], base, "run_dir")


def _absolute(text: Any, base: Path, key: str) -> Any:
    if not isinstance(text, str) or text in ("", "-"):
        return text
    if "\0" in text:
        raise JobError(f"{key}: a path cannot hold a NUL character")
    try:
        return os.path.normpath(base / Path(text).expanduser())
    except RuntimeError:
        raise JobError(f"{key}: {text}: there is no such home folder; write the path out") from None
