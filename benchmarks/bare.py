"""The least that can be done: an aiohttp + uvloop loop that posts every row and reads the answer's bytes. No more.

    python benchmarks/bare.py ROWS.jsonl URL SLOTS [chat|stream|embeddings]

No journal, no results, no retries, no checks. What ``pipeline`` is measured against.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from itertools import islice

import aiohttp
import orjson
import uvloop

PACK = 64


def bodies(path: str, mode: str) -> Iterator[bytes]:
    """The request bodies of all rows."""
    with open(path, "rb") as file:
        rows = map(orjson.loads, file)
        if mode == "embeddings":
            while texts := [row["text"] for row in islice(rows, PACK)]:
                yield orjson.dumps({"model": "m", "input": texts, "encoding_format": "base64"})
        else:
            more = {"stream": True} if mode == "stream" else {}
            for row in rows:
                yield orjson.dumps({"model": "m", "messages": [{"role": "user", "content": row["text"]}], **more})


async def main(path: str, url: str, slots: int, mode: str = "chat") -> None:
    """Post them all."""
    todo = bodies(path, mode)
    target = url + ("/embeddings" if mode == "embeddings" else "/chat/completions")
    headers = {"Content-Type": "application/json"}

    async def worker(session: aiohttp.ClientSession) -> None:
        for body in todo:
            async with session.post(target, data=body, headers=headers) as response:
                await response.read()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(slots):
            group.create_task(worker(session))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
