"""What one call asks for besides its job: options that are not settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.selection import Redo


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What this one call asks for besides the job. ``most`` stops after so many rows, the first ones or
    with ``sample`` some at random; ``publish`` False leaves the output alone. ``wait``: for a gateway that was never reached
    yet, too; ``keep_going``: although the first rows all fail alike. ``no_wait``: not for the window, end where it is closed;
    ``any_hour``: heed neither window nor deadline."""

    redo: Redo = field(default_factory=Redo)
    accept_changes: bool = False
    accept_failed: bool = False
    allow_model_change: bool = False
    most: int | None = None
    sample: bool = False
    publish: bool = True
    wait: bool = False
    keep_going: bool = False
    no_wait: bool = False
    any_hour: bool = False
