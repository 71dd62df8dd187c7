"""Who may ask, and how much at once: checks before and around every request."""

import hmac
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 64 * 1024  # of a request's body
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self';"
        " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered with an error: status, code for the page, message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Guard:
    """Middleware: the Host of loopback, else a token for everything below /api/; safe headers.

    The Host check keeps out a foreign page whose name resolves to this machine.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI call."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                for key, value in HEADERS.items():
                    MutableHeaders(scope=message).setdefault(key, value)
            await send(message)

        found = self.fault(scope) if scope["type"] == "http" else None
        await (error(found) if found else self.app)(scope, receive, with_headers)

    def fault(self, scope: Scope) -> Refused | None:
        """Why a request is refused, if it is."""
        headers = Headers(scope=scope)
        if self.token is None:
            host = urlsplit(f"//{headers.get('host', '')}").hostname
            if host not in LOOPBACK:
                return Refused(421, "host", f"Host is {host!r}; expected localhost")
        elif scope["path"].startswith("/api/"):
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                return Refused(401, "token", "the token is missing or wrong")
        return None


def error(refused: Refused) -> JSONResponse:
    """{error, message} with the status."""
    body = {"error": refused.code, "message": str(refused)}
    return JSONResponse(body, status_code=refused.status)


async def on_refused(request: Request, exception: Exception) -> Response:
    """Starlette's handler."""
    assert isinstance(exception, Refused)
    return error(exception)


async def read_json(request: Request) -> Mapping[str, Any]:
    """The body, an object of at most MOST_BYTES. Raises Refused."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise Refused(415, "type", "expected Content-Type: application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Refused(413, "too_large", f"the request has more than {MOST_BYTES} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise Refused(400, "json", f"the body is no JSON: {fault}") from fault
    if not isinstance(found, dict):
        raise Refused(400, "json", "the body is no JSON object")
    return found
