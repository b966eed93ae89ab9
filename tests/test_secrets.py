"""Promise 9: a key shows nowhere, whoever echoes it, whatever stands in between; and what is asked stays where it belongs."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Pipeline, Server, clean_environment, read_jsonl, write_jsonl
from hostile import ANSWER, GOOD, delta, event, reply
from leaks import ALLOWED, FORMS, KEY, MARK, Watch, leaks_in, scan

from pipeline import Job, Wishes
from pipeline.client import Client, Connection
from pipeline.client.failures import disconnected
from pipeline.errors import JobError, RunFolderError
from pipeline.ground.secret import Secret
from pipeline.job.key import key_from_file, key_from_variable
from pipeline.progress.display import Silent
from pipeline.records import Reply
from pipeline.run import Run
from pipeline.simulator import Settings

# ---------------------------------------------------------------- the search itself


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["planted.log", "planted.gz", "planted.parquet", "journal.sqlite-wal"])
def test_a_planted_key_is_found(tmp_path: Path, form: bytes, name: str) -> None:
    text = b"\x00\x01" * 5000 + form + b" and more"
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text))
    elif name.endswith(".parquet"):
        table = pa.table({"content": ["nothing", form.decode("latin-1")]})
        pq.write_table(table, path, compression="zstd")
    else:
        path.write_bytes(text)
    assert scan(tmp_path, ()) == [str(path)]
    assert scan(tmp_path, (name,)) == []
    path.unlink()
    assert scan(tmp_path) == []


@pytest.mark.parametrize("before", range(4))
def test_a_key_is_found_in_base64_wherever_it_begins(before: int) -> None:
    for text in (KEY, f"Bearer {KEY}", f"{'u' * before}:{KEY}:more"):
        assert leaks_in(base64.b64encode(text.encode()))
    assert not leaks_in(base64.b64encode(b"no such thing as a key is in here"))


def test_words_of_children_and_errors_are_heard(monkeypatch: pytest.MonkeyPatch, no_key_shows: Watch) -> None:
    no_key_shows.stop()
    try:
        watch = Watch()
        watch.start()
        subprocess.run([sys.executable, "-c", f"print('{MARK}')"], capture_output=True, check=True)
        RunFolderError(f"the key is {MARK}")
        RunFolderError("the key is none of your business")
        watch.stop()
        assert [found.split(", in ")[0] for found in watch.found] == [
            "the stdout of a child",
            "the words of a RunFolderError",
        ]
    finally:
        no_key_shows.start()


def test_what_may_hold_a_key_is_named() -> None:
    assert len(ALLOWED) <= 5
    assert all("*" not in pattern.rpartition("/")[2].removesuffix("*.json").removesuffix("*") for pattern in ALLOWED)


# ---------------------------------------------------------------- who echoes it

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def spoken(say: list[bytes], seen: list[bytes]) -> Handler:
    """A server that notes what it was sent, and answers in these pieces."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)  # fmt: skip
            seen.append(head + await reader.readexactly(length))
            for piece in say:
                writer.write(piece)
                await writer.drain()
                if piece is not say[-1]:
                    await asyncio.sleep(0.02)
        finally:
            writer.close()

    return serve


def asked(say: list[bytes], *, stream: bool = False, base_url: str | None = None, **environment: str) -> tuple[Reply, list[bytes]]:  # fmt: skip
    """One request with a key to a server, or through it, and all that the server was sent."""
    seen: list[bytes] = []

    async def main() -> Reply:
        server = await asyncio.start_server(spoken(say, seen), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value.replace("PORT", str(port)))
            connection = Connection(
                base_url=base_url or f"http://127.0.0.1:{port}/v1", api_key=KEY, timeout_s=5, connect_timeout_s=2
            )
            async with server, Client(connection) as client:
                return await client.send("/chat/completions", b'{"a":1}', {}, stream=stream)

    return asyncio.run(main()), seen


HALF = len(KEY) // 2
WHOLE = f"your key {KEY} is odd"
ECHOES: dict[str, list[bytes]] = {
    "body": [reply(WHOLE.encode(), status=b"401 No")],
    "json": [reply(orjson.dumps({"error": {"message": WHOLE}}), status=b"400 No")],
    "an answer": [reply(ANSWER.replace(b'"yes"', orjson.dumps(WHOLE)))],
    "escaped": [reply(b'{"error": "' + "".join(f"\\u{ord(c):04x}" for c in KEY).encode() + b'"}', status=b"401 No")],
    "in a URL": [reply(orjson.dumps({"error": f"no /v1?key={quote(KEY, safe='')}"}), status=b"404 No")],
    "base64": [reply(orjson.dumps({"error": base64.b64encode(KEY.encode()).decode()}), status=b"401 No")],
    "base64 of user:key": [reply(orjson.dumps({"error": base64.b64encode(f"me:{KEY}".encode()).decode()}), status=b"401 No")],
    "base64 of a header": [reply(base64.b64encode(f"Authorization: Bearer {KEY}\r\n".encode()), status=b"401 No")],
    "pieces": [(whole := reply(WHOLE.encode(), status=b"401 No"))[: -HALF - 8], whole[-HALF - 8 :]],
    "headers": [reply(b"{}", b"x-request-id: " + KEY.encode(), b"retry-after: " + KEY.encode(), b"location: http://h/?k=" + KEY.encode(), status=b"503 No")],
    "a status line": [b"HTTP/1.1 401 no " + KEY.encode() + b"\r\nContent-Length: 0\r\n\r\n"],
    "no HTTP": [KEY.encode() + b" is no key\r\n\r\n"],
    "a bad header": [b"HTTP/1.1 200 OK\r\n" + KEY.encode() + b"\r\n\r\n"],
    "gzip": [reply(gzip.compress(WHOLE.encode()), b"Content-Encoding: gzip", status=b"401 No")],
}  # fmt: skip


@pytest.mark.parametrize("name", ECHOES)
def test_a_key_that_is_echoed_is_taken_out(name: str) -> None:
    found, seen = asked(ECHOES[name])
    assert KEY.encode() in seen[0], "the gateway itself is sent it"
    assert not leaks_in(repr(found)), found
    assert found.status or found.failure


def test_a_key_in_the_events_of_a_stream_is_taken_out() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    pieces = [event(delta(KEY[:HALF])), event(delta(KEY[HALF:])), event(delta("", "stop")), b"data: [DONE]\n\n"]
    found, _ = asked([head, *pieces], stream=True)
    assert found.json["choices"][0]["message"]["content"] == "[key]"
    assert not leaks_in(repr(found))


def _escaped(key: str, form: str = "\\u%04x") -> str:
    return "".join(form % ord(sign) for sign in key)


ODD = 'sk-"odd"/\\key-0123456789'
SPELLINGS: dict[str, Callable[[str], str]] = {
    "escaped": _escaped,
    "escaped in capitals": lambda key: _escaped(key, "\\u%04X"),
    "an event": lambda key: f'"}}\n\ndata: {{"error": "{_escaped(key)}"}}\n\ndata: {{"x": "',
    "JSON within JSON": lambda key: orjson.dumps(f'{{"error": "{_escaped(key)}"}}').decode()[1:-1],
    "a quoted key within JSON": lambda key: orjson.dumps(orjson.dumps({"error": key}).decode()).decode()[1:-1],
    "one letter": lambda key: _escaped(key[0]) + key[1:].replace("\\", "\\\\").replace('"', '\\"'),
    "percent": lambda key: _escaped(key, "%%%02x"),
    "percent in capitals": lambda key: _escaped(key, "%%%02X"),
    "hex": lambda key: key.encode().hex(),
    "hex in capitals": lambda key: key.encode().hex().upper(),
}


@pytest.mark.parametrize("key", [KEY, ODD])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_is_found_however_it_is_spelled(spelling: str, key: str) -> None:
    whole = '{"error": "no key %s here: 100%% \\u00e9 \\u0022 a\\/b"}'
    spelled = whole % SPELLINGS[spelling](key)
    found = Secret(key).out_of_body(spelled.encode(), is_answer=False).decode()
    assert found == whole % re.sub(r"(\\\\?u0040|%40|40|@)+", "[key]", SPELLINGS[spelling]("@@"))
    assert "[key]" in Secret(key).out_of(spelled)
    assert Secret("sk-another-key-0123456789").out_of_body(spelled.encode(), is_answer=False).decode() == spelled


def test_a_body_of_backslashes_is_no_trouble() -> None:
    body, began = b"\\" * (8 << 20) + b"\\u00", time.monotonic()
    assert Secret(ODD).out_of_body(body, is_answer=False) == body
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("at", range(465, 505, 4))
def test_half_a_key_is_not_left_where_words_are_cut(at: int) -> None:
    client = Client(Connection(base_url="http://h/v1", api_key=KEY, timeout_s=1, connect_timeout_s=1))
    failure = client._reply(disconnected("x" * at + KEY), 0.0).failure
    assert failure is not None
    assert not leaks_in(failure.message)
    assert MARK[:6] not in failure.message


# ---------------------------------------------------------------- who stands in between


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_key_follows_no_redirect(status: int) -> None:
    elsewhere: list[bytes] = []

    async def main() -> Reply:
        other = await asyncio.start_server(spoken([GOOD], elsewhere), "127.0.0.1", 0)
        port = other.sockets[0].getsockname()[1]
        to = b"location: http://localhost:%d/v1/chat/completions" % port
        first = await asyncio.start_server(
            spoken([reply(b"", to, b"connection: close", status=b"%d Moved" % status)], []), "127.0.0.1", 0
        )
        url = f"http://127.0.0.1:{first.sockets[0].getsockname()[1]}/v1"
        async with (
            other,
            first,
            Client(Connection(base_url=url, api_key=KEY, timeout_s=5, connect_timeout_s=2)) as client,
        ):
            await client.get("/models")
            return await client.send("/chat/completions", b"{}", {})

    assert asyncio.run(main()).status == status
    assert elsewhere == []


PROXY = f"http://me:{MARK}-proxy@127.0.0.1:PORT"


def test_a_proxy_is_sent_what_the_gateway_is_and_its_own_password(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = asked([GOOD], base_url="http://gateway.invalid/v1", http_proxy=PROXY)
    assert found.status == 200
    head = seen[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST http://gateway.invalid/v1/chat/completions HTTP/1.1")
    assert head.count(KEY.encode()) == 1
    assert f"Authorization: Bearer {KEY}".encode() in head
    assert b"Proxy-Authorization: Basic " + base64.b64encode(f"me:{MARK}-proxy".encode()) in head


@pytest.mark.parametrize("answer", [b"407 Who are you", b"502 " + KEY.encode(), b"200 OK"])
def test_a_proxy_of_https_gets_no_key_and_its_password_shows_nowhere(answer: bytes) -> None:
    found, seen = asked([b"HTTP/1.1 " + answer + b"\r\n\r\n"], base_url="https://gateway.invalid/v1", https_proxy=PROXY)
    assert found.failure is not None
    assert not found.failure.sent
    assert not leaks_in(repr(found))
    assert seen[0].startswith(b"CONNECT gateway.invalid:443 HTTP/1.1")
    assert KEY.encode() not in b"".join(seen)


@pytest.mark.parametrize("proxy", ["http://me:{mark}@127.0.0.1:1", "http://me:{mark}@no-such-proxy.invalid:80", "socks5://me:{mark}@127.0.0.1:1"])  # fmt: skip
def test_a_proxy_that_is_none_is_an_error_without_its_password(proxy: str) -> None:
    found, _ = asked([], base_url="http://gateway.invalid/v1", http_proxy=proxy.format(mark=f"{MARK}-proxy"))
    assert found.failure is not None
    assert not leaks_in(repr(found))


def test_a_netrc_neither_takes_the_place_of_the_key_nor_stops_a_run(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password other\n")
    netrc.chmod(0o600)
    found, seen = asked([GOOD], base_url="http://gateway.invalid/v1", http_proxy=PROXY, NETRC=str(netrc))
    assert found.status == 200
    assert f"Authorization: Bearer {KEY}".encode() in seen[0]


# ---------------------------------------------------------------- where it comes from


@pytest.mark.parametrize("space", ["\n", "\r\n", "  ", "\t\n\n"])
def test_space_around_a_key_is_no_part_of_it(tmp_path: Path, space: str) -> None:
    assert key_from_variable("MY_KEY", f"{space}{KEY}{space}", needed=True) == KEY
    path = tmp_path / "key"
    path.write_bytes((KEY + space).encode())
    path.chmod(0o600)
    assert key_from_file(path) == KEY


@pytest.mark.parametrize("value", [f"{KEY} x", f"{KEY}\nX-Evil: 1", f"{KEY}\u00e9", f"\ufeff{KEY}"])
def test_a_key_that_is_none_is_refused_unseen(tmp_path: Path, value: str) -> None:
    path = tmp_path / "key"
    path.write_text(value, encoding="utf-8")
    path.chmod(0o600)
    for read in (lambda: key_from_variable("MY_KEY", value, needed=True), lambda: key_from_file(path)):
        with pytest.raises(JobError) as caught:
            read()
        assert not leaks_in(str(caught.value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gateway.base_url", f"https://me:{KEY}@host/v1"),
        ("gateway.base_url", f"https://host/v1?key={KEY}"),
        ("gateway.api_key", KEY),
        ("gateway.api_key_env", KEY),
        ("api_key", KEY),
    ],
)
def test_a_job_holds_no_key_and_its_error_neither(key: str, value: str) -> None:
    settings = {"input": "in.jsonl", "output": "o.jsonl", "model": "m", "gateway.base_url": "http://h/v1", key: value}
    with pytest.raises(JobError) as caught:
        Job.load(None, overrides=settings)
    assert not leaks_in(str(caught.value) + repr(caught.value))
    assert "key" in str(caught.value)


def test_nothing_that_holds_a_key_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_API_KEY", KEY)
    job = Job.load(None, overrides={"input": "i.jsonl", "output": "o.jsonl", "model": "m", "gateway.base_url": "http://h/v1"})  # fmt: skip
    connection = Connection(base_url="http://h/v1", api_key=KEY, timeout_s=1, connect_timeout_s=1)
    things = [connection, Client(connection), job, job.api_key(), Run(job, Wishes(), display=Silent()), Secret(KEY), Settings(api_key=KEY)]  # fmt: skip
    for thing in things:
        assert not leaks_in(f"{thing!r} {thing!s}"), type(thing)
    assert not leaks_in(job.model_dump_json())


# ---------------------------------------------------------------- a run, from outside


@pytest.mark.parametrize("where", ["environment", "file", "job"])
def test_a_process_at_work_shows_no_key_and_leaves_no_core(
    tmp_path: Path, serve: Callable[..., Server], where: str
) -> None:
    server = serve("--latency", "0.2")
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{n}", "text": "x"} for n in range(6)])
    (tmp_path / "key").write_text(KEY + "\n")
    (tmp_path / "key").chmod(0o600)
    gateway: dict[str, str] = {"environment": "MY_KEY", "file": "key", "job": "key"}
    words = ["-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "sim/echo", "-p", "{{ text }}", "-c", "2"]  # fmt: skip
    if where == "environment":
        words += ["--api-key-env", gateway[where]]
    elif where == "file":
        words += ["--set", "gateway.api_key_file=key"]
    else:
        job = f'model = "sim/echo"\ninput = "in.jsonl"\noutput = "out.jsonl"\n[gateway]\nbase_url = "{server.url}"\napi_key_file = "key"\nconcurrency = 2\n[request]\nprompt = "{{{{ text }}}}"\n'
        (tmp_path / "of_file.toml").write_text(job)
        words = ["of_file.toml"]
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", *words],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean_environment(), **({"MY_KEY": KEY} if where == "environment" else {})},
    )
    until = time.monotonic() + 30
    while server.ledger()["totals"]["requests"] < 2 and child.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    process = Path("/proc") / str(child.pid)
    if process.exists():
        for name in ("cmdline", "comm", "stat"):
            assert not leaks_in((process / name).read_bytes()), name
        for task in (process / "task").iterdir():
            assert not leaks_in((task / "comm").read_bytes())
        limit = next(line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core"))
        assert limit.split()[4] in ("0", "1")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert scan(tmp_path, ("key",)) == []


ASKED, SAID = "what-only-the-prompt-says", "what-only-the-answer-says"


def test_what_is_asked_and_answered_is_in_journal_and_results_only(
    pipeline: Pipeline, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    answer = {**orjson.loads(ANSWER), "choices": [{"index": 0, "message": {"role": "assistant", "content": SAID}, "finish_reason": "stop"}]}  # fmt: skip
    server = serve(
        faults=[
            {
                "fault": 400,
                "match": "refused",
                "body": orjson.dumps({"error": {"message": "no", "code": "odd"}}).decode(),
            },
            {"fault": 503, "match": "late", "times": 1},
            {"fault": 200, "match": "fine", "body": orjson.dumps(answer).decode()},
        ]
    )
    rows: list[dict[str, Any]] = [
        {"id": f"r{n}", "text": f"{ASKED} {what}"} for n, what in enumerate(["fine", "refused", "late"])
    ]
    rows.append({"id": "r3", "text": None})
    write_jsonl(tmp_path / "in.jsonl", rows)
    ended = pipeline("run", "-i", "in.jsonl", "-o", "out.parquet", "--base-url", server.url, "-m", "sim/echo", "-p", "{{ text }}", "--id", "id", "--json")  # fmt: skip
    assert ended.code == 3, ended.err
    told = [pipeline(*words) for words in (("status", "out.parquet"), ("verify", "out.parquet"), ("export", "out.parquet", "-o", "x.jsonl"))]  # fmt: skip
    assert [one.code for one in told] == [0, 0, 0]
    for words in [ended.err, ended.out, *(one.err + one.out for one in told)]:
        assert ASKED not in words
        assert SAID not in words
    assert SAID in (tmp_path / "x.jsonl").read_text()
    assert read_jsonl(tmp_path / "x.jsonl")[0]["text"] == f"{ASKED} fine"
    folder = tmp_path / "out.parquet.run"
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in [*folder.iterdir(), tmp_path / "out.parquet", tmp_path / "x.jsonl", tmp_path / "x.jsonl.meta.json"]:
        assert path.stat().st_mode & 0o777 == 0o600, path
        if not path.name.startswith(("journal", "x.jsonl", "out.parquet")) or path.name.endswith(".meta.json"):
            assert ASKED.encode() not in path.read_bytes(), path
            assert SAID.encode() not in path.read_bytes(), path
    assert os.environ.get("HOME"), "and there is a home, or the state folder would be another"
