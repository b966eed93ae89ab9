"""A simulated gateway in a process of its own, with settings that the command line has none for.

``python simulated.py '{"dialect": "lumen", "latency_s": 0.1, "key": {"rpm": 30}, "faults": [...]}'``: the fields of ``Settings``.
``hour_after``: so many seconds after the start an hour passes on its clock at once, which brings in an hour's coins.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from pipeline.simulator import Faults, Key, Model, Settings, serve


def clock_that_jumps(after_s: float) -> Any:
    started = time.time()
    return lambda: time.time() + (3600.0 if time.time() >= started + after_s else 0.0)


def main(given: dict[str, Any]) -> None:
    after_s = given.pop("hour_after", None)
    if after_s is not None:
        given["clock"] = clock_that_jumps(after_s)
    settings = Settings(
        faults=Faults.from_list(given.pop("faults", [])),
        key=Key(**given.pop("key")) if "key" in given else None,
        models=tuple(Model(**model) for model in given.pop("models", [])),
        **given,
    )
    asyncio.run(serve(settings, lambda url: print(f"serving on {url}", file=sys.stderr, flush=True)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
