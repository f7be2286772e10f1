"""The HTTP routes of a service: who may ask, what is read, and what is answered."""

import asyncio
import base64
import binascii
import hmac

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from scpo_jax import serve_openapi, serve_requests, serve_rewards
from scpo_jax.data import chat
from scpo_jax.errors import InputError
from scpo_jax.serve_engine import Busy, Engine
from scpo_jax.serve_metrics import Metrics
from scpo_jax.serve_requests import Refused
from scpo_jax.steering import Profile

SECONDS_TO_SEND = 30.0  # a body
FREE = ("/healthz",)  # routes without a token


def create(engine: Engine, default: Profile, token: str | None = None):
    """The ASGI application. `default` is the profile of requests that name none."""
    routes, metrics = Routes(engine, default), Metrics(engine)
    table = {
        "/score": (routes.score, "POST"),
        "/get_reward": (routes.get_reward, "POST"),
        "/healthz": (routes.healthz, "GET"),
        "/profiles": (routes.profiles, "GET"),
        "/metrics": (metrics.endpoint, "GET"),
        "/openapi.json": (routes.openapi, "GET"),
    }
    app = Starlette(
        routes=[Route(path, endpoint, methods=[method]) for path, (endpoint, method) in table.items()],
        exception_handlers={
            HTTPException: lambda _, error: _error(error.status_code, error.detail, error.headers),
            Refused: lambda _, error: _error(error.status, error.reason),
            InputError: lambda _, error: _error(422, str(error)),
            Busy: lambda _, error: _error(429, str(error), {"Retry-After": "1"}),
            Exception: lambda _, error: _error(500, f"internal error: {type(error).__name__}"),
        },
    )
    app.router.redirect_slashes = False
    return metrics.around(_guarded(app, token.encode()) if token else app, table)


class Routes:
    """The answers."""

    def __init__(self, engine: Engine, default: Profile):
        self._engine, self._default = engine, default
        special, tokenizer = chat.special_ids(engine.tokenizer), engine.tokenizer
        self._special = tokenizer.convert_ids_to_tokens(sorted(special))

    async def score(self, request: Request) -> Response:
        asked = serve_requests.parse_score(await _body(request))
        profile = self._profile(_profile_in_query(request) if asked.profile is None else asked.profile)
        return JSONResponse({"scores": await self._scores(asked.texts, profile), "profile": profile})

    async def get_reward(self, request: Request) -> Response:
        texts = serve_rewards.parse(await _body(request), self._special)
        profile = self._profile(_profile_in_query(request))
        return JSONResponse(serve_rewards.reply(await self._scores(texts, profile)))

    async def healthz(self, request: Request) -> Response:
        ready = self._engine.ready.is_set()
        return JSONResponse({"status": "ready" if ready else "warming up"}, 200 if ready else 503)

    async def profiles(self, request: Request) -> Response:
        blends = self._engine.blends
        return JSONResponse(
            {"groups": blends.groups, "default": self._default, "cached": blends.kept, "capacity": blends.capacity}
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(serve_openapi.document())

    def _profile(self, given) -> Profile:
        return self._default if given is None else serve_requests.profile_of(given, self._engine.blends.groups)

    async def _scores(self, texts, profile: Profile) -> list[float]:
        return (await asyncio.wrap_future(self._engine.submit(texts, profile))).tolist()


def _profile_in_query(request: Request) -> str | None:
    return request.query_params.get("profile")


async def _body(request: Request) -> bytes:
    """The body of a request, as long as it is allowed. Raises Refused."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > serve_requests.BODY_BYTES:
                    raise Refused(413, f"the body has more than {serve_requests.BODY_BYTES} bytes")
    except TimeoutError as error:
        raise Refused(408, f"the body did not arrive within {SECONDS_TO_SEND:.0f} s") from error
    except ClientDisconnect as error:
        raise Refused(400, "the client has gone") from error
    return b"".join(parts)


def _error(status: int, reason: str, headers=None) -> Response:
    return JSONResponse({"error": reason}, status, headers)


def _guarded(app, token: bytes):
    """The application for those who know the token."""
    refusal = _error(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    async def guarded(scope, receive, send):
        if scope["path"] in FREE or hmac.compare_digest(_token_of(scope), token):
            await app(scope, receive, send)
        else:
            await refusal(scope, receive, send)

    return guarded


def _token_of(scope) -> bytes:
    """The token of a request: a bearer's, or a password (`http://any:TOKEN@host`), as clients without headers send."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, value = given.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return value if scheme.lower() == b"bearer" else b""
