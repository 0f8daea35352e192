"""`meshag key create|list|revoke`: the API keys of a mesh, written straight into its Valkey."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from meshag.commands.common import add_action, number
from meshag.embedded.mesh import Mesh
from meshag.errors import ConfigError
from meshag.ids import parse_key_id
from meshag.sessions.keys import CACHE_S, SCOPES, ApiKey, Keys
from meshag.sessions.store import SessionStore
from meshag.settings import Settings

T = TypeVar("T")

WHERE = "The mesh is the one whose Valkey VALKEY_URL names."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshag key`."""
    parser.epilog = f"{WHERE}\n\nexamples:\n  meshag key create --name website\n  meshag key list"
    actions = parser.add_subparsers(dest="action", metavar="create|list|revoke", required=True)
    create = add_action(
        actions,
        "create",
        "make a key; prints it, this once",
        f"{WHERE}\n\nexamples:\n  meshag key create --name website\n"
        "  MESHAG_API_KEY=$(meshag key create --name me --scope admin) meshag session list",
    )
    create.add_argument("--name", required=True, type=_name, help="whose it is, for people: up to 64 characters")
    create.add_argument(
        "--scope", choices=SCOPES, default="write", help="what it may do; each may what the one before it may (write)"
    )
    create.add_argument(
        "--quota", type=number(0, 100_000), default=100, help="sessions at the same time; 0: any number (default 100)"
    )
    create.add_argument(
        "--rate", type=number(0, 100_000), default=20, help="requests a second; 0: any number (default 20)"
    )
    add_action(actions, "list", "every key, without its secret", f"{WHERE}\n\nexample:\n  meshag key list")
    revoke = add_action(
        actions,
        "revoke",
        f"no service takes the key any more after {CACHE_S:.0f} s; its sessions live on",
        f"{WHERE}\n\nexample:\n  meshag key revoke KEY_ID",
    )
    revoke.add_argument("id", metavar="KEY_ID", help="as `meshag key list` shows it")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.action == "create":
        _create(args)
    elif args.action == "list":
        for key in asyncio.run(_with_keys(Keys.all)):
            print(_line(key))
    else:
        _revoke(args.id)
    return 0


def first_key(mesh: Mesh) -> str:
    """A key for a mesh that wants one and has none, in a Valkey that only it knows; empty for any other mesh."""
    settings = Settings(one_machine=True)
    if not settings.keys_required or "valkey_url" in settings.model_fields_set or mesh.servers is None:
        return ""

    async def make(keys: Keys) -> str:
        if await keys.any():
            return ""
        return (await keys.create("first", "admin", session_quota=0, rate_per_s=0))[1]

    return asyncio.run(_with_keys(make, mesh.servers.valkey_url))


def _create(args: argparse.Namespace) -> None:
    made, text = asyncio.run(
        _with_keys(
            lambda keys: keys.create(args.name, args.scope, session_quota=args.quota, rate_per_s=args.rate),
        )
    )
    print(text, flush=True)
    print(
        f"This is shown once: keep it. Send it as `Authorization: Bearer`, or set MESHAG_API_KEY. Its id is {made.id}.",
        file=sys.stderr,
    )


def _revoke(text: str) -> None:
    key = parse_key_id(text)
    if key is None or not asyncio.run(_with_keys(lambda keys: keys.revoke(key))):
        raise ConfigError("there is no API key of that id", path="KEY_ID", fix="take one from `meshag key list`")
    print(f"revoked {key}")


async def _with_keys(work: Callable[[Keys], Awaitable[T]], valkey_url: str = "") -> T:
    store = await SessionStore.connect(valkey_url or Settings().valkey_url, allow_volatile=True)
    try:
        return await work(store.keys)
    finally:
        await store.aclose()


def _line(key: ApiKey) -> str:
    made = datetime.fromtimestamp(key.created_at_s, UTC).strftime("%Y-%m-%d")
    quota, rate = key.session_quota or "any", f"{key.rate_per_s}/s" if key.rate_per_s else "any"
    return f"{key.id}  {key.scope:<6} sessions {quota:<6} requests {rate:<8} {made}  {key.name}"


def _name(text: str) -> str:
    if not text.strip() or len(text) > 64 or not text.isprintable():
        raise argparse.ArgumentTypeError("a name has 1 to 64 characters that can be printed")
    return text.strip()
