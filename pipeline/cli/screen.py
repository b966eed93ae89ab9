"""What commands put on the screen: words for people on stderr, one JSON object for programs on stdout."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import click

from pipeline.errors import IncompleteError
from pipeline.ground.visible import visible


def tell(text: str) -> None:
    """Last words are lost where the terminal is gone; the exit code must not be."""
    with suppress(OSError):
        click.echo(visible(text), err=True)


def print_text(text: str) -> None:
    """What was asked for, for people."""
    _write_out(visible(text))


def _write_out(text: str) -> None:
    """What was asked for, on standard output. Raises ``IncompleteError`` where that has no room for it."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # who reads it has seen enough: click's own case
    except OSError as exc:
        with suppress(OSError, ValueError):  # what is left in its buffer must not be tried again at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise IncompleteError(f"cannot write to standard output: {exc.strerror}; what was to be told is lost") from exc


def print_json(value: Any) -> None:
    """For a program."""
    import orjson

    _write_out(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
