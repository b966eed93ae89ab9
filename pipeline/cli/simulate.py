"""``pipeline simulate``: a gateway on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("simulate")
@click.option(
    "--dialect",
    type=click.Choice(["openai", "litellm", "lumen"]),
    default="openai",
    show_default=True,
    help="Which kind of gateway it is, as measured.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port on 127.0.0.1; 0 takes any free one.",
)
@click.option("--faults", type=click.Path(exists=True, dir_okay=False), help="Script of faults (TOML or JSON).")
@click.option("--latency", type=float, default=0.0, show_default=True, help="Median seconds an answer takes.")
@click.option(
    "--jitter", type=float, default=0.0, show_default=True, help="Spread of the latency (sigma of a lognormal)."
)
@click.option("--max-parallel", type=click.IntRange(min=1), help="Requests at once; more get 429.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of latencies and chances.")
def simulate_command(faults: str | None, latency: float, **given: Any) -> int:
    """Serve a simulated gateway on this machine, with a script of faults and a billing ledger at /ledger.

    \b
    Examples:
      pipeline simulate --port 8000
      pipeline simulate --port 8000 --dialect litellm
      pipeline simulate --port 8000 --faults faults.toml --latency 0.2 --max-parallel 5
    """
    import asyncio

    from pipeline.simulator import Faults, Settings, serve

    script = Faults.from_file(Path(faults)) if faults else Faults()
    settings = Settings(faults=script, latency_s=latency, **given)
    try:
        asyncio.run(serve(settings, lambda url: click.echo(f"serving on {url} (Ctrl-C ends)", err=True)))
    except KeyboardInterrupt:
        return 0
    return 0
