"""Chat completions: what was asked for, and the answer before it is dressed for the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.records import Usage
from pipeline.simulator import answers, structured, tokens
from pipeline.simulator.answers import Prompt
from pipeline.simulator.problem import Problem, invalid

_TOKENS_A_MESSAGE = 4
_TOKENS_AN_IMAGE = 85
_WHOLE_NUMBERS = (("max_tokens", 2**31), ("max_completion_tokens", 2**31), ("n", 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk:
    """A valid request."""

    model: str
    prompt: Prompt
    prompt_tokens: int
    max_tokens: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    response_format: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of ``n`` answers."""

    content: str | None
    finish_reason: str
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """The answer. ``usage`` is None only where a fault hides it."""

    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None
    stream: bool
    include_usage: bool


def read(payload: dict[str, Any]) -> ChatAsk | Problem:
    """Checks a request as OpenAI does, as far as the answer depends on it."""
    problem = _check_messages(payload.get("messages")) or _check_options(payload)
    if problem is not None:
        return problem
    messages = payload["messages"]
    texts = [_text(message.get("content")) for message in messages]
    images = sum(_images(message.get("content")) for message in messages)
    stop = payload.get("stop") or ()
    return ChatAsk(
        model=payload["model"],
        prompt=_prompt(messages, texts),
        prompt_tokens=sum(map(tokens.count, texts)) + _TOKENS_A_MESSAGE * len(texts) + _TOKENS_AN_IMAGE * images,
        max_tokens=payload.get("max_completion_tokens") or payload.get("max_tokens"),
        n=payload.get("n") or 1,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=bool(payload.get("stream")),
        include_usage=bool((payload.get("stream_options") or {}).get("include_usage")),
        response_format=payload.get("response_format") or {},
    )


def spoil(answer: Chat, fault: str) -> Chat:
    """The answer as ``fault`` leaves it; as it is when the fault lies elsewhere."""
    match fault:
        case "no_usage":
            return replace(answer, usage=None)
        case "empty_choices":
            return replace(answer, choices=())
        case "empty_content":
            choice = Choice(content="", finish_reason="stop")
        case "refusal":
            choice = Choice(content=None, refusal="I'm sorry, I can't help with that.", finish_reason="stop")
        case _:
            return answer
    return replace(answer, choices=(choice,) * len(answer.choices))


def _check_messages(messages: Any) -> Problem | None:
    if messages is None:
        return invalid("messages", "Missing required parameter: 'messages'.")
    if not isinstance(messages, list) or not messages:
        return invalid("messages", "Invalid 'messages': expected an array with at least one message.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return invalid(f"messages[{index}]", f"Invalid 'messages[{index}]': expected an object with a 'role'.")
    return None


def _check_options(payload: dict[str, Any]) -> Problem | None:
    for name, most in _WHOLE_NUMBERS:
        value = payload.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            return invalid(name, f"Invalid '{name}': expected an integer from 1 to {most}, got {value!r}.")
    for name in ("stream_options", "response_format"):
        if not isinstance(payload.get(name) or {}, dict):
            return invalid(name, f"Invalid type for '{name}': expected an object.")
    stop = payload.get("stop") or []
    if not isinstance(stop, str) and not (isinstance(stop, list) and all(isinstance(one, str) and one for one in stop)):
        return invalid("stop", "Invalid 'stop': expected a text or an array of texts.")
    return None


def complete(ask: ChatAsk) -> Chat:
    """The answer to ``ask``, always the same."""
    choice = _choice(ask)
    completion_tokens = tokens.count(choice.content or "")
    return Chat(
        model=ask.model,
        choices=(choice,) * ask.n,
        usage=Usage(prompt_tokens=ask.prompt_tokens, completion_tokens=completion_tokens * ask.n),
        stream=ask.stream,
        include_usage=ask.include_usage,
    )


def _choice(ask: ChatAsk) -> Choice:
    if ask.model == "sim/echo":
        text = ask.prompt.user
    elif structured.wanted(ask.prompt, ask.response_format):
        text = structured.answer(ask.prompt, ask.response_format)
    else:
        text = answers.answer(ask.prompt)
    for mark in ask.stop:
        text = text.partition(mark)[0]
    short = text if ask.max_tokens is None else tokens.cut(text, ask.max_tokens)
    return Choice(content=short, finish_reason="stop" if short is text else "length")


def _prompt(messages: list[dict[str, Any]], texts: list[str]) -> Prompt:
    roles = [message["role"] for message in messages]
    system = [text for role, text in zip(roles, texts, strict=True) if role in ("system", "developer")]
    user = [text for role, text in zip(roles, texts, strict=True) if role == "user"]
    return Prompt(system="\n\n".join(system), user=user[-1] if user else texts[-1])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and "text" in part)


def _images(content: Any) -> int:
    if not isinstance(content, list):
        return 0
    return sum(isinstance(part, dict) and part.get("type") == "image_url" for part in content)
