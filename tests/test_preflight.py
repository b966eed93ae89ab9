"""What cannot work stops before row 1, with the exit code and the words; what may work goes on. Where costs come from."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from canned import PRICED, Canned, canned, completion, deployment, key_facts, litellm, lumen, lumen_model
from conftest import Pipeline, read_jsonl, write_jsonl

from pipeline import Job, Summary, run
from pipeline.accounting import Accounting, PriceOf, listed_price
from pipeline.cli.options import gateway_of
from pipeline.models import listed
from pipeline.records import ModelInfo, Usage


def error(message: str, kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


BAD_KEY = (401, error("Authentication Error, Invalid proxy server token passed.", "token_not_found_in_db", "401"))
EXPIRED = (401, error("Authentication Error - Expired Key. Key Expiry time x", "expired_key", "401"))
NO_DATABASE = (400, error("No connected db.", "no_db_connection", "400"))
POOR = (422, error("ExceededBudget: User=poor over budget. Spend=1.5, Budget=0.5", "budget_exceeded", "422"))
KEY_POOR = (200, {"key": "x", "info": key_facts(spend=20.5)})


def ran(folder: Path, url: str, preset: str, model: str, **more: Any) -> Summary:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "in.jsonl", [{"t": "one"}])
    settings = {
        "input.path": str(folder / "in.jsonl"), "output.path": str(folder / "out.jsonl"), "gateway.preset": preset,
        "gateway.base_url": url, "model": model, "request.prompt": "{{ t }}",
    }  # fmt: skip
    return run(Job.load(None, overrides={**settings, **more}))


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_API_KEY", "sk-SECRET-0001-0001-0001")
    monkeypatch.setenv("LUMEN_API_KEY", "sk-SECRET-0001-0001-0001")


@pytest.mark.parametrize(
    ("changes", "model", "code", "words"),
    [
        ({"models": BAD_KEY}, "lbl/cborg-chat", 4, "refuses this key"),
        ({"models": EXPIRED}, "lbl/cborg-chat", 4, "Expired Key"),
        ({"models": NO_DATABASE}, "lbl/cborg-chat", 4, "takes no key but its master key"),
        ({"models": POOR}, "lbl/cborg-chat", 5, "ExceededBudget: User=poor over budget"),
        ({"key": KEY_POOR}, "lab/priced", 5, "$20.5000 of the key's $20.0000 are spent; it is renewed at 2026-12-01"),
        ({"key": KEY_POOR}, "lbl/cborg-chat", 5, "Free models are refused then, too"),
        ({"key": (200, {"info": key_facts(blocked=True)})}, "lab/priced", 4, "this key is blocked"),
        ({}, "lbl/cborg-cat", 4, "did you mean lbl/cborg-chat"),
        ({}, "gpt-99", 4, "not among the 4 that this key may ask; there are: lab/priced, lbl/cborg-chat"),
        ({}, "lab/restricted", 4, "or this key may not use it"),
        ({}, "nomic-embed-text", 2, "is for embedding, not for requests to /chat/completions"),
    ],
)  # fmt: skip
def test_litellm_stops(tmp_path: Path, changes: dict[str, Canned], model: str, code: int, words: str) -> None:
    with canned(litellm(**changes)) as server:
        summary = ran(tmp_path, server.url, "litellm", model)
    assert (summary.exit_code, summary.pending, server.paid) == (code, 1, 0), summary.reason
    assert words in summary.reason


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"key": KEY_POOR}, "lbl/cborg-mini"),  # both prices are 0 by name: asked all the same
        ({"models": POOR}, "lbl/cborg-mini"),
        ({"models": (404, {"detail": "Not Found"}), "info": (404, {}), "key": (404, {})}, "anything"),
        ({"models": (405, b"<html>no</html>"), "info": (405, b""), "key": (405, b"")}, "anything"),
        ({"info": (403, error("Only proxy admin", "auth_error", "403")), "key": (401, {})}, "lab/priced"),
        ({"models": (200, {"data": [{"id": "openai/*", "object": "model"}]})}, "openai/any"),
        ({"models": (200, b"<html>sign in</html>")}, "anything"),
        ({"models": (500, error("boom", "internal_server_error", "500"))}, "anything"),
    ],
)
def test_litellm_goes_on(tmp_path: Path, changes: dict[str, Canned], model: str) -> None:
    with canned(litellm(**changes)) as server:
        summary = ran(tmp_path, server.url, "litellm", model)
    assert (summary.exit_code, server.paid) == (0, 1), summary.reason


@pytest.mark.parametrize(
    ("replies", "model", "code", "words"),
    [
        (lumen(lumen_model()), "dumy", 4, "did you mean dummy?: acknowledge it once on Lumen's web page"),
        (lumen(), "dummy", 4, "or ask for access"),
        (lumen(models=(401, {"error": {"message": "Invalid or inactive API key", "type": "authentication_error"}})), "dummy", 4, "Profile, API Keys"),
        (lumen(models=(403, {"error": {"message": "Account disabled", "type": "authentication_error"}})), "dummy", 4, "Account disabled"),
        (lumen(models=(400, {"error": {"message": "Missing or malformed Authorization header", "type": "x"}})), "dummy", 4, "LUMEN_API_KEY"),
    ],
)  # fmt: skip
def test_lumen_stops(tmp_path: Path, replies: dict[str, Canned], model: str, code: int, words: str) -> None:
    with canned(replies) as server:
        summary = ran(tmp_path, server.url, "lumen", model)
    assert (summary.exit_code, summary.pending, server.paid) == (code, 1, 0), summary.reason
    assert words in summary.reason


def test_a_page_in_place_of_the_prices_is_waited_out_where_a_limit_needs_them(tmp_path: Path) -> None:
    """A captive portal or a maintenance page: it was taken for a job without a price, exit 2, which cron does not repeat."""
    settings = {"limits.max_cost": 1.0, "gateway.lease": False}
    page: Canned = (200, b"<html>sign in</html>")
    with canned(litellm(models=page)) as server:
        priced = {"prices": {"lab/priced": {"input_per_million": 1.0, "output_per_million": 1.0}}}
        assert ran(tmp_path / "own", server.url, "litellm", "lab/priced", **settings, **priced).exit_code == 0
        timer = threading.Timer(1.5, server.replies.update, [litellm()])
        timer.start()
        summary = ran(tmp_path / "listed", server.url, "litellm", "lab/priced", **settings)
        timer.join()
    assert (summary.exit_code, summary.completed) == (0, 1), summary.reason
    assert [cause.partition(":")[0] for *_, cause in summary.outages] == ["html_reply"]


def test_a_model_for_the_other_endpoint(tmp_path: Path) -> None:
    embeds = {"request.endpoint": "embeddings"}
    with canned(litellm()) as server:
        summary = ran(tmp_path, server.url, "litellm", "lbl/cborg-chat", **embeds)
        assert (summary.exit_code, server.paid) == (2, 0)
        assert "is for chat, not for requests to /embeddings" in summary.reason
        server.replies["POST /embeddings"] = (
            200,
            {
                "object": "list",
                "model": "nomic-embed-text",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
                "usage": {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0},
            },
        )
        summary = ran(tmp_path / "other", server.url, "litellm", "nomic-embed-text", **embeds)
    assert (summary.exit_code, summary.cost) == (0, {"USD": 0.0}), summary.reason


@pytest.mark.parametrize(("preset", "status"), [("openai", 401), ("openai", 403), ("litellm", 401)])
def test_where_no_key_was_sent_the_variable_for_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, status: int
) -> None:
    refusal: Canned = (status, error("Authentication Error, No api key passed in.", "auth_error", str(status)))
    asked = dict.fromkeys(("POST /chat/completions", "GET /models", "GET /v1/models"), refusal)
    hint = "No api key passed in. No key was sent: export PIPELINE_API_KEY=..."
    with canned(asked) as server:
        other = ran(tmp_path / "with", server.url, preset, "m")
        monkeypatch.delenv("PIPELINE_API_KEY")
        summary = ran(tmp_path / "without", server.url, preset, "m")
        job = gateway_of({"gateway": preset, "gateway__base_url": server.url, "gateway__api_key_env": None})
        known = asyncio.run(listed(job))
    assert (other.exit_code, summary.exit_code) == (4, 4)
    assert hint in summary.reason
    assert "No key was sent" not in other.reason
    if status == 401:  # with a 403 the list of models may merely be none of its business
        assert "refuses a request without a key (no_api_key): HTTP 401: " in str(known.error)
        assert str(known.error).endswith(hint)


def test_a_model_that_is_down_is_a_warning(tmp_path: Path, pipeline: Pipeline) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"t": "one"}])
    job = ("-i", "in.jsonl", "-o", "out.jsonl", "-g", "lumen", "-m", "dummy", "-p", "{{ t }}")
    with canned(lumen(lumen_model(status="down"))) as server:
        ended = pipeline("run", *job, "--base-url", server.url, env={"LUMEN_API_KEY": "sk-SECRET-0001-0001-0001"})
        plan = pipeline("plan", *job, "--base-url", server.url, env={"LUMEN_API_KEY": "sk-SECRET-0001-0001-0001"})
    assert (ended.code, plan.code) == (0, 0)
    assert "the model 'dummy' is down now" in ended.err
    assert "the model 'dummy' is down now" in plan.out


def test_a_key_that_has_worked_is_not_given_up_at_the_door(tmp_path: Path) -> None:
    with canned(litellm()) as server:
        assert ran(tmp_path, server.url, "litellm", "lab/priced").exit_code == 0
        server.replies["GET /v1/models"] = BAD_KEY
        write_jsonl(tmp_path / "in.jsonl", [{"t": "one"}, {"t": "two"}])
        settings = {"input.path": str(tmp_path / "in.jsonl"), "output.path": str(tmp_path / "out.jsonl")}
        more = {"gateway.preset": "litellm", "gateway.base_url": server.url, "model": "lab/priced"}
        summary = run(Job.load(None, overrides={**settings, **more, "request.prompt": "{{ t }}"}))
    assert (summary.exit_code, server.paid) == (0, 2)


def test_nothing_is_asked_when_nothing_is_pending(tmp_path: Path) -> None:
    with canned(litellm()) as server:
        assert ran(tmp_path, server.url, "litellm", "lab/priced").exit_code == 0
        server.seen.clear()
        assert ran(tmp_path, server.url, "litellm", "lab/priced").exit_code == 0
        assert server.seen == []


# where a cost comes from

USAGE = Usage(prompt_tokens=1000, completion_tokens=2000, cached_tokens=512)
OWN = {"m": PriceOf(prompt=1.0, completion=1.0)}


@pytest.mark.parametrize(
    ("info", "amount", "unit", "source"),
    [
        (None, 0.003, "USD", "price_table"),
        (ModelInfo(id="m"), 0.003, "USD", "price_table"),
        (ModelInfo(id="m", input_per_million=5.0, output_per_million=15.0), 0.035, "USD", "price_table"),
        (ModelInfo(id="m", input_per_million=5.0, output_per_million=15.0, cached_per_million=0.0), 0.03244, "USD", "price_table"),
        (ModelInfo(id="m", input_per_million=5.0, output_per_million=15.0, unit="coins", decimals=6), 0.035, "coins", "price_table"),
        (ModelInfo(id="m", input_per_million=0.0001, output_per_million=0.0001, unit="coins", decimals=6), 0.0, "coins", "price_table"),
        (ModelInfo(id="m", input_per_million=0.0, output_per_million=0.0), 0.0, "USD", "price_table"),
        (ModelInfo(id="m", free=True), 0.0, "USD", "free"),
        (ModelInfo(id="m", mode="embedding", input_per_million=5.0), 0.005, "USD", "price_table"),
        (ModelInfo(id="m", input_per_million=5.0), 0.003, "USD", "price_table"),
    ],
)  # fmt: skip
def test_the_gateways_list_goes_before_the_jobs_table(
    info: ModelInfo | None, amount: float, unit: str, source: str
) -> None:
    price = None if info is None else listed_price(info)
    listed = {} if price is None else {"m": price}
    cost = Accounting(OWN, listed=listed).cost(USAGE, model="m", served_model="up")
    assert (cost.amount, cost.unit, cost.source) == (pytest.approx(amount, abs=1e-12), unit, source)


def test_unknown_stays_unknown() -> None:
    assert Accounting({}).cost(USAGE, model="m", served_model="up").source == "unknown"
    assert Accounting(OWN).cost(Usage(), model="m", served_model=None).amount is None
    assert (
        Accounting({"up": PriceOf(prompt=1.0, completion=0.0)}).cost(USAGE, model="m", served_model="up").amount == 1e-3
    )


TOLD = {"x-litellm-response-cost": "2.1000000000000002e-06", "x-litellm-model-name": "openai/priced-1"}
OWN_PRICE = {"prices": {"lab/odd": {"input_per_million": 1.0, "output_per_million": 1.0}}}
ODD = (200, {"data": [deployment("lab/odd", "openai/odd")]})
ODD_NAME = (200, {"data": [{"id": "lab/odd", "object": "model"}]})


@pytest.mark.parametrize(
    ("changes", "model", "more", "cost", "source"),
    [
        ({"chat": (200, completion(), TOLD)}, "lab/priced", {}, 2.1e-6, "gateway"),
        ({"chat": (200, completion(), TOLD)}, "lbl/cborg-chat", {}, 2.1e-6, "gateway"),
        ({}, "lab/priced", {}, 0.00135, "price_table"),
        ({}, "lbl/cborg-chat", {}, 0.0, "free"),
        ({"info": ODD, "models": ODD_NAME}, "lab/odd", OWN_PRICE, 0.003, "price_table"),
        ({"info": ODD, "models": ODD_NAME}, "lab/odd", {}, None, "unknown"),
    ],
)
def test_each_source_on_the_row(
    tmp_path: Path, changes: dict[str, Canned], model: str, more: dict[str, Any], cost: float | None, source: str
) -> None:
    with canned(litellm(**changes)) as server:
        assert ran(tmp_path, server.url, "litellm", model, **more).exit_code == 0
    row = read_jsonl(tmp_path / "out.jsonl")[0]
    assert (row["cost"], row["cost_source"]) == (pytest.approx(cost, abs=1e-12) if cost is not None else None, source)


@pytest.mark.parametrize(("prices", "source"), [((5.0, 15.0), "price_table"), ((0, 0), "free")])
def test_lumen_counts_coins(tmp_path: Path, prices: tuple[float, float], source: str) -> None:
    model = lumen_model(input_cost_per_million=prices[0], output_cost_per_million=prices[1])
    with canned(lumen(model)) as server:
        assert ran(tmp_path, server.url, "lumen", "dummy").exit_code == 0
    row = read_jsonl(tmp_path / "out.jsonl")[0]
    assert (row["cost"], row["cost_unit"], row["cost_source"]) == (0.035 if prices[0] else 0.0, "coins", source)


def test_the_price_of_what_is_listed() -> None:
    info = deployment("m", "openai/m", **PRICED)["model_info"]
    assert info["input_cost_per_token"] * 1e6 == pytest.approx(0.15)
