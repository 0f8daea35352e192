"""Who may use which route.

Every handler says it with one of these decorators, and a route without one answers nobody:

    read       an API key that may read
    write      one that may make, change and end sessions; it may read, too
    admin      one that may do everything, with every key's sessions
    caller     a session's own token, which the handler checks
    everybody  no key: what the fleet itself, a load balancer or Prometheus asks for

`guard` holds routes to it. Where no keys are needed (`Settings.keys_required`), none is looked at.
"""

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Literal, TypeVar

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from meshag.api.limits import RateLimit
from meshag.api.problems import Handler, problem
from meshag.errors import AuthError, LimitError, StoreError
from meshag.ids import parse_api_key, parse_session_id
from meshag.sessions.keys import ApiKey, Keys, Scope, whole_s
from meshag.sessions.store import no_session
from meshag.stages.worker import Worker

log = structlog.get_logger("meshag.api")

Rule = Literal[Scope, "caller", "everybody"]

H = TypeVar("H", bound=Handler)

_RULE = "access_rule"

API_KEY = web.RequestKey("api_key", ApiKey)
"""Where a request keeps the key that it came with."""

SUBPROTOCOL = "meshag"
"""What a WebSocket of ours speaks, when its client offers protocols. Answer with it: a browser insists on one."""

KEY_PROTOCOL = "meshag.key."
"""A browser's WebSocket cannot set headers: it offers its key as a second protocol, which nobody answers with."""

FAILURES_AT_ONCE = 10
FAILURES_PER_S = 1 / 6
"""Wrong keys from one address, an IPv6 network counted as one: so many at once, then ten a minute."""


def _rule(rule: Rule) -> Callable[[H], H]:
    def mark(handler: H) -> H:
        setattr(handler, _RULE, rule)
        return handler

    return mark


read = _rule("read")
write = _rule("write")
admin = _rule("admin")
caller = _rule("caller")
everybody = _rule("everybody")


def rule_of(handler: object) -> Rule | None:
    """Who may use a route with this handler; None: it does not say, so nobody."""
    found: Rule | None = getattr(handler, _RULE, None)
    return found


def key_of(request: web.Request) -> str:
    """The id of the API key that a request came with; empty where none is needed."""
    key = request.get(API_KEY)
    return key.id if key else ""


def quota_of(request: web.Request) -> int:
    """How many sessions the request's key may have at the same time; 0: any number."""
    key = request.get(API_KEY)
    return key.session_quota if key else 0


def limited_to(request: web.Request) -> str:
    """The id of the key whose sessions alone the request may see; empty: it may see everybody's."""
    key = request.get(API_KEY)
    return key.id if key and not key.may("admin") else ""


def guard(worker: Worker) -> Middleware:
    """Holds every route to its rule, every key to its own sessions and its rate."""
    required = worker.settings.keys_required
    door = _Door()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        found = request.match_info
        if found.http_exception is not None:
            return await handler(request)  # no such route: says so
        rule = rule_of(found.handler)
        if rule is None:
            log.error("route_without_rule", path=request.path)
            return problem(500, "route_without_rule", "this route does not say who may use it: nobody may")
        if rule == "caller" or rule == "everybody" or not required:
            return await handler(request)
        keys = worker.store.keys
        key = await door.identify(request, keys)
        await door.slow_down(key, keys)
        if not key.may(rule):
            return problem(
                403,
                "scope_missing",
                f"this needs an API key with the scope {rule}; this one has {key.scope}",
                headers={"WWW-Authenticate": f'Bearer realm="meshag", error="insufficient_scope", scope="{rule}"'},
                scope=rule,
            )
        session = parse_session_id(found.get("id", ""))
        if session and not key.may("admin") and await worker.store.key_of(session) != key.id:
            raise no_session(session)
        request[API_KEY] = key
        with structlog.contextvars.bound_contextvars(key=key.id):
            return await handler(request)

    return check


class _Door:
    """One process's count of who has knocked how often."""

    def __init__(self) -> None:
        self._failures = RateLimit()
        self._requests = RateLimit()

    async def identify(self, request: web.Request, keys: Keys) -> ApiKey:
        """The key that a request came with. Raises AuthError; LimitError for an address that sent too many wrong ones.

        Such an address is not looked up any more, but for keys that have been good lately: its neighbours' keys work.
        """
        text = _sent(request)
        if text is None:
            raise AuthError("this needs an API key: Authorization: Bearer mesh_…", code="key_missing")
        address = _network(request.remote)
        wait_s = self._failures.wait_s(address, FAILURES_PER_S, FAILURES_AT_ONCE, spend=False)
        parsed = parse_api_key(text)
        if wait_s and not (parsed and keys.knows(parsed[0])):
            raise _too_many_wrong(wait_s)
        try:
            return await keys.verify(text)
        except AuthError:
            wait_s = self._failures.wait_s(address, FAILURES_PER_S, FAILURES_AT_ONCE)
            log.warning("key_refused", address=request.remote)
            if wait_s:
                raise _too_many_wrong(wait_s) from None
            raise

    async def slow_down(self, key: ApiKey, keys: Keys) -> None:
        """Spend one of the key's requests, by this process's own count while Valkey is away. Raises LimitError."""
        try:
            wait_s = await keys.wait_s(key)
        except StoreError:
            wait_s = self._requests.wait_s(key.id, key.rate_per_s, key.rate_per_s) if key.rate_per_s else 0
        if wait_s:
            raise LimitError(
                f"this API key may ask {key.rate_per_s} times a second",
                retry_after_s=whole_s(wait_s),
                code="rate_limited",
            )


def _too_many_wrong(wait_s: float) -> LimitError:
    return LimitError(
        "too many wrong API keys came from this address", retry_after_s=whole_s(wait_s), code="too_many_failures"
    )


def _sent(request: web.Request) -> str | None:
    """What a request says its key is; None when it says nothing, and no key when it says two things."""
    said = {value.strip() for value in request.headers.getall("X-API-Key", [])}
    for value in request.headers.getall("Authorization", []):
        scheme, _, credentials = value.strip().partition(" ")
        said.add(credentials.strip() if scheme.lower() == "bearer" else "")
    if request.headers.get("Upgrade", "").lower() == "websocket":
        offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", [])).split(",")
        said |= {p.strip().removeprefix(KEY_PROTOCOL) for p in offered if p.strip().startswith(KEY_PROTOCOL)}
    if not said:
        return None
    return said.pop() if len(said) == 1 else ""


def _network(remote: str | None) -> str:
    """An address; of IPv6 the network, since one machine has a whole one."""
    try:
        address = ip_address((remote or "").partition("%")[0])
    except ValueError:
        return remote or ""
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
    return str(address)
