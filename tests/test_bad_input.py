"""Promise 10: what is wrong is said in plain words, before anything is sent, and nothing is left half done.

A case is files, a command, the exact words on stderr and the exit code. ``{tmp}`` stands for the folder, ``{url}`` for the
gateway, ``{...}`` for words of a library that may change with its version.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Ended, Pipeline, Server, read_jsonl

from pipeline import cli
from pipeline.ground.wording import plural
from pipeline.job import Job
from pipeline.presets import PRESETS
from pipeline.sink import TYPES
from pipeline.template.allowed import FILTERS

Files = Mapping[str, str | bytes | None]
ROWS = '{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n'
OK = '{"id": "ok", "text": "fine"}\n'
TWELVE = "".join(f'{{"id": "r{n}", "text": "fine"}}\n' for n in range(1, 13))
SEND = "--base-url {url} -m sim/echo"
JQ = "each line must hold one whole JSON object (jq -c . writes them so)"
AGAIN = "copy, download or write it again"
KNOWN = ".jsonl, .ndjson, .csv, .tsv (each also with .gz or .zst), .parquet, .pq"
ENDINGS = ".parquet, .pq, .jsonl, .ndjson, .csv, .jsonl.gz, .ndjson.gz, .csv.gz"
KEYS = ", ".join(sorted(set(Job.model_fields) - {"source"}))
NO_SECRETS = (
    "a job holds no secrets: put the key into an environment variable and name that with gateway.api_key_env, or into a "
    "file of mode 0600 with gateway.api_key_file"
)
NO_KEY_IN_URL = "a base URL must not hold a key, a password or a query; put the key in the environment"


@dataclass(frozen=True, kw_only=True)
class Case:
    """``files``: name -> content, or None for a folder; all are made with mode 0600 but those in ``readable``."""

    name: str
    run: str
    says: str
    files: Files = field(default_factory=dict)
    readable: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    code: int = 2


LINES = {
    "model": '"sim/echo"',
    "input": '"rows.jsonl"',
    "output": '"out.jsonl"',
    "gateway.base_url": '"{url}"',
    "request.prompt": '"{{ text }}"',
}


def toml(changes: Mapping[str, str | None]) -> str:
    """A good job file with these lines in place of its own; None takes one out."""
    return "".join(f"{key} = {value}\n" for key, value in {**LINES, **changes}.items() if value is not None)


def job(name: str, changes: Mapping[str, str | None] | str | bytes | None, says: str, **more: Any) -> Case:
    """A job file that is wrong."""
    content = toml(changes) if isinstance(changes, Mapping) else changes
    return Case(name=name, run="run job.toml", says=says, files={"job.toml": content, **more.pop("files", {})}, **more)


def base_url(url: str, says: str) -> Case:
    """A base URL that is wrong."""
    return job(f"base_url {url}", {"gateway.base_url": f'"{url}"'}, f"job.toml: gateway.base_url: {says}")


def key_file(name: str, says: str, **more: Any) -> Case:
    """A key file that is wrong."""
    return job(f"key file {name}", {"gateway.api_key_file": '"key"'}, f"gateway.api_key_file: {says}", **more)


JOB_FILE = [
    Case(name="missing", run="run job.toml", says="there is no job file job.toml (looked in {tmp})"),
    job("a folder", None, "job.toml is a folder; give the job's .toml file"),
    job("not UTF-8", b'model = "\xff"\n', "job.toml is not UTF-8 text (byte 10)"),
    job("text without quotes", {"input": "rows.jsonl"}, "job.toml is not valid TOML: Invalid value (at line 2, column 9); text must stand in quotes"),
    job("a key twice", 'model = "m"\nmodel = "n"\n', "job.toml is not valid TOML: Cannot overwrite a value (at line 2, column 12)"),
    Case(name="the input in its place", run="run rows.jsonl -o out.jsonl", says="rows.jsonl is not valid TOML: Invalid statement (at line 1, column 1); a job file ends in .toml, the input is given with -i"),
    job("empty", "", "job.toml: 2 problems\n  input is missing (or -i FILE)\n  output is missing (or -o FILE)"),
    Case(name="none, and no options", run="run", says="the options: 2 problems\n  input is missing (or -i FILE)\n  output is missing (or -o FILE)"),
    job("no output", {"output": None}, "job.toml: output is missing (or -o FILE)"),
    job("no input", {"input": None}, "job.toml: input is missing (or -i FILE)"),
    job("no model", {"model": None}, "model is missing (or -m MODEL): only OpenAI batch lines bring their own"),
    job("an unknown key", {"request.promt": '"x"'}, "job.toml: request.promt is not a key of a job; did you mean prompt?"),
    job("an unknown key like no other", {"zzz": "1"}, f"job.toml: zzz is not a key of a job; there are: {KEYS}"),
    job("an unknown key of a price", {'prices."m".input_per_milion': "1", 'prices."m".output_per_million': "1"}, "job.toml: 2 problems\n  prices.m.input_per_million is missing\n  prices.m.input_per_milion is not a key of a job; did you mean input_per_million?"),
    job("a number in quotes", {"gateway.concurrency": '"8"'}, "job.toml: gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not '8'"),
    job("a value for a table", {"request.prompt": None, "request": '"hi"'}, "job.toml: request: expected a table, not 'hi'"),
    job("many problems at once", {
        "model": "true", "input": "7", "output": '["x"]', "request.on_length": '"drop"', "request.params": '"x"', "request.replace_model": '"yes"',
        "limits.max_attempts": "0", "gateway.timeout": "-5", "gateway.ip_version": "5", "prices.m.input_per_million": "-1.5", "prices.m.output_per_million": "1", "run_dir": "3",
    }, "job.toml: 11 problems\n"
       "  gateway.timeout: expected a number over 0, not -5\n"
       "  gateway.ip_version: expected 'auto', 4 or 6, not 5\n"
       "  model: expected text in quotes, not true\n"
       "  input: expected a table, not 7\n"
       "  request.params: expected a table, not 'x'\n"
       "  request.replace_model: expected true or false, not 'yes'\n"
       "  request.on_length: expected 'keep' or 'fail', not 'drop'\n"
       "  limits.max_attempts: expected at least 1, not 0\n"
       "  output: expected a table, not a list\n"
       "  prices.m.input_per_million: expected at least 0, not -1.5\n"
       "  run_dir: expected a path in quotes, not 3"),
    job("negative", {"gateway.concurrency": "-1"}, "job.toml: gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not -1"),
    job("no number", {"gateway.timeout": "nan"}, "job.toml: gateway.timeout: expected a finite number, not nan"),
    job("an unknown preset", {"gateway.base_url": None, "gateway": '"opnai"'}, f"job.toml: gateway.preset: no preset is called 'opnai'; there are: {', '.join(sorted(PRESETS))}"),
    job("no base URL", {"gateway.base_url": None}, "job.toml: gateway.base_url: the preset 'openai' needs one (or --base-url URL), e.g. https://host/v1"),
    base_url("localhost:8000/v1", "expected a URL such as https://host/v1, not 'localhost:8000/v1'"),
    base_url("http://", "expected a URL such as https://host/v1, not 'http://'"),
    base_url("https://ho st/v1", "expected a URL such as https://host/v1, not 'https://ho st/v1'"),
    base_url("http://host:port/v1", "expected a URL such as https://host/v1, not 'http://host:port/v1'"),
    base_url("https://host/v1/chat/completions", "a base URL ends before the endpoint: take /chat/completions off its end"),
    base_url("https://sk-SECRET@host/v1", NO_KEY_IN_URL),
    base_url("user:sk-SECRET@host/v1", NO_KEY_IN_URL),
    base_url("https://host/v1?key=sk-SECRET", NO_KEY_IN_URL),
    job("a key in the job", {"gateway.api_key": '"sk-SECRET"'}, f"job.toml: gateway.api_key: {NO_SECRETS}"),
    job("a key on top of the job", {"api_key": '"sk-SECRET"'}, f"job.toml: api_key: {NO_SECRETS}"),
    job("a key for its variable's name", {"gateway.api_key_env": '"sk-SECRET"'}, "job.toml: gateway.api_key_env: expected the name of an environment variable that holds the key, not the key itself"),
    job("a key in a list", {"gateway.api_key_env": '["sk-SECRET"]'}, "job.toml: gateway.api_key_env: expected text in quotes"),
    job("a key's variable not set", {"gateway.api_key_env": '"MY_KEY"'}, "the environment variable MY_KEY is not set: export MY_KEY=... with your key for this gateway"),
    job("a key's variable empty", {"gateway.api_key_env": '"MY_KEY"'}, "the environment variable MY_KEY is not set: export MY_KEY=... with your key for this gateway", env={"MY_KEY": " "}),
    job("a key with a space", {"gateway.api_key_env": '"MY_KEY"'}, "the key in MY_KEY has spaces or characters no key has; copy it again", env={"MY_KEY": "sk SECRET"}),
    key_file("missing", "cannot read {tmp}/key: No such file or directory"),
    key_file("a folder", "cannot read {tmp}/key: Is a directory", files={"key": None}),
    key_file("open to others", "{tmp}/key can be read by others; do: chmod 600 {tmp}/key", files={"key": "sk-SECRET"}, readable=("key",)),
    key_file("empty", "{tmp}/key must hold one key and nothing else", files={"key": "\n"}),
    key_file("of two keys", "{tmp}/key must hold one key and nothing else", files={"key": "sk-SECRET\nsk-SECRET2\n"}),
    key_file("of bytes", "{tmp}/key holds something that is no key", files={"key": b"\xff\xfe"}),
    job("two sources of a key", {"gateway.api_key_env": '"MY_KEY"', "gateway.api_key_file": '"key"'}, "job.toml: gateway: api_key_env and api_key_file are both given; keep one"),
    job("two models", {"model": '"a,b"'}, "job.toml: model: one model a job: a comma would ask several models at once, and pay for all of them"),
    job("an empty model", {"model": '" "'}, "job.toml: model: must not be empty"),
    job("an empty input", {"input": '""'}, "job.toml: input.path: must not be empty"),
    job("an empty prompt", {"request.prompt": '""'}, "job.toml: request.prompt: must not be empty"),
    job("two prompts", {"request.prompt_file": '"p.txt"'}, "job.toml: request: prompt and prompt_file are both given; keep one"),
    job("a prompt file that is missing", {"request.prompt": None, "request.prompt_file": '"p.txt"'}, "request.prompt_file: cannot read {tmp}/p.txt: No such file or directory"),
    job("a prompt file that is not UTF-8", {"request.prompt": None, "request.prompt_file": '"p.txt"'}, "request.prompt_file: {tmp}/p.txt is not UTF-8 text (byte 4)", files={"p.txt": b"caf\xe9"}),
    job("a prompt file that is empty", {"request.prompt": None, "request.prompt_file": '"p.txt"'}, "request.prompt_file: {tmp}/p.txt is empty; it must hold the prompt template", files={"p.txt": "\n"}),
    job("a param that is no param", {"request.params": '{ model = "x" }'}, "job.toml: request.params: 'model' has a place of its own: model = ... at the top of the job, or -m MODEL"),
    job("messages as a param", {"request.params": "{ messages = [] }"}, "job.toml: request.params: 'messages' are made from request.prompt and request.system, or come in a column of that name"),
    job("stream as a param", {"request.params": "{ stream = true }"}, "job.toml: request.params: 'stream' is said in the gateway's table: stream = true"),
    job("a param that is no JSON", {"request.params": "{ temperature = nan }"}, "job.toml: request.params: temperature is no JSON value: expected text, a finite number of 64 bits, true, false, a list or a table"),
    job("a window of words", {"limits.window": '"at night"'}, 'job.toml: limits.window: expected two times of day such as "20:00-06:00", not \'at night\''),
    job("a window of no length", {"limits.window": '"20:00-20:00"'}, "job.toml: limits.window: '20:00-20:00' closes when it opens; leave it out to send at all hours"),
    job("a deadline of words", {"limits.deadline": '"tomorrow"'}, 'job.toml: limits.deadline: expected a time of day such as "06:00" or a while such as "8h" or "1h30m", not \'tomorrow\''),
    job("a deadline as TOML has times", {"limits.deadline": "06:00:00"}, "job.toml: limits.deadline: expected text in quotes, not 06:00:00"),
    job("an output of no format", {"output": '"out.xlsx"'}, f"job.toml: output.path: the ending of 'out.xlsx' names no format; use {ENDINGS}, or set output.format to one of parquet, jsonl, csv, batch"),
    job("no such home", {"input": '"~nobody-has-this-name/rows.jsonl"'}, "input.path: ~nobody-has-this-name/rows.jsonl: there is no such home folder; write the path out"),
    job("NUL in a path", {"output": '"out\\u0000.jsonl"'}, "output.path: a path cannot hold a NUL character"),
    job("a run folder in the output's place", {"run_dir": '"out.jsonl"'}, "job.toml: run_dir: {tmp}/out.jsonl is the output itself; the run folder needs a name of its own"),
]  # fmt: skip


def options(name: str, words: str, says: str, **more: Any) -> Case:
    """Options that are wrong, after a good job file."""
    return Case(name=name, run=f"run job.toml {words}", says=says, files={"job.toml": toml({}), **more.pop("files", {})}, **more)  # fmt: skip


OPTIONS = [
    options("--set without =", "--set limits.max_attempts", "--set takes KEY=VALUE, not 'limits.max_attempts'"),
    options("--set without a key", "--set =3", "--set takes KEY=VALUE, not '=3'"),
    options("--set of no key", "--set requst.prompt=x", "job.toml: requst is not a key of a job; did you mean request?"),
    options("an option and the job file are both wrong", "-c 0", "job.toml and the options: 2 problems\n  gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not 0\n  limits.max_cost: expected a number over 0, not -1", files={"job.toml": toml({"limits.max_cost": "-1"})}),
    options("--set of the wrong type", "--set gateway.concurrency=many", "the options: gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not 'many'"),
    options("--window upside down", "--window 20-6", 'the options: limits.window: expected two times of day such as "20:00-06:00", not \'20-6\''),
    options("--deadline of nothing", "--deadline 0h", 'the options: limits.deadline: expected a time of day such as "06:00" or a while such as "8h" or "1h30m", not \'0h\''),
    options("-c many", "-c many", "the options: gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not 'many'"),
    options("-c 0", "-c 0", "the options: gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not 0"),
    options("-c 1000000", "-c 1000000", "the options: gateway.concurrency: expected a whole number from 1 to 10,000, or \"auto\", not 1000000"),
    options("--api-key-env with a key", "--api-key-env sk-SECRET", "the options: gateway.api_key_env: expected the name of an environment variable that holds the key, not the key itself"),
    options("an empty --run-dir", "--run-dir ''", "the options: run_dir: must not be empty"),
    options("--redo without =", "--redo status", "--redo takes COLUMN=VALUE or COLUMN!=VALUE, not 'status'"),
    options("--redo of no column", "--redo finsh_reason=length", "--redo: there is no result column 'finsh_reason'; did you mean finish_reason?"),
    options("--redo of nothing like a column", "--redo x!=y", f"--redo: there is no result column 'x'; there are: {', '.join(TYPES)}"),
    options("--redo-ids missing", "--redo-ids ids.txt", "--redo-ids: cannot read ids.txt: No such file or directory; it must hold an id a line"),
    options("--redo-ids not UTF-8", "--redo-ids ids.txt", "--redo-ids: ids.txt is not UTF-8 text (byte 3)", files={"ids.txt": b"a\n\xff\n"}),
    options("--redo-ids of no row", "--id id --redo-ids ids.txt", "--redo-ids: ids.txt:3: no row of the input has the id 'zz'", files={"ids.txt": "a\n\nzz\n"}),
    Case(name="--retry-failed before the job", run="run --retry-failed job.toml", says="--retry-failed took job.toml for an error code: give the job file first, then --retry-failed"),
    Case(name="--partial and --failed", run="export out.jsonl -o x.jsonl --partial --failed", says="--partial and --failed are two different selections; give one"),
]  # fmt: skip


def parquet(table: pa.Table) -> bytes:
    """A Parquet file's bytes."""
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def rows(name: str, content: str | bytes | None, says: str, words: str = "", **more: Any) -> Case:
    """An input that is wrong; ``name`` is the file's, with a note after a space."""
    file = name.split(" ")[0]
    run = f"run -i {file} -o out.jsonl {SEND} -p '{{{{ text }}}}' {words}"
    return Case(name=name, run=run, says=says, files={file: content, **more.pop("files", {})}, **more)


def _corrupt() -> bytes:
    data = bytearray(parquet(pa.table({"text": [f"{number} {number * 7919:x}" for number in range(3000)]})))
    data[200:600] = b"\xff" * 400
    return bytes(data)


INPUT = [
    Case(name="missing", run=f"run -i no.jsonl -o out.jsonl {SEND}", says="{tmp}/no.jsonl: no such file or folder"),
    Case(name="no match", run=f"run -i 'no*.jsonl' -o out.jsonl {SEND}", says="{tmp}/no*.jsonl: no file matches this pattern"),
    rows("folder that is empty", None, f"{{tmp}}/folder: no input file in this folder; expected names that end in {KNOWN}"),
    rows("x.xlsx", "", f"x.xlsx: unknown ending; expected one of {KNOWN}"),
    rows("x.json", "[]", f"x.json: unknown ending; expected one of {KNOWN}; a JSON document becomes JSON Lines with: jq -c '.[]'"),
    rows("x.jsonl empty", "", "the input has no rows: {tmp}/x.jsonl"),
    rows("x.jsonl of blank lines", "\n \n", "the input has no rows: {tmp}/x.jsonl"),
    rows("x.csv empty", "", "x.csv: empty; the first line must hold the column names"),
    rows("x.csv of a header", "id,text\n", "the input has no rows: {tmp}/x.csv"),
    rows("x.parquet of no rows", parquet(pa.table({"text": pa.array([], pa.string())})), "the input has no rows: {tmp}/x.parquet"),
    rows("x.jsonl with a bad line", OK + '{"text": }\n', f"x.jsonl:2: not valid JSON at column 10: expecting value, found '}}'; {JQ}"),
    rows("x.jsonl with nothing but a bad line", '{"text": }\n', f"x.jsonl:1: not valid JSON at column 10: expecting value, found '}}'; {JQ}"),
    rows("x.jsonl torn off", OK + '{"text": "a', f"x.jsonl:2: not valid JSON at column 10: unterminated string starting at, found '\"a'; {JQ}"),
    rows("x.jsonl of anything but objects", OK + '[1]\n3\n"x"\nnull\ntrue\n', "\n".join(
        f"x.jsonl:{line}: found {what}, expected an object; {JQ}"
        for line, what in enumerate(("an array", "a number", "a string", "null", "true or false"), 2))),
    rows("x.jsonl with many bad lines", OK + "3\n" * 15, "\n".join(
        [f"x.jsonl:{line}: found a number, expected an object; {JQ}" for line in range(2, 12)] + ["these are the first 10; there may be more"])),
    rows("x.jsonl that is an array", '[{"text": 1}]', "x.jsonl: a JSON array, not JSON Lines; convert it with: jq -c '.[]'"),
    rows("x.jsonl in UTF-16", OK.encode("utf-16"), "x.jsonl: looks like UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    rows("x.jsonl in Latin-1", OK.encode() + b'{"text": "caf\xe9"}\n', f"x.jsonl:2: byte 14 (0xe9) is not UTF-8; save the file as UTF-8; {JQ}"),
    rows("x.jsonl with NaN", '{"text": NaN}\n', f"x.jsonl:1: not valid JSON at column 10: NaN is not a finite number; write null instead; {JQ}"),
    rows("x.jsonl.gz cut off", gzip.compress(OK.encode() * 1000)[:-20], f"x.jsonl.gz: damaged, cut off or not gzip (Compressed file ended before the end-of-stream marker was reached); {AGAIN}"),
    rows("x.jsonl.gz that is not", OK, "x.jsonl.gz: the name says gzip, the content is not compressed; give it the right ending"),
    rows("x.csv that is a spreadsheet", b"PK\x03\x04rest", "x.csv: the name says plain text, the content is zip; give it the right ending"),
    rows("x.parquet that is text", "hello", f"x.parquet: damaged, cut off or not parquet ({{...}}); {AGAIN}"),
    rows("x.parquet corrupt", _corrupt(), f"x.parquet: damaged, cut off or not parquet ({{...}}); {AGAIN}"),
    rows("x.parquet with a name twice", parquet(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])), "x.parquet: column names must differ; more than once: text"),
    rows("x.csv with wrong cells", "id,text\na,b\nc,d,e\nf\n",
         "x.csv:3: found 3 cells, expected 2 as in the header; a cell with a comma, a quote or a line break in it must be quoted\n"
         "x.csv:4: found 1 cell, expected 2 as in the header; a cell with a comma, a quote or a line break in it must be quoted"),
    rows("x.csv with a name twice", "text,text\na,b\n", "x.csv:1: column names must differ; more than once: text"),
    rows("x.csv with an open quote", 'id,text\na,b\nc,"d\ne,f\n', 'x.csv:3: the quote opened on this line is never closed; end the cell with a "'),
    rows("x.csv with semicolons", "id;text\na;b\n", "x.csv:1: found one column, 'id;text'; between the cells must stand a comma, not ';' (.csv: commas, .tsv: tabs)"),
    rows("x.tsv with commas", "id,text\na,b\n", "x.tsv:1: found one column, 'id,text'; between the cells must stand a tab, not ',' (.csv: commas, .tsv: tabs)"),
    rows("x.jsonl with an id twice", OK * 2, "x.jsonl:2: the id 'ok' stands already at x.jsonl:1\nids must be unique in the column 'id'; or leave out input.id (--id)", "--id id"),
    rows("x.jsonl with many ids twice", TWELVE * 2,
         "".join(f"x.jsonl:{12 + n}: the id 'r{n}' stands already at x.jsonl:{n}\n" for n in range(1, 11))
         + "ids must be unique in the column 'id'; or leave out input.id (--id)", "--id id"),
    Case(name="an id in two files", run=f"run -i 'x*.jsonl' -o out.jsonl {SEND} -p x --id id", says="x2.jsonl:1: the id 'ok' stands already at x1.jsonl:1\nids must be unique in the column 'id'; or leave out input.id (--id)", files={"x1.jsonl": OK, "x2.jsonl": OK}),
    rows("x.jsonl with ids that are none", '{"id": null}\n{"id": ""}\n{"id": [1]}\n{"text": 5}\n{"id": 1.5}\n{"id": true}\n',
         "x.jsonl:1: the id column 'id' is null; an id is text or a whole number\n"
         "x.jsonl:2: the id column 'id' is empty; an id is text or a whole number\n"
         "x.jsonl:3: the id column 'id' is a list; an id is text or a whole number\n"
         "x.jsonl:4: there is no column 'id' for the id; the columns are: text\n"
         "x.jsonl:5: the id column 'id' is the number 1.5; an id is text or a whole number\n"
         "x.jsonl:6: the id column 'id' is true or false; an id is text or a whole number", "--id id"),
    rows("x.parquet with an id that is null", parquet(pa.table({"id": ["a", None], "text": ["x", "y"]})), "x.parquet row 2: the id column 'id' is null; an id is text or a whole number", "--id id"),
    rows("x.jsonl without the id column", OK, "input.id: the input has no column 'ticket'; its columns are: id, text", "--id ticket"),
]  # fmt: skip

LINE: dict[str, Any] = {
    "custom_id": "x",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "sim/echo", "messages": [{"role": "user", "content": "hi"}]},
}


def prompt(name: str, text: str, says: str, words: str = "") -> Case:
    """A template that is wrong."""
    run = f"run -i rows.jsonl -o out.jsonl {SEND} -p {shlex.quote(text)} {words}"
    return Case(name=name, run=run, says=f"request.prompt, line {says}")


def batch(name: str, says: str, words: str = "", **change: Any) -> Case:
    """A good batch line and one that is wrong."""
    lines = json.dumps({**LINE, "custom_id": "ok"}) + "\n" + json.dumps({**LINE, **change}) + "\n"
    run = f"run -i lines.jsonl -o out.jsonl --base-url {{url}} {words}"
    says = says if words.startswith("--system") else f"lines.jsonl:2: {says}"
    return Case(name=f"batch line: {name}", run=run, says=says, files={"lines.jsonl": lines})


TEMPLATE = [
    prompt("a brace short", "Label this:\n{{ text }", "2: unexpected '}'"),
    prompt("an if without end", "a\n{% if text %}b", "2: Unexpected end of template. Jinja was looking for the following tags: 'elif' or 'else' or 'endif'. The innermost block that needs to be closed is 'if'."),
    prompt("no such filter", "{{ text | shout }}", f"1: No filter named 'shout' here; there are: {', '.join(sorted(FILTERS))}"),
    prompt("an include", "a\n{% include 'other.txt' %}", "2: a prompt is one template: no include, import, extends, autoescape"),
    prompt("a column misspelt", "a\nb\n{{ txt }}", "3: the input has no column 'txt' (did you mean 'text'?); its columns are: id, text"),
    prompt("no such column", "{{ zzz }}", "1: the input has no column 'zzz'; its columns are: id, text"),
    prompt("no braces", "text", "1: 'text' would be sent as it stands; write {{ text }} for the column"),
    prompt("single braces", "Label\n{text}", "2: {text} would be sent as it stands; write {{ text }} for the column"),
    Case(name="a column misspelt in the system message", run=f"run -i rows.jsonl -o out.jsonl {SEND} -p '{{{{ text }}}}' --system '{{{{ lang }}}}'", says="request.system, line 1: the input has no column 'lang'; its columns are: id, text"),
    Case(name="no prompt", run=f"run -i rows.jsonl -o out.jsonl {SEND}", says="request.prompt is missing (or -p TEMPLATE): the input has no column 'prompt' or 'messages'; its columns are: id, text"),
    batch("url", "the batch line's 'url' is '/v1/responses'; this version takes {...}", url="/v1/responses"),
    batch("method", "the batch line's 'method' is 'GET', not 'POST'", method="GET"),
    batch("body a list", "the batch line's 'body' is a list, not an object", body=[1]),
    batch("body null", "the batch line is not whole: the column 'body' is null", body=None),
    batch("body no JSON", "the batch line is not whole: the column 'body' is not JSON: not valid JSON at column 1: expecting value, found 'hi'", body="hi"),
    batch("stream", "the batch line asks for 'stream': true; take it out, the answer comes whole", body={**LINE["body"], "stream": True}),
    batch("no model", "the batch line names no model, and neither does the job; add model (or -m MODEL)", body={"messages": []}),
    batch("two models", "the batch line names several models, 'a,b': each would be paid for; name one", body={**LINE["body"], "model": "a,b"}),
    batch("another model", "the batch line names the model 'other', the job 'sim/echo': leave out the job's model, or say request.replace_model = true (--set request.replace_model=true)", "-m sim/echo", body={**LINE["body"], "model": "other"}),
    batch("an id twice", "the id 'ok' stands already at lines.jsonl:1\nids must be unique in the column 'custom_id'; or leave out input.id (--id)", custom_id="ok"),
    batch("a system message", "request.system: batch lines bring their own messages; take it out", "--system hi"),
]  # fmt: skip

CLASH = 'set output.prefix = "llm_" (--set output.prefix=llm_) to name the results llm_..., or leave the column out with output.keep'


def output(name: str, says: str, path: str = "out.jsonl", words: str = "", **files: str | bytes | None) -> Case:
    """A place for results that cannot be."""
    run = f"run -i rows.jsonl -o {path} {SEND} -p '{{{{ text }}}}' {words}"
    return Case(
        name=name, run=run, says=says, files={file.replace("__", "."): content for file, content in files.items()}
    )


OUTPUT = [
    rows("x.jsonl with a result's column", '{"text": "a", "model": "b"}\n', f"the input has a column called 'model', as the results have: {CLASH}"),
    rows("x.jsonl with results' columns further down", '{"text": "a"}\n{"text": "b", "cost": 1, "status": 2}\n', f"the input has columns called 'cost', 'status', as the results have: {CLASH}"),
    rows("x.jsonl with a column of the prefix's", '{"text": "a", "llm_cost": 1}\n', f"the input has a column called 'llm_cost', as the results have: {CLASH.replace('llm_', 'result_')}", "--set output.prefix=llm_"),
    output("keep of no column", "output.keep: the input has no column 'txt'; its columns are: id, text", words="--set 'output.keep=[\"txt\"]'"),
    output("a folder", "output.path: {tmp}/out.jsonl is a folder; name a file in it", out__jsonl=None),
    output("below a file", "output.path: {tmp}/rows.jsonl/out.jsonl cannot be written: {tmp}/rows.jsonl is a file, not a folder", "rows.jsonl/out.jsonl"),
    output("too long a name", f"output.path: {{tmp}}/{'x' * 300}.jsonl cannot be written: File name too long", "x" * 300 + ".jsonl"),
    output("the input itself", "the output {tmp}/rows.jsonl lies in the input {tmp}/rows.jsonl; put the results somewhere else", "rows.jsonl"),
    Case(name="in the input's folder", run=f"run -i . -o out.jsonl {SEND}", says="the output {tmp}/out.jsonl lies in the input {tmp}; put the results somewhere else"),
    Case(name="of the input's pattern", run=f"run -i '*.jsonl' -o out.jsonl {SEND}", says="the output {tmp}/out.jsonl lies in the input {tmp}/*.jsonl; put the results somewhere else"),
    output("a run folder that is a file", "cannot make the run folder {tmp}/out.jsonl.run: File exists; give another with --run-dir", out__jsonl__run="x"),
    output("--run-dir that is a file", "cannot make the run folder {tmp}/rows.jsonl: File exists; give another with --run-dir", words="--run-dir rows.jsonl"),
]  # fmt: skip

NOWHERE = "out.jsonl is no job file, no output of a run and no run folder (looked for {tmp}/out.jsonl.run too)"
NO_JOURNAL = "there is no journal at {tmp}/out.jsonl.run/journal.sqlite: nothing has been run there yet"

TARGET = [
    Case(name="status of nothing", run="status out.jsonl", says=NOWHERE),
    Case(name="export of nothing", run="export out.jsonl -o x.csv", says=NOWHERE),
    Case(name="verify of nothing", run="verify out.jsonl", says=NOWHERE),
    Case(name="status of a job that never ran", run="status job.toml", says="{tmp}/out.jsonl.run has no status yet: nothing has been sent there", files={"job.toml": toml({})}),
    Case(name="export of a job that never ran", run="export job.toml -o x.csv", says=NO_JOURNAL, files={"job.toml": toml({})}),
    Case(name="verify of a job that never ran", run="verify job.toml", says=NO_JOURNAL, files={"job.toml": toml({})}),
    Case(name="status of no job", run="status job.toml", says="there is no job file {tmp}/job.toml (looked in {tmp})"),
    Case(name="export of no format", run="export folder -o x.xlsx", says=f"the ending of 'x.xlsx' names no format; use {ENDINGS} or --format", files={"folder/status.json": "{}"}),
]  # fmt: skip

CASES = {"job": JOB_FILE, "options": OPTIONS, "input": INPUT, "template": TEMPLATE, "output": OUTPUT, "target": TARGET}


class Here:
    """The command line in this process, in a folder of its own, against a gateway that counts."""

    def __init__(self, folder: Path, gateway: Server, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.folder = folder
        self._gateway = gateway
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    @property
    def requests(self) -> int:
        """How many requests the gateway has seen."""
        return int(self._gateway.ledger()["totals"]["requests"])

    def put(self, files: Files) -> None:
        """Make these files; None is a folder."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            if content is None:
                path.mkdir()
            else:
                text = content.replace("{url}", self._gateway.url).encode() if isinstance(content, str) else content
                path.write_bytes(text)
                path.chmod(0o600)

    def words(self, run: str) -> list[str]:
        """The words of a command."""
        return shlex.split(run.replace("{url}", self._gateway.url))

    def run(self, command: str) -> Ended:
        """Run a command as the console script does."""
        self._monkeypatch.setattr(sys, "argv", ["pipeline", *self.words(command)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=out, err=err)

    def kept(self) -> dict[str, bytes | None]:
        """All there is outside run folders."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else None
            for path in self.folder.rglob("*")
            if not any(part.endswith(".run") for part in path.relative_to(self.folder).parts)
        }

    def same(self, found: str, says: str) -> bool:
        """Whether these are the words; shows the difference when they are not."""
        expected = says.replace("{tmp}", str(self.folder)).replace("{url}", self._gateway.url)
        if "{...}" not in expected:
            assert found == expected
        return re.fullmatch(re.escape(expected).replace(re.escape("{...}"), ".+"), found) is not None


@pytest.fixture
def here(tmp_path: Path, gateway: Server, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Here:
    """A folder with two good rows."""
    for name in [name for name in os.environ if name.startswith("PIPELINE_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    bench = Here(tmp_path, gateway, monkeypatch, capsys)
    bench.put({"rows.jsonl": ROWS})
    return bench


def _prepare(here: Here, case: Case, setenv: Callable[[str, str], None]) -> None:
    here.put(case.files)
    for name in case.readable:
        (here.folder / name).chmod(0o644)
    for name, value in case.env.items():
        setenv(name, value)


def _check(here: Here, case: Case, ended: Ended, before: dict[str, bytes | None]) -> None:
    assert here.same(ended.err, f"pipeline: {case.says}\n")
    assert (ended.code, ended.out) == (case.code, "")
    assert here.kept() == before, "files were made or changed"
    assert not list(here.folder.rglob("*.partial"))
    assert "SECRET" not in ended.err
    made = [path for path in here.folder.rglob("*.run/*") if path.is_file()]
    assert not any(b"SECRET" in path.read_bytes() for path in made)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{group}: {case.name}") for group, cases in CASES.items() for case in cases]
)
def test_what_is_wrong_is_said_and_nothing_is_sent(here: Here, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(here, case, monkeypatch.setenv)
    before, requests = here.kept(), here.requests
    ended = here.run(case.run)
    _check(here, case, ended, before)
    assert here.requests == requests


@pytest.mark.parametrize(
    "case", [pytest.param(cases[at], id=f"{group} {at}") for group, cases in CASES.items() for at in (0, -1)]
)
def test_a_process_of_its_own_says_the_same(here: Here, pipeline: Pipeline, case: Case) -> None:
    env: dict[str, str] = {}
    _prepare(here, case, env.__setitem__)
    before = here.kept()
    _check(here, case, pipeline(*here.words(case.run), env=env), before)


def test_there_are_enough_cases_and_no_two_are_one() -> None:
    names = [f"{group}: {case.name}" for group, cases in CASES.items() for case in cases]
    assert len(set(names)) == len(names) >= 45


# ---------------------------------------------------------------- what click says, in its versions' words


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run job.toml --concurency 4", r"Error: No such option:? '?--concurency'?[.,]? .*--concurrency.*"),
        ("rnu job.toml", r"Error: No such command 'rnu'\..*"),
        ("run job.toml other.toml", r"Error: Got unexpected extra argument \(other.toml\)"),
        ("run job.toml -m", r"Error: Option '-m' requires an argument\."),
        ("try job.toml -n 0", r"Error: Invalid value for '-n': 0 is not in the range x>=1\."),
        ("export out.jsonl", r"Error: Missing option '-o' / '--output'\."),
        ("status", r"Error: Missing argument 'TARGET'\."),
        ("simulate --port 99999", r"Error: Invalid value for '--port': 99999 is not in the range 0<=x<=65535\."),
    ],
)
def test_a_command_that_is_none(here: Here, command: str, says: str) -> None:
    before = here.kept()
    ended = here.run(command)
    assert ended.code == 2
    assert re.fullmatch(says, ended.err.strip().splitlines()[-1]), ended.err
    assert here.kept() == before


def test_standard_input_that_is_empty(here: Here, pipeline: Pipeline) -> None:
    ended = pipeline(*here.words(f"run -i - -o out.jsonl {SEND}"), stdin="")
    assert ended.err == "pipeline: standard input was empty; pipe JSON lines into: pipeline run -i - ...\n"
    assert ended.code == 2


def test_a_folder_for_results_that_cannot_be_written(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (here.folder / "results").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "results")
    ended = here.run(f"run -i rows.jsonl -o results/new/out.jsonl --run-dir r.run {SEND} -p x")
    path = "{tmp}/results/new/out.jsonl"
    assert here.same(
        ended.err,
        f"pipeline: output.path: {path} cannot be written: no permission to write in {{tmp}}/results\n",
    )
    assert ended.code == 2


# ---------------------------------------------------------------- options win over the job file, also over the other way to say it


def test_an_option_takes_the_place_of_its_rival_in_the_job_file(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-SECRET-x")
    lines = {"request.prompt": None, "request.prompt_file": '"gone.txt"', "gateway.api_key_file": '"gone"'}
    here.put({"job.toml": toml(lines)})
    assert here.run("run job.toml -q -p '{{ text }}' --api-key-env MY_KEY").code == 0


# ---------------------------------------------------------------- run folders


RUN = f"run -i rows.jsonl -o out.jsonl {SEND} --id id -q -p "
FIRST = RUN + "'{{ text }}'"


def _refused(here: Here, command: str, says: str, *, code: int = 2) -> None:
    """The command says this, and neither files nor journal nor gateway are touched."""
    before, requests = here.kept(), here.requests
    journal = here.folder / "out.jsonl.run" / "journal.sqlite"
    content = journal.read_bytes() if journal.is_file() else None
    ended = here.run(command)
    assert here.same(ended.err, f"pipeline: {says}\n")
    assert (ended.code, ended.out) == (code, "")
    assert here.kept() == before
    assert here.requests == requests
    assert content is None or journal.read_bytes() == content


def test_a_run_folder_of_another_input_or_output(here: Here) -> None:
    assert here.run(FIRST).code == 0
    here.put({"other.jsonl": ROWS})
    how = "give another --run-dir, or go on with it on purpose with --accept-changes"
    folder = "the run folder {tmp}/out.jsonl.run belongs to the"
    _refused(
        here,
        FIRST.replace("rows.jsonl", "other.jsonl"),
        f"{folder} input {{tmp}}/rows.jsonl, this job's is {{tmp}}/other.jsonl: {how}",
    )
    _refused(
        here,
        FIRST.replace("out.jsonl", "new.jsonl") + " --run-dir out.jsonl.run",
        f"{folder} output {{tmp}}/out.jsonl, this job's is {{tmp}}/new.jsonl: {how}",
    )


def test_done_rows_are_not_bought_again_by_accident(here: Here) -> None:
    assert here.run(FIRST).code == 0
    says = (
        "2 done rows changed (prompt, parameters, model or data) and would be sent and paid for again, of 2 done: to do "
        "that, add --accept-changes; nothing was sent"
    )
    before, requests = here.kept(), here.requests
    for _ in range(2):
        ended = here.run(RUN + "'Label: {{ text }}'")
        assert (ended.err, ended.code) == (f"pipeline: {says}\n", 2)
    assert (here.kept(), here.requests) == (before, requests)
    assert here.run(FIRST).code == 0
    assert here.requests == requests
    ended = here.run("verify out.jsonl")
    assert ended.code == 0, ended.err


def _newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


def _other(path: Path) -> None:
    path.unlink()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE bookmarks (url TEXT)")
    db.close()


def _scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


JOURNAL = "{tmp}/out.jsonl.run/journal.sqlite"
ANEW = "keep a copy of its folder, and give another --run-dir to start anew"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_newer, f"the journal {JOURNAL} has schema version 99, this pipeline reads versions 1 to 2: run it with the pipeline that wrote it, or give another --run-dir"),
        (_other, f"{JOURNAL} is an SQLite file, but no journal of pipeline's; give another --run-dir"),
        (lambda path: path.write_bytes(bytes(range(256)) * 32), f"the journal {JOURNAL} is damaged (file is not a database): {ANEW}"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), f"the journal {JOURNAL} is damaged (database disk image is malformed): {ANEW}"),
        (_scribbled, f"the journal {JOURNAL} is damaged (database disk image is malformed): {ANEW}"),
        (_a_folder, f"{JOURNAL} is no file; give another --run-dir"),
    ],
    ids=["newer", "other", "garbage", "cut off", "scribbled", "folder"],
)  # fmt: skip
def test_a_journal_that_is_none_stays_as_it_is(here: Here, change: Callable[[Path], None], says: str) -> None:
    assert here.run(FIRST).code == 0
    journal = here.folder / "out.jsonl.run" / "journal.sqlite"
    for name in ("journal.sqlite-wal", "journal.sqlite-shm"):
        journal.with_name(name).unlink(missing_ok=True)
    change(journal)
    for command in (FIRST, "export out.jsonl -o x.csv"):
        _refused(here, command, says)
    ended = here.run("verify out.jsonl")
    assert ended.code == (6 if "is damaged" in says else 2)
    assert here.same(ended.err.split(": ", 1)[1][: len(says.replace("{tmp}", str(here.folder)))] + "\n", says + "\n")


@pytest.mark.parametrize("content", [b"no table at all", None], ids=["garbage", "folder"])
def test_an_in_flight_table_that_is_none(here: Here, content: bytes | None) -> None:
    here.put({"out.jsonl.run/inflight": content})
    says = (
        "{tmp}/out.jsonl.run/inflight is no in-flight table of this version: run it with the pipeline that wrote it, or give "
        "another --run-dir"
    )
    _refused(here, FIRST, says)


def test_a_status_that_is_none(here: Here) -> None:
    here.put({"out.jsonl.run/status.json": "[]"})
    _refused(here, "status out.jsonl", "the status in {tmp}/out.jsonl.run is not one of pipeline's")


# ---------------------------------------------------------------- exports


def test_an_export_that_would_be_incomplete(here: Here) -> None:
    assert here.run(FIRST.replace("run", "try", 1) + " -n 1").code == 0
    _refused(
        here,
        "export out.jsonl -o x.csv",
        "1 row has no outcome yet: run the job again first, or export what is there with --partial",
        code=75,
    )
    assert here.run("export out.jsonl -o x.csv --partial").code == 0


def test_an_export_over_the_input_or_to_no_place(here: Here) -> None:
    assert here.run(FIRST).code == 0
    here.put({"folder.csv": None})
    lies = "lies in the input {tmp}/rows.jsonl; put the results somewhere else"
    _refused(here, "export out.jsonl -o rows.jsonl", f"the output {{tmp}}/rows.jsonl {lies}")
    (here.folder / "link.jsonl").symlink_to("rows.jsonl")
    _refused(here, "export out.jsonl -o link.jsonl", f"the output {{tmp}}/link.jsonl {lies}")
    _refused(
        here, "export out.jsonl -o folder.csv", "cannot write results to {tmp}/folder.csv: it is a folder; name a file"
    )
    _refused(
        here,
        "export out.jsonl -o rows.jsonl/x.csv",
        "cannot write results to {tmp}/rows.jsonl/x.csv: {tmp}/rows.jsonl is a file, not a folder",
    )


def test_an_export_of_an_input_that_changed_or_went(here: Here) -> None:
    assert here.run(FIRST).code == 0
    here.put({"rows.jsonl": ROWS + OK})
    _refused(
        here,
        "export out.jsonl -o x.csv",
        "{tmp}/rows.jsonl is not as it was when it was last run: run the job again first, or leave the input out with "
        "--results-only",
    )
    (here.folder / "rows.jsonl").unlink()
    gone = "{tmp}/rows.jsonl: no such file or folder; if the input has moved, say where it is now with -i FILE"
    _refused(here, "export out.jsonl -o x.csv", gone)
    _refused(here, "verify out.jsonl", gone)
    assert here.run("export out.jsonl -o x.csv --results-only").code == 0
    assert len((here.folder / "x.csv").read_text().splitlines()) == 3


def test_an_input_that_moved_must_be_the_same(here: Here) -> None:
    assert here.run(FIRST).code == 0
    here.put({"moved.jsonl": ROWS, "other.jsonl": ROWS.replace("two", "TWO")})
    (here.folder / "rows.jsonl").unlink()
    assert here.run("export out.jsonl -o x.jsonl -i moved.jsonl").code == 0
    assert [row["text"] for row in read_jsonl(here.folder / "x.jsonl")] == ["one", "two"]
    assert here.run("verify out.jsonl -i moved.jsonl").code == 0
    says = "{tmp}/other.jsonl:2 is not the row that was indexed there: run the job again first, or leave the input out with --results-only"
    _refused(here, "export out.jsonl -o y.jsonl -i other.jsonl", says)
    says = "the last run read 1 input file, here are 2: name the same ones with -i"
    _refused(here, "export out.jsonl -o y.csv -i '[mo]*e*.jsonl'", says)


# ---------------------------------------------------------------- what is only one row's fault fails that row


BAD_JSON = "expecting property name enclosed in double quotes, found the end of the line"
NULL = "the column 'text' is null; write {{ text or '' }} to allow that"
MESSAGES = "the column 'messages' must be a list of objects with 'role' and 'content'"
FITS_NOT = "the template does not fit this row: "


@pytest.mark.parametrize(
    ("template", "bad"),
    [
        ("{{ text }}", [({"text": None}, "null_field", NULL), ({}, "null_field", NULL)]),
        ("{{ text.upper() }}", [({"text": 5}, "template_error", FITS_NOT + "a number has no 'upper'")]),
        ("{{ text }}{{ 1 / (n or 1) }}", [({"text": "x", "n": "y"}, "template_error", FITS_NOT + "unsupported operand type(s) for /: 'int' and 'str'")]),
        ("{{ text }}", [
            ({"text": "x", "params": [1]}, "bad_params", "the column 'params' is a list, not an object"),
            ({"text": "x", "params": "{"}, "bad_params", f"the column 'params' is not JSON: not valid JSON at column 2: {BAD_JSON}"),
            ({"text": "x", "params": {"stream": True}}, "bad_params", "the column 'params' must not set 'stream'"),
            ({"text": "x", "params": {"model": "a,b"}}, "bad_params", "the column 'params' sets 'model' to 'a,b', not the name of one model"),
        ]),
        (None, [
            ({"messages": None}, "null_field", "the column 'messages' is null"),
            ({"messages": "hi"}, "bad_messages", "the column 'messages' is not JSON: not valid JSON at column 1: expecting value, found 'hi'"),
            ({"messages": []}, "bad_messages", MESSAGES),
            ({"messages": [{"content": "hi"}]}, "bad_messages", MESSAGES),
        ]),
    ],
    ids=["null", "template", "arithmetic", "params", "messages"],
)  # fmt: skip
def test_a_bad_row_fails_and_the_others_succeed(
    here: Here, template: str | None, bad: list[tuple[dict[str, Any], str, str]]
) -> None:
    good: dict[str, Any] = {"id": "good", "text": "hi", "n": 1, "messages": [{"role": "user", "content": "hi"}]}
    table = [good, *({"id": f"bad{number}", **row} for number, (row, _, _) in enumerate(bad)), {**good, "id": "last"}]
    here.put({"table.jsonl": "".join(json.dumps(row) + "\n" for row in table)})
    requests = here.requests
    words = "" if template is None else f"-p {shlex.quote(template)}"
    ended = here.run(f"run -i table.jsonl -o out.jsonl --id id {SEND} {words}")
    assert ended.code == 3
    assert "Traceback" not in ended.err
    found = read_jsonl(here.folder / "out.jsonl")
    assert [row["custom_id"] for row in found] == [row["id"] for row in table]
    assert [row["status"] for row in found] == ["succeeded", *("failed" for _ in bad), "succeeded"]
    assert [(row["error_code"], row["error_message"]) for row in found[1:-1]] == [(code, says) for _, code, says in bad]
    assert all(row["attempts"] == 0 and row["content"] is None and row["cost"] is None for row in found[1:-1])
    assert here.requests == requests + 2
    assert plural(len(bad), "row") + " failed" in ended.err
    assert bad[0][2] in ended.err
