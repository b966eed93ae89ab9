"""Why there is no reply: each kind of ``Failure``, and whether the gateway may have seen, and billed, the request."""

from __future__ import annotations

from pipeline.records import Failure

WORDS_CHARACTERS = 500  # of a message, once a key was looked for in it
NEVER_SENT = frozenset({"connect_timeout", "dns_failed", "tls_failed", "proxy_failed", "connect_failed"})
_NO_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG")  # what OpenSSL makes of an answer that is none of TLS's
_PLAIN = "; the server seems to speak plain http there: try http:// in the base URL, or another port"


def never_sent(code: str, words: str) -> Failure:
    """There was no connection; ``code`` is one of ``NEVER_SENT``."""
    hint = _PLAIN if any(sign in words for sign in _NO_TLS) else ""
    return Failure(code=code, message=_in_one_line(f"cannot connect: {words}{hint}"), sent=False)


def malformed(words: str) -> Failure:
    """What came is not what HTTP allows."""
    return Failure(code="malformed_reply", message=_in_one_line(f"what came is no good HTTP: {words}"), sent=True)


def disconnected(words: str) -> Failure:
    """The connection broke."""
    message = f"the connection broke before the answer was complete: {words}"
    return Failure(code="disconnected", message=_in_one_line(message), sent=True)


def stale() -> Failure:
    """A reused connection dropped within a second and before any byte of the reply: it most likely lost a race with the
    server's idle timeout, and nobody read the request."""
    return Failure(code="disconnected", message="an idle connection was closed as it was used", sent=True, stale=True)


def timed_out() -> Failure:
    """Nobody waits any longer."""
    return Failure(code="timeout", message="no complete answer within the timeout", sent=True)


def too_large(most: int) -> Failure:
    """A reply is over its bound."""
    message = f"the reply is over {most:,} bytes (gateway.max_reply_bytes), and was read no further"
    return Failure(code="reply_too_large", message=message, sent=True)


def senseless(exc: Exception) -> Failure:
    """Events that are JSON, but not of a chat."""
    return Failure(code="malformed_stream", message=_in_one_line(f"the stream makes no sense: {exc}"), sent=True)


def cut() -> Failure:
    """Events that ended, in good order or not, before they told the end of every answer."""
    return Failure(code="stream_cut", message="the stream ended before the answer did", sent=True)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
