"""A gateway that says what it is told to say: canned replies by method and path, on a real port; and measured shapes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

Canned = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Canner:
    """``replies["GET /v1/models"] = (200, {...})``; what is not there is a 404. ``seen`` lists what was asked."""

    def __init__(self, replies: dict[str, Canned]) -> None:
        self.replies = replies
        self.seen: list[str] = []
        self.url = ""

    @property
    def paid(self) -> int:
        """How many requests were sent that cost something."""
        return sum(asked.startswith("POST ") for asked in self.seen)

    def charge(self) -> None:
        """What a key has spent moves with each request, at once, and by more than any of these answers costs."""
        status, value, *headers = self.replies.get("GET /key/info", (404, None))
        if status == 200 and isinstance(value, dict):
            info = value["info"] | {"spend": value["info"]["spend"] + 1.0}
            self.replies["GET /key/info"] = (status, value | {"info": info}, *headers)


@contextmanager
def canned(replies: dict[str, Canned]) -> Iterator[Canner]:
    """Serve while the block runs."""
    canner = Canner(replies)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {self.path}"
            canner.seen.append(asked)
            status, value, *headers = canner.replies.get(asked, (404, {"detail": "Not Found"}))
            body = value if isinstance(value, bytes) else orjson.dumps(value)
            self.send_response(status)
            kind = "text/html" if body.startswith(b"<") else "application/json"
            for name, text in {"Content-Type": kind, "Content-Length": str(len(body)), **dict(*headers)}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            canner.charge()
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    canner.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield canner
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(model: str = "m", usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """A chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
        "usage": usage or {"prompt_tokens": 1000, "completion_tokens": 2000, "total_tokens": 3000},
    }


def deployment(name: str, upstream: str, **info: Any) -> dict[str, Any]:
    """One entry of LiteLLM's ``/model/info``."""
    known = {"id": "54c2", "mode": "chat", "key": upstream, "input_cost_per_token": None, "output_cost_per_token": None,
             "cache_read_input_token_cost": None, "max_input_tokens": 8192, "max_output_tokens": 2048, "max_tokens": 2048}  # fmt: skip
    return {
        "model_name": name,
        "litellm_params": {"model": upstream, "api_base": "http://x"},
        "model_info": known | info,
    }


PRICED = {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "cache_read_input_token_cost": 7.5e-08}
ZERO = {"input_cost_per_token": 0, "output_cost_per_token": 0.0}


def litellm(**changes: Canned) -> dict[str, Canned]:
    """A LiteLLM proxy as measured: four models, a key with a budget. ``models=``, ``info=``, ``key=``, ``chat=`` change it."""
    names = ["lbl/cborg-chat", "lbl/cborg-mini", "lab/priced", "nomic-embed-text"]
    data = [{"id": name, "object": "model", "created": 1677610602, "owned_by": "openai"} for name in names]
    info = [
        deployment("lbl/cborg-chat", "hosted_vllm/gemma-4", supports_prompt_caching=True),
        deployment("lbl/cborg-mini", "hosted_vllm/mini", **ZERO),
        deployment("lab/priced", "openai/priced-1", **PRICED),
        deployment("lab/restricted", "openai/restricted-1", **PRICED),
        deployment("nomic-embed-text", "hosted_vllm/nomic", mode="embedding"),
    ]
    return {
        "GET /v1/models": changes.get("models", (200, {"data": data, "object": "list"})),
        "GET /model/info": changes.get("info", (200, {"data": info})),
        "GET /key/info": changes.get("key", (200, {"key": "1a00", "info": key_facts()})),
        "POST /chat/completions": changes.get("chat", (200, completion())),
    }


def key_facts(**changes: Any) -> dict[str, Any]:
    """The ``info`` of LiteLLM's ``/key/info``."""
    return {
        "key_name": "sk-...l__Q", "key_alias": None, "spend": 0.25, "max_budget": 20.0, "budget_duration": "30d",
        "budget_reset_at": "2026-12-01T00:00:00Z", "expires": None, "models": [], "user_id": "me",
        "max_parallel_requests": 5, "rpm_limit": None, "tpm_limit": None, "blocked": None, "status": "active",
    } | changes  # fmt: skip


def lumen_model(name: str = "dummy", **changes: Any) -> dict[str, Any]:
    """One entry of Lumen's ``/v1/models``."""
    return {
        "id": name, "object": "model", "created": 1795307973, "owned_by": "lumen", "parent": None, "root": f"up-{name}",
        "max_model_len": 8192, "status": "ok", "instances": {"configured": 1, "healthy": 1},
        "requests": {"last_minute": 4, "last_hour": 452, "last_day": 452}, "input_cost_per_million": 5.0,
        "output_cost_per_million": 15.0, "max_output_tokens": 2048, "output_modalities": ["text"],
    } | changes  # fmt: skip


def lumen(*models: dict[str, Any], **changes: Canned) -> dict[str, Canned]:
    """A Lumen server."""
    return {
        "GET /v1/models": changes.get("models", (200, {"object": "list", "data": list(models)})),
        "POST /v1/chat/completions": changes.get("chat", (200, completion("up-dummy"))),
    }
