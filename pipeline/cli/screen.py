"""What commands put on the screen: words for people on stderr, one JSON object for programs on stdout."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from pipeline.visible import visible


def tell(text: str) -> None:
    """Last words are lost where the terminal is gone; the exit code must not be."""
    with suppress(OSError):
        click.echo(visible(text), err=True)


def print_text(text: str) -> None:
    """What was asked for, for people."""
    click.echo(visible(text))


def print_json(value: Any) -> None:
    """For a program."""
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
