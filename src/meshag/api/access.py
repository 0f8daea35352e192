"""Who may use which route.

Every handler says it with one of these decorators, and a route without one answers nobody:

    read       an API key that may read
    write      one that may make, change and end sessions; it may read, too
    admin      one that may do everything, with every key's sessions
    caller     a session's own token, which the handler checks
    everybody  no key: what the fleet itself, a load balancer or Prometheus asks for
"""

from collections.abc import Callable
from typing import Literal, TypeVar

from aiohttp import web

from meshag.api.problems import Handler

Rule = Literal["read", "write", "admin", "caller", "everybody"]

H = TypeVar("H", bound=Handler)

_RULE = "access_rule"


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
    return str(request.get("key", ""))
