"""One request from arrival to last byte: key, limit, fault, answer, bill."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import orjson
from aiohttp import web

from pipeline.records import Usage
from pipeline.simulator import chance, chat, embeddings, model, wire
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.chance import Occurrences
from pipeline.simulator.chat import Chat
from pipeline.simulator.connections import Server
from pipeline.simulator.dialect import OpenAI
from pipeline.simulator.faults import Faults, Rule
from pipeline.simulator.gate import Gate
from pipeline.simulator.ledger import Bill, Ledger, Line
from pipeline.simulator.litellm import LiteLLM
from pipeline.simulator.lumen import Lumen
from pipeline.simulator.measured import MEASURED
from pipeline.simulator.playback import Playback
from pipeline.simulator.port import Port
from pipeline.simulator.problem import Problem
from pipeline.simulator.settings import Settings

_DIALECTS = MappingProxyType({"openai": OpenAI, "litellm": LiteLLM, "lumen": Lumen})
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"
_EVENTS = "text/event-stream; charset=utf-8"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """An answer, whole or as events, who made it, and what it is sold for."""

    content: bytes | list[bytes]
    deployment: Model
    bill: Bill | None


class Gateway:
    """What a request meets behind the door."""

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger, server: Server, port: Port) -> None:
        self._settings = settings
        self._gate = gate
        self._ledger = ledger
        self._server = server
        self._port = port
        self._dialect = _DIALECTS[settings.dialect](settings, gate, ledger)
        self._arrivals = 0
        self.play(settings.faults)

    def play(self, faults: Faults) -> None:
        """Have this script from now on. Arrivals are counted on, what its rules have done begins anew."""
        faults.check(self._settings.dialect)
        self._playback = Playback(faults, self._settings.seed)
        by_chance = self._settings.jitter > 0 or any(rule.probability is not None for rule in faults.rules)
        self._occurrences = Occurrences(wanted=by_chance)

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
        async with self._gate.threads:
            with self._ledger.open(call) as line:
                response = await self._enter(request, call, line)
        if self._port.away and not response.prepared:
            response.force_close()
        return response

    def _arrive(self, request: web.BaseRequest, body: bytes) -> Call:
        self._arrivals += 1
        digest = blake2b(body, digest_size=16).digest()
        payload, flaw = _parse(body)
        return Call(
            number=self._arrivals,
            at=self._settings.clock(),
            method=request.method,
            path=request.path,
            endpoint=self._dialect.endpoint(request.method, request.path),
            body=body,
            digest=digest,
            occurrence=self._occurrences.next(digest),
            call_id=self._dialect.call_id(request.headers, self._arrivals),
            payload=payload,
            flaw=flaw,
            headers=request.headers,
            query=request.query,
        )

    async def _enter(self, request: web.BaseRequest, call: Call, line: Line) -> web.StreamResponse:
        dialect = self._dialect
        problem = dialect.enter(call)
        if problem is None and (limit := self._gate.admit(call, dialect.route(call), dialect.estimate(call))):
            problem = dialect.error(limit, call)
        if problem is not None:
            return self._turn_down(problem, call, line)
        try:
            rule = self._playback.pick(call)
            visit = _Visit(request=request, call=call, line=line, rule=rule)
            return await (self._answer(visit) if rule is None else self._misbehave(visit, rule))
        finally:
            self._gate.leave(call, line.tokens)

    def _turn_down(self, problem: Problem, call: Call, line: Line) -> web.Response:
        if problem.late and call.stream:
            line.close(200)
            headers = {"Content-Type": _EVENTS, **self._dialect.problem_headers(call)}
            return web.Response(body=self._dialect.broken(problem), headers=headers)
        line.close(problem.status)
        body = self._dialect.problem(problem) if problem.body is None else problem.body
        own = {} if problem.bare else self._dialect.problem_headers(call)
        headers = {"Content-Type": _type_of(body), **own, **dict(problem.headers)}
        return web.Response(body=body, status=problem.status, headers=headers)

    async def _misbehave(self, visit: _Visit, rule: Rule) -> web.StreamResponse:
        """Does what comes instead of an answer or before it; what spoils the answer is done where it is made."""
        visit.line.fault = rule.fault
        if rule.status is not None:
            return self._turn_down(rule.problem(), visit.call, visit.line)
        match rule.fault:
            case "reset" if rule.at == "request":
                return wire.reset(visit.request)
            case "hang":
                await self._server.client_stays(visit.request, rule.seconds)
                return wire.hang_up(visit.request)
            case "refused":
                self._port.leave(visit.seconds)
            case "slow_headers":
                await asyncio.sleep(visit.seconds)
            case name if name in MEASURED[self._settings.dialect] and name != "stream_error":
                await asyncio.sleep(rule.seconds or 0)
                return self._turn_down(self._dialect.scripted(rule, visit.call), visit.call, visit.line)
        return await self._answer(visit)

    async def _answer(self, visit: _Visit) -> web.StreamResponse:
        call, dialect = visit.call, self._dialect
        made = self._make(visit) if call.needs_slot else dialect.page(call)
        if isinstance(made, Problem):
            return self._turn_down(made, call, visit.line)
        if isinstance(made, bytes):
            return await self._send_whole(visit, made, dialect.headers(call))
        delay = chance.latency(self._settings.seed, call, self._settings.latency_s, self._settings.jitter)
        if (patience := dialect.patience(call)) and delay > patience[0]:
            await asyncio.sleep(patience[1])
            return self._turn_down(dialect.error("timeout", call, timeout=patience[0]), call, visit.line)
        if isinstance(made.content, list):
            return await self._send_stream(visit, made, made.content, delay)
        if delay:
            await asyncio.sleep(delay)
        # It is billed once it is made: the client may be gone, the tokens are used.
        visit.line.close(0 if visit.fault == "reset" else 200, made.bill)
        return await self._send_whole(visit, made.content, dialect.headers(call, made.deployment, made.bill))

    def _make(self, visit: _Visit) -> _Made | Problem:
        call, dialect = visit.call, self._dialect
        payload = dialect.read(call)
        if isinstance(payload, Problem):
            return payload
        visit.line.model = call.model
        deployment = dialect.find(call)
        if isinstance(deployment, Problem):
            return deployment
        if visit.rule and visit.rule.upstream:
            deployment = replace(deployment, upstream=visit.rule.upstream)
        payload = dialect.forward(call, payload)
        if isinstance(payload, Problem):
            return payload
        answer = model.think(call, payload, deployment, self._settings.dimensions, fewest_inputs=dialect.fewest_inputs)
        if isinstance(answer, Problem):
            return dialect.passed_on(answer, call, deployment)
        bill = dialect.bill(call, deployment, answer.usage or Usage(), told=visit.fault != "no_usage")
        if not isinstance(answer, Chat):
            content = dialect.vectors(embeddings.spoil(answer, visit.fault), deployment)
            return _Made(content=content, deployment=deployment, bill=bill)
        render = dialect.events if call.stream else dialect.chat
        return _Made(
            content=render(call, chat.spoil(answer, visit.fault), deployment), deployment=deployment, bill=bill
        )

    async def _send_whole(self, visit: _Visit, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
        visit.line.close(200)
        headers = {"Content-Type": _JSON, **headers}
        match visit.fault:
            case "reset" | "slow_body":
                response = web.StreamResponse(headers=headers)
                response.content_length = len(body)
                if visit.fault == "reset":
                    return await self._cut_off(visit, response, body)
                pieces = wire.pieces(body)
                return await wire.send(visit.request, response, pieces, pause_s=visit.seconds / len(pieces), stay=_stay)
            case "truncated_json":
                body = wire.half(body)
        return web.Response(body=body, headers=headers)

    async def _send_stream(self, visit: _Visit, made: _Made, events: list[bytes], delay: float) -> web.StreamResponse:
        """An answer as events. It is billed when it ends, if a client that has left does not end it before."""
        line, dialect = visit.line, self._dialect
        stay = partial(self._server.client_stays, visit.request) if dialect.ends_dropped_streams else _stay
        headers = {"Content-Type": _EVENTS, **dialect.headers(visit.call, made.deployment)}
        response = web.StreamResponse(headers=headers)
        bill, pause = made.bill, delay / 2 / len(events)
        match visit.fault:
            case "slow_body":
                pause += visit.seconds / len(events)
            case "truncated_json":
                events = [wire.half(b"".join(events))]
            case "cut_stream":
                bill, events = None, events[: len(events) // 2]
            case "stream_error":
                error = dialect.broken(dialect.error("stream_error", visit.call))
                bill, events = None, [*events[: len(events) // 2], error]
        ends = asyncio.get_running_loop().time() + delay / 2 + pause * len(events)
        if delay and not await stay(delay / 2):
            line.close(200)
            return response
        if visit.fault == "reset":
            line.close(0, bill)
            return await self._cut_off(visit, response, b"".join(events))
        finish = partial(line.close, 200, bill)
        await wire.send(visit.request, response, events, pause_s=pause, stay=stay, finish=finish)
        if not dialect.ends_dropped_streams:
            await asyncio.sleep(ends - asyncio.get_running_loop().time())
            finish()
        line.close(200)
        return response

    async def _cut_off(self, visit: _Visit, response: web.StreamResponse, body: bytes) -> web.StreamResponse:
        if visit.rule and visit.rule.at == "body":
            await wire.send_half(visit.request, response, body)
        return wire.reset(visit.request)


async def _stay(seconds: float) -> bool:
    """A pause that nobody ends."""
    await asyncio.sleep(seconds)
    return True


def _parse(body: bytes) -> tuple[Any, str]:
    try:
        return orjson.loads(body), ""
    except orjson.JSONDecodeError as exc:
        return None, str(exc)


def _type_of(body: bytes) -> str:
    start = body.lstrip()[:1]
    return _JSON if start in (b"{", b"[") else _HTML if start == b"<" else "text/plain; charset=utf-8"
