"""One request from arrival to last byte: key, limit, fault, answer, bill."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType

from aiohttp import web

from pipeline.records import Usage
from pipeline.simulator import chance, chat, embeddings, model, wire
from pipeline.simulator.call import Call
from pipeline.simulator.chance import Occurrences
from pipeline.simulator.chat import Chat
from pipeline.simulator.connections import Server
from pipeline.simulator.dialect import OpenAI
from pipeline.simulator.faults import Rule
from pipeline.simulator.gate import Gate
from pipeline.simulator.ledger import Ledger, Line
from pipeline.simulator.model import Answer
from pipeline.simulator.playback import Playback
from pipeline.simulator.port import Port
from pipeline.simulator.problem import Problem
from pipeline.simulator.settings import Settings

_ENDPOINTS = MappingProxyType(
    {("POST", "/chat/completions"): "chat", ("POST", "/embeddings"): "embeddings", ("GET", "/models"): "models"}
)
_CALL_ID_HEADERS = ("x-client-request-id", "x-litellm-call-id", "x-request-id")
_MODELS = ("sim/labeler", "sim/echo", "sim/embed")
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"
_EVENTS = "text/event-stream; charset=utf-8"
_PAGE = b"<!DOCTYPE html><html><head><title>One moment</title></head><body>Please try again later.</body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """A call that was let in: its line in the books, and the rule that struck it."""

    request: web.BaseRequest
    call: Call
    line: Line
    rule: Rule | None

    @property
    def fault(self) -> str:
        return self.rule.fault if self.rule else ""

    @property
    def seconds(self) -> float:
        """How long the fault lasts."""
        return 1.0 if self.rule is None or self.rule.seconds is None else self.rule.seconds


class Gateway:
    """What a request meets behind the door."""

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger, server: Server, port: Port) -> None:
        self._settings = settings
        self._gate = gate
        self._ledger = ledger
        self._server = server
        self._port = port
        self._dialect = OpenAI()
        self._playback = Playback(settings.faults, settings.seed)
        by_chance = settings.jitter > 0 or any(rule.probability is not None for rule in settings.faults.rules)
        self._occurrences = Occurrences(wanted=by_chance)
        self._arrivals = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers, or does what the script says instead."""
        if request.path == "/ledger" and request.method == "GET":
            books = self._ledger.to_json(totals_only="totals" in request.query)
            return web.Response(body=books, content_type=_JSON)
        try:
            body = await request.content.read()
        except (ConnectionError, web.RequestPayloadError):
            return wire.hang_up(request)  # the client left before it had asked
        call = self._arrive(request, body)
        with self._ledger.open(call) as line:
            response = await self._enter(request, call, line)
        if self._port.away and not response.prepared:
            response.force_close()
        return response

    def _arrive(self, request: web.BaseRequest, body: bytes) -> Call:
        self._arrivals += 1
        digest = blake2b(body, digest_size=16).digest()
        path = request.path
        return Call(
            number=self._arrivals,
            at=time.time(),
            method=request.method,
            path=path,
            endpoint=_ENDPOINTS.get((request.method, path.removeprefix("/v1")), ""),
            body=body,
            digest=digest,
            occurrence=self._occurrences.next(digest),
            call_id=next((request.headers[name] for name in _CALL_ID_HEADERS if name in request.headers), None),
        )

    async def _enter(self, request: web.BaseRequest, call: Call, line: Line) -> web.StreamResponse:
        problem = self._check_key(request) or self._gate.admit(call)
        if problem is not None:
            return self._turn_down(problem, call, line)
        try:
            rule = self._playback.pick(call)
            visit = _Visit(request=request, call=call, line=line, rule=rule)
            return await (self._answer(visit) if rule is None else self._misbehave(visit, rule))
        finally:
            self._gate.leave(call)

    def _check_key(self, request: web.BaseRequest) -> Problem | None:
        if self._settings.api_key is None:
            return None
        given = request.headers.get("Authorization", "")
        if given == f"Bearer {self._settings.api_key}":
            return None
        message = "Incorrect API key provided." if given else "You didn't provide an API key."
        return Problem(status=401, message=message, code="invalid_api_key" if given else None)

    def _turn_down(self, problem: Problem, call: Call, line: Line) -> web.Response:
        line.close(problem.status)
        return self._response(call, self._dialect.problem(problem), status=problem.status)

    def _response(self, call: Call, body: bytes, *, status: int = 200, content_type: str = _JSON) -> web.Response:
        headers = {"Content-Type": content_type, **self._dialect.headers(call)}
        return web.Response(body=body, status=status, headers=headers)

    def _open_response(self, call: Call, content_type: str, length: int | None = None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type, **self._dialect.headers(call)})
        response.content_length = length
        return response

    async def _misbehave(self, visit: _Visit, rule: Rule) -> web.StreamResponse:
        """Does what comes instead of an answer or before it; what spoils the answer is done where it is made."""
        visit.line.fault = rule.fault
        if rule.status is not None or rule.fault == "html":
            return self._scripted(visit, rule)
        match rule.fault:
            case "reset" if rule.at == "request":
                return wire.reset(visit.request)
            case "hang":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rule.seconds):
                        await self._server.client_leaves(visit.request)
                return wire.hang_up(visit.request)
            case "refused":
                self._port.leave(visit.seconds)
            case "slow_headers":
                await asyncio.sleep(visit.seconds)
        return await self._answer(visit)

    def _scripted(self, visit: _Visit, rule: Rule) -> web.Response:
        status = rule.status or 200
        visit.line.close(status)
        if rule.body is not None:
            body = rule.body
        elif rule.fault == "html":
            body = _PAGE
        else:
            kind = "requests" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
            body = self._dialect.problem(Problem(status=status, type=kind, message="Scripted fault.", code="scripted"))
        response = self._response(visit.call, body, status=status, content_type=_type_of(body))
        if rule.retry_after is not None:
            response.headers["Retry-After"] = rule.retry_after
        response.headers.update(rule.headers)
        return response

    async def _answer(self, visit: _Visit) -> web.StreamResponse:
        if visit.call.endpoint == "models":
            return await self._send_whole(visit, self._dialect.models(self._settings.models or _MODELS), None)
        answer = self._think(visit)
        if isinstance(answer, Problem):
            return self._turn_down(answer, visit.call, visit.line)
        delay = chance.latency(self._settings.seed, visit.call, self._settings.latency_s, self._settings.jitter)
        if isinstance(answer, Chat) and answer.stream:
            return await self._send_stream(visit, answer, delay)
        if delay:
            await asyncio.sleep(delay)
        if isinstance(answer, Chat):
            body = self._dialect.chat(visit.call, chat.spoil(answer, visit.fault))
        else:
            body = self._dialect.vectors(embeddings.spoil(answer, visit.fault))
        return await self._send_whole(visit, body, answer.usage)

    def _think(self, visit: _Visit) -> Answer | Problem:
        call = visit.call
        if not call.endpoint:
            return Problem(status=404, message=f"Invalid URL ({call.method} {call.path})")
        payload = model.parse(call.body)
        if isinstance(payload, Problem):
            return payload
        visit.line.model = name = payload["model"]
        if self._settings.models and name not in self._settings.models:
            return Problem(status=404, message=f"The model '{name}' does not exist.", code="model_not_found")
        return model.think(call, payload, self._settings.dimensions)

    async def _send_whole(self, visit: _Visit, body: bytes, usage: Usage | None) -> web.StreamResponse:
        """An answer in one body. It is billed once it is made: the client may be gone, the tokens are used."""
        visit.line.close(0 if visit.fault == "reset" else 200, usage)
        match visit.fault:
            case "reset":
                return await self._cut_off(visit, self._open_response(visit.call, _JSON, len(body)), body)
            case "slow_body":
                response = self._open_response(visit.call, _JSON, len(body))
                pieces = wire.pieces(body)
                return await wire.send(visit.request, response, pieces, pause_s=visit.seconds / len(pieces))
            case "truncated_json":
                body = wire.half(body)
        return self._response(visit.call, body)

    async def _send_stream(self, visit: _Visit, answer: Chat, delay: float) -> web.StreamResponse:
        """An answer as events. It is billed when it ends: a client that leaves a stream ends it, and pays nothing."""
        line = visit.line
        events = self._dialect.events(visit.call, chat.spoil(answer, visit.fault))
        response = self._open_response(visit.call, _EVENTS)
        if delay:
            await asyncio.sleep(delay / 2)
        pause = delay / 2 / len(events)
        match visit.fault:
            case "reset":
                line.close(0, answer.usage)
                return await self._cut_off(visit, response, b"".join(events))
            case "slow_body":
                pause += visit.seconds / len(events)
            case "truncated_json":
                events = [wire.half(b"".join(events))]
        await wire.send(visit.request, response, events, pause_s=pause, finish=lambda: line.close(200, answer.usage))
        line.close(200)
        return response

    async def _cut_off(self, visit: _Visit, response: web.StreamResponse, body: bytes) -> web.StreamResponse:
        if visit.rule and visit.rule.at == "body":
            await wire.send_half(visit.request, response, body)
        return wire.reset(visit.request)


def _type_of(body: bytes) -> str:
    start = body.lstrip()[:1]
    return _JSON if start in (b"{", b"[") else _HTML if start == b"<" else "text/plain; charset=utf-8"
