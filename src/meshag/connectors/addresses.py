"""Where sessions' tools may be: at public addresses, and at the hosts that the operator has named.

An address comes out of a session's JSON, which a stranger may have written. Its name is resolved here, and what is
checked is what is connected to: once when it is resolved, and once more when its socket is made. A name that resolves
to a public address now and to another one later gains nothing.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from meshag.errors import ConfigError, ProviderRejected
from meshag.sessions.problems import Problem
from meshag.sessions.tools import REFERENCE, Authority, ToolConfig, ToolHttp, authority

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

Lookup = Callable[[str, int], Sequence[tuple[Any, ...]]]
"""Name and port to what `socket.getaddrinfo` returns. Blocks."""

LOOKUPS = 8
"""Names that are looked up at the same time: a name server that never answers must not keep others from theirs."""

_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # public by its number; in an Azure machine it is the platform's
    )
]
"""IANA's special-purpose registry, less what is reached like any other host."""

_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # Teredo is in the first, 6to4 the third
]
_OWN_NAMES = ("localhost", "local", "internal", "home.arpa")
"""Names that end so are of one's own machine or network: they are reserved for that."""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = 0x5EFE
"""The second half of an address begins with this, less the bit that says whether it is unique in the world."""


class AddressRefused(ProviderRejected):
    """A tool's address is one that may not be called."""

    code = "address_refused"


# -- which addresses --------------------------------------------------------------------------------------------------


def is_public(ip: IpAddress) -> bool:
    """Whether everybody on the internet may reach it, also through the address of the other kind that it may hold."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in network for network in _NOT_PUBLIC_V4)
    last = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if ip in _MAPPED or ip in _NAT64:
        return is_public(last)
    if ip.scope_id is not None or ip not in _GLOBAL_V6 or any(ip in network for network in _NOT_PUBLIC_V6):
        return False
    is_isatap = (int(ip) >> 32) & 0xFCFF_FFFF == _ISATAP
    return ip.is_global and (not is_isatap or is_public(last))


def is_own_name(host: str) -> bool:
    """Whether a name, lower case, can only be of one's own machine or network: also every one without a dot."""
    return "." not in host or any(host == own or host.endswith(f".{own}") for own in _OWN_NAMES)


class Hosts:
    """The hosts that an operator has named: `localhost:9000, 10.1.2.3, [::1]:80, *.example.com`."""

    _ENTRY = re.compile(r"(?P<host>\*\.[a-z0-9_.-]+|[a-z0-9_][a-z0-9_.-]*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")

    _FIX = (
        "write host, host:port, [IPv6]:port or *.domain, comma separated, without https:// and without a path; "
        "or unset it"
    )

    def __init__(self, text: str) -> None:
        """`text`: MESHAG_TOOL_HOSTS. Raises ConfigError for an entry that is no host."""
        self._named: set[tuple[str, int | None]] = set()
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            found = self._ENTRY.fullmatch(entry)
            wild = entry.startswith("*.")
            try:
                if found is None:
                    raise ValueError
                host, port = found["host"].removeprefix("*"), found["port"]
                known = authority(f"http://{host.lstrip('.')}:{port or 80}")
            except ValueError:
                raise ConfigError(
                    f"MESHAG_TOOL_HOSTS: {entry.rpartition('@')[2][:80]!r} is no host",  # before @: a password
                    path="MESHAG_TOOL_HOSTS",
                    fix=self._FIX,
                ) from None
            if wild and known.ip is not None:
                raise ConfigError(
                    f"MESHAG_TOOL_HOSTS: {entry[:80]!r} has '*.' before an address",
                    path="MESHAG_TOOL_HOSTS",
                    fix=self._FIX,
                )
            self._named.add((f".{known.host}" if wild else _same(known), known.port if port else None))

    def named(self, place: Authority) -> bool:
        """Whether the operator has named this host, with this port or with all."""
        host = _same(place)
        names = [host, *(host[i:] for i, letter in enumerate(host) if letter == "." and place.ip is None)]
        return any((name, port) in self._named for name in names for port in (place.port, None))

    def check(self, http: ToolHttp) -> bool:
        """Whether the tool's host was named. Raises AddressRefused when it may not be called.

        Names that were not named are checked again when they are resolved.
        """
        try:
            place = authority(http.url)
        except ValueError as error:
            raise AddressRefused(f"refused: {error}") from None
        if self.named(place):
            return True
        if is_own_name(place.host) if place.ip is None else not is_public(place.ip):
            raise AddressRefused("refused: not a public address")
        if any(REFERENCE.search(value) for value in http.headers.values()):
            # else whoever may create a session could have them sent to himself
            raise AddressRefused("refused: variables are sent to named hosts only", code="secret_refused")
        return False

    def concerns(self, tools: Sequence[ToolConfig]) -> list[Problem]:
        """Why calls of these tools of a session will certainly be refused, where this can be told without a look-up."""
        fix = "name the host in MESHAG_TOOL_HOSTS of the transport and the llm service"
        found: list[Problem] = []
        for i, tool in enumerate(tools):
            try:
                if tool.http is not None:
                    self.check(tool.http)
            except AddressRefused as error:
                field = "headers" if error.code == "secret_refused" else "url"
                found.append(Problem(f"config.tools.{i}.http.{field}", str(error), fix, error.code))
        return found


def _same(place: Authority) -> str:
    """One spelling for each host."""
    return str(place.ip) if place.ip is not None else place.host


# -- how they are reached ---------------------------------------------------------------------------------------------


def _getaddrinfo(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


class Resolver(AbstractResolver):
    """Names to addresses, never cached. With `public_only`, one address that is not public condemns the name."""

    def __init__(self, *, public_only: bool, lookup: Lookup = _getaddrinfo) -> None:
        self._public_only = public_only
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="tool-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises AddressRefused, or OSError when the name cannot be resolved."""
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host, port)
        except UnicodeError:
            raise AddressRefused("refused: no name of a host") from None
        found: list[ResolveResult] = []
        for kind, _, protocol, _, place in rows:
            address = str(place[0])
            if self._public_only and not is_public(ipaddress.ip_address(address)):
                raise AddressRefused("refused: the name leads to an address that is not public")
            if kind in (socket.AF_INET, socket.AF_INET6):
                found.append(
                    ResolveResult(
                        hostname=host,
                        host=address,
                        port=port,
                        family=kind,
                        proto=protocol,
                        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                    )
                )
        if not found:
            raise OSError("no addresses")
        return found

    async def close(self) -> None:
        """Forget lookups that have not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """The socket for what is about to be connected to."""
    family, kind, protocol, _, place = info
    if not is_public(ipaddress.ip_address(str(place[0]))):
        raise AddressRefused("refused: not a public address")
    return socket.socket(family, kind, protocol)


def connections(*, public_only: bool, lookup: Lookup = _getaddrinfo) -> aiohttp.ClientSession:
    """A pool without cookies, proxies and timeouts. With `public_only` it connects to public addresses only."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=Resolver(public_only=public_only, lookup=lookup),
            use_dns_cache=False,
            limit=0,
            keepalive_timeout=30,
            socket_factory=_public_socket if public_only else None,
        ),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
