"""Images: found in every form, known by their content, sent as data URIs, and each row's own fault when they are not there."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Bench, read_jsonl

from pipeline import Job, run
from pipeline.errors import RowError, TemplateError
from pipeline.pool.backlog import MOST_BYTES, Backlog
from pipeline.records import CHAT, Request, Row
from pipeline.template import Images, Template

ROOT = Path(__file__).parent.parent
JPEG, GIF, WEBP = b"\xff\xd8\xff\xe0jpeg", b"GIF89a....", b"RIFF\x10\0\0\0WEBPVP8 "


def png(shade: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes([0, shade])))
        + chunk(b"IEND", b"")
    )


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def template(*, prompt: str | None = "what?", most: int = 16, most_bytes: int = 1000, **changes: Any) -> Template:
    settings: dict[str, Any] = {
        "family": "openai", "model": "m", "prompt": prompt, "system": None, "params": {}, "replace_model": False,
        "columns": ["image", "more"],
    }  # fmt: skip
    images = Images(["image", "more"], most=most, most_bytes=most_bytes)
    return Template(**{**settings, "images": images, **changes})


def composed(data: dict[str, Any], folder: Path = Path(), *, whole: bool = True, **changes: Any) -> Any:
    return template(**changes).compose(Row(custom_id=None, index=1, data=data), folder, whole=whole)


def urls(data: dict[str, Any], folder: Path = Path(), **changes: Any) -> list[str]:
    content = orjson.loads(composed(data, folder, **changes).body)["messages"][-1]["content"]
    assert content[0] == {"type": "text", "text": "what?"}
    return [part["image_url"]["url"] for part in content[1:]]


def test_every_form_of_an_image_goes_out_as_a_data_uri_and_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.jpg").write_bytes(png(1))  # its name lies
    forms: list[Any] = ["a.png", "b.jpg", str(tmp_path / "a.png"), png(1), uri(png(1)), uri(png(1), "image/gif"),
                        {"bytes": png(1), "path": None}, {"bytes": None, "path": "a.png"}, ["a.png"], '["a.png"]']  # fmt: skip
    for form in forms:
        assert urls({"image": form}, tmp_path) == [uri(png(1))], form
    assert len({composed({"image": form}, tmp_path).fingerprint for form in forms}) == 1
    assert {composed({"image": f}, tmp_path, whole=False).fingerprint for f in forms} == {
        composed({"image": "a.png"}, tmp_path).fingerprint
    }
    assert composed({"image": png(2)}).fingerprint != composed({"image": png(1)}).fingerprint


def test_types_are_told_by_the_first_bytes_and_urls_are_left_alone() -> None:
    assert urls({"image": [JPEG, GIF, WEBP], "more": "https://x.example/a.png"}) == [
        uri(JPEG, "image/jpeg"), uri(GIF, "image/gif"), uri(WEBP, "image/webp"), "https://x.example/a.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"image": "gone.png"}, "image_missing"),
        ({"image": None}, "image_missing"),
        ({"image": "", "more": []}, "image_missing"),
        ({"image": "."}, "image_missing"),
        ({"image": "a\0b"}, "image_missing"),
        ({"image": "text.png"}, "image_unknown_type"),
        ({"image": b"%PDF-1.7"}, "image_unknown_type"),
        ({"image": b"RIFF\x10\0\0\0WAVE"}, "image_unknown_type"),
        ({"image": "data:image/png;base64,?"}, "image_unknown_type"),
        ({"image": "data:text/plain,hello"}, "image_unknown_type"),
        ({"image": 5}, "image_unknown_type"),
        ({"image": "large.png"}, "image_too_large"),
        ({"image": png(1) + bytes(1000)}, "image_too_large"),
        ({"image": uri(png(1) + bytes(1000))}, "image_too_large"),
        ({"image": [png(1)] * 17}, "too_many_images"),
    ],
)
def test_an_image_that_cannot_be_sent_is_its_rows_error(data: dict[str, Any], code: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "large.png").write_bytes(png(1) + bytes(1000))
    messages = set()
    for whole in (True, False):
        with pytest.raises(RowError) as found:
            composed(data, tmp_path, whole=whole)
        assert found.value.code == code
        messages.add(found.value.message)
    assert len(messages) == 1, "the index and the run must see the same error"


def test_a_pipe_does_not_stop_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RowError, match="is no file"):
        composed({"image": "pipe.png"}, tmp_path)


def test_messages_of_the_row_get_the_images_too() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "see"}]}, {"role": "assistant", "content": "?"}]
    body = orjson.loads(
        composed({"image": png(1), "messages": messages}, prompt=None, columns=["image", "more", "messages"]).body
    )
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
    with pytest.raises(RowError, match="no user message"):
        composed({"image": png(1), "messages": messages[1:]}, prompt=None, columns=["image", "more", "messages"])


def test_images_can_be_embedded_where_there_is_no_prompt() -> None:
    made = composed({"image": png(1)}, prompt=None, endpoint="embeddings")
    assert (made.endpoint, orjson.loads(made.body)["input"]) == ("/embeddings", uri(png(1)))
    with pytest.raises(RowError, match="one image"):
        composed({"image": [png(1), png(2)]}, prompt=None, endpoint="embeddings")


def test_what_images_do_not_go_with_is_said() -> None:
    with pytest.raises(TemplateError, match=r"request\.images: the input has no column 'more'"):
        template(columns=["image", "text"])
    with pytest.raises(TemplateError, match="batch lines bring their own"):
        template(prompt=None, columns=["custom_id", "url", "body", "image", "more"])


def test_tokens_are_estimated_by_the_image_and_not_by_its_bytes(tmp_path: Path) -> None:
    made = composed({"image": png(1) + bytes(400_000)}, most_bytes=10**6)
    assert made.image_bytes > 500_000
    assert 1000 <= made.estimated_tokens < 1100


def test_the_index_holds_no_image_in_memory_and_reads_each_once(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(png(1))
        file.truncate(64 << 20)
    made = template(most_bytes=100 << 20)
    tracemalloc.start()
    row = Row(custom_id=None, index=1, data={"image": ["huge.png"] * 8})
    made.compose(row, tmp_path, whole=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_large_bodies_are_read_ahead_by_bytes() -> None:
    import asyncio

    def large(number: int) -> Request:
        return Request(custom_id=f"{number}", index=number, endpoint=CHAT, model="m", body=bytes(MOST_BYTES // 4),
                       fingerprint=b"", estimated_tokens=1)  # fmt: skip

    read = 0

    async def source() -> Any:
        nonlocal read
        for number in range(40):
            read += 1
            yield [large(number)]

    async def main() -> None:
        backlog = Backlog(most_waiting=100, low_water=100)
        feeding = asyncio.create_task(backlog.feed(source()))
        most = taken = 0
        while taken < 40:
            await asyncio.sleep(0)
            assert await backlog.get() is not None
            taken += 1
            most = max(most, read - taken)
        await feeding
        assert most <= 5

    asyncio.run(main())


# from end to end


def vision(bench: Bench, **changes: Any) -> dict[str, Any]:
    return {"request__images": ["image"], "request__prompt": "see {{ text }}", **changes}


def test_rows_with_images_resume_by_content(bench: Bench) -> None:
    for name in "abc":
        (bench.folder / f"{name}.png").write_bytes(png(ord(name)))
    rows = [{"id": name, "text": name, "image": f"{name}.png"} for name in "abcd"]
    bench.write(rows)
    summary, sent = bench.run(**vision(bench))
    assert (summary.exit_code, summary.completed, summary.failed, sent) == (3, 3, 1, 3)
    assert [row["error_code"] for row in bench.results()] == [None, None, None, "image_missing"]
    assert bench.results()[0]["content"] == "see a"
    assert bench.results()[0]["prompt_tokens"] > 80, "the simulator has seen an image"
    (bench.folder / "d.png").write_bytes(png(9))  # it came after all
    summary, sent = bench.run(**vision(bench))
    assert (summary.exit_code, sent) == (0, 1)
    (bench.folder / "other.png").write_bytes(png(ord("a")))
    bench.write([{**rows[0], "image": "other.png"}, *rows[1:]])  # the same picture under another name
    assert bench.run(**vision(bench))[1] == 0
    (bench.folder / "b.png").write_bytes(png(200))  # another picture under the same name
    from pipeline import Wishes

    assert bench.run(Wishes(accept_changes=True), **vision(bench))[1] == 1


def test_images_in_parquet(bench: Bench) -> None:
    table = pa.table({"id": ["a", "b"], "text": ["x", "y"], "image": [{"bytes": png(1), "path": "p"}, {"bytes": png(2), "path": None}]})  # fmt: skip
    pq.write_table(table, bench.folder / "in.parquet")
    changes = vision(bench, input__path=str(bench.folder / "in.parquet"), output__keep=["text"])
    summary, sent = bench.run(**changes)
    assert (summary.exit_code, sent) == (0, 2)


def test_images_verify_and_are_shown_by_their_digest(bench: Bench, pipeline: Callable[..., Any]) -> None:
    (bench.folder / "a.png").write_bytes(png(1))
    bench.write([{"id": "a", "text": "x", "image": "a.png"}])
    words = ["-i", "in.jsonl", "--id", "id", "-o", "out.jsonl", "--base-url", bench.server.url, "-m", "sim/echo", "-p", "see {{ text }}", "--set", "request.images=['image']"]  # fmt: skip
    shown = pipeline("try", *words)
    assert "user: see x\n[image blake2b:" in shown.out
    assert pipeline("run", *words).code == 0
    assert pipeline("verify", "out.jsonl").code == 0


def pixels(path: Path) -> bytes:
    data = path.read_bytes()
    at = data.index(b"IDAT")
    return zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at])])


def test_the_sample_pictures_are_drawn_anew_the_same(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "sample_data" / "draw.py"), str(tmp_path)], check=True)
    for drawn in sorted((tmp_path / "images").iterdir()):
        assert pixels(drawn) == pixels(ROOT / "sample_data" / "images" / drawn.name), drawn.name
    assert (tmp_path / "images.csv").read_bytes() == (ROOT / "sample_data" / "images.csv").read_bytes()


@pytest.mark.parametrize("name", ["describe_images", "embed_abstracts"])
def test_the_jobs_of_this_kind_run(name: str, tmp_path: Path) -> None:
    job = Job.load(ROOT / "jobs" / f"{name}.toml", overrides={"output.path": str(tmp_path / "out.jsonl")})
    summary = run(job)
    assert summary.exit_code == 0
    assert summary.total == len(read_jsonl(tmp_path / "out.jsonl"))
