"""A tool's address comes from a stranger: no spelling, name, second answer or redirect leads to a private host."""

import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from meshag.connectors import addresses
from meshag.connectors.addresses import AddressRefused, Hosts, Resolver, connections, is_public
from meshag.connectors.tools import Tools
from meshag.errors import ConfigError
from meshag.sessions.tools import ToolConfig, ToolHttp, authority

pytestmark = pytest.mark.security


def embedded(v4: str) -> dict[str, str]:
    """IPv6 addresses that hold an IPv4 address."""
    a, b, c, d = (int(part) for part in v4.split("."))
    high, low = f"{a:02x}{b:02x}", f"{c:02x}{d:02x}"
    inverted = f"{a ^ 255:02x}{b ^ 255:02x}:{c ^ 255:02x}{d ^ 255:02x}"
    return {
        "mapped": f"::ffff:{v4}",
        "mapped in hex": f"::ffff:{high}:{low}",
        "mapped, long": f"0:0:0:0:0:ffff:{high}:{low}",
        "compatible": f"::{v4}",
        "translated": f"::ffff:0:{high}:{low}",
        "nat64": f"64:ff9b::{high}:{low}",
        "nat64, local": f"64:ff9b:1::{high}:{low}",
        "6to4": f"2002:{high}:{low}::1",
        "teredo": f"2001:0:4136:e378:8000:63bf:{inverted}",
        "isatap": f"2a00:1450:4001:81b:0:5efe:{high}:{low}",
        "isatap, unique": f"2a00:1450:4001:81b:200:5efe:{high}:{low}",
        "isatap, link": f"fe80::5efe:{high}:{low}",
    }


def spellings(v4: str) -> list[str]:
    """How else an IPv4 address may be written so that some reader takes it for one."""
    a, b, c, d = (int(part) for part in v4.split("."))
    number = int(ipaddress.IPv4Address(v4))
    return [
        *(str(number), hex(number), f"0{number:o}", f"0X{number:X}", f"0x{number:08x}", f"{number}."),
        *(f"{a}.{(b << 16) + (c << 8) + d}", f"{a}.{b}.{(c << 8) + d}", f"0x{a:x}.{b}.{c}.{d}", f"0{a:o}.{b}.{c}.{d}"),
        *(f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}", f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a:03}.{b:03}.{c:03}.{d:03}", f"{v4}."),
        *(f"{a}.{b}.{c}.0x{d:x}", f"{number + 2**32}", f"{a}.{b}.{c}.{d}.0", f"{a + 256}.{b}.{c}.{d}"),
    ]


PRIVATE_V4 = (
    *("127.0.0.1", "127.255.255.254", "127.0.0.53", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1"),
    *("172.31.255.255", "192.168.0.1", "192.168.255.255", "169.254.169.254", "169.254.170.2", "169.254.0.1"),
    *("100.64.0.1", "100.100.100.200", "100.127.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.7", "203.0.113.9", "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16"),
)
PRIVATE_V6 = (
    *("::", "::1", "0:0:0:0:0:0:0:1", "fe80::1", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254"),
    *("fdff:ffff::1", "ff02::1", "ff05::2", "100::1", "2001:db8::1", "2001:2::1", "2001:10::1", "2001:20::1"),
    *("3fff::1", "5f00::1", "4000::1", "::2", "1::1", "8000::1", "2001::1", "2002::1"),
)
MALFORMED = (
    *("", "localhost", "//127.0.0.1/", "http:", "http://", "http:///path", "http:127.0.0.1", "https://:80/"),
    *("http://user@93.184.216.34/", "http://user:word@93.184.216.34/", "http://93.184.216.34@127.0.0.1/"),
    *("http://127.0.0.1#@93.184.216.34/", "http://93.184.216.34#@127.0.0.1/", "http://93.184.216.34\\@127.0.0.1/"),
    *("http://127.0.0.1\\@example.com/", "http://example.com\\.evil.test/", "http://example.com/#part", "http://@/"),
    *("http://example.com:@127.0.0.1/", "http://example.com:80@127.0.0.1/", "http://ex ample.com/", " http://a.test/"),
    *("http://a.test/ ", "http://a.test/\r\nHost: b", "http://a.test\r\n/", "http://a.test/\x00", "http://a.test\t/"),
    *("http://a.test/\u2028", "http://\u24db\u24de\u24d2alhost/", "http://127\u30020\u30020\u30021/"),
    *("http://\uff11\uff12\uff17.0.0.1/", "http://\u2460\u2461\u2466.0.0.1/", "http://exam\u00adple.com/"),
    *("http://b\u00fccher.test/", "http://%31%32%37.0.0.1/", "http://127.0.0.1%2f@a.test/", "http://a.test%00.b/"),
    *("http://a..test/", "http://.a.test/", "http://-a.test/", "http://a-.test/", f"http://{'a' * 64}.test/"),
    *(f"http://{'a.' * 130}test/", "http://a.test:0/", "http://a.test:65536/", "http://a.test:99999999/"),
    *("http://a.test:80:80/", "http://a.test:/", "http://a.test:-1/", "http://a.test:0x50/", "http://[::1/"),
    *(
        "http://::1/",
        "http://[]/",
        "http://[::1%25lo]/",
        "http://[::1%lo]/",
        "http://[fe80::1%eth0]/",
        "http://[:::1]/",
    ),
    *("http://[127.0.0.1]/", "http://[::127.0.0.1.1]/", "http://[1::2::3]/", "http://[v1.x]/", "http://[::ffff:7f.1]/"),
    *(
        "ftp://93.184.216.34/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "dict://127.0.0.1:11211/",
        "ws://a.test/",
    ),
    *(
        "data:text/plain,x",
        "javascript:1",
        "unix:///var/run/docker.sock",
        "http+unix://%2fvar%2frun/",
        "jar:http://a!/",
    ),
    *("httpx://a.test/", "http s://a.test/", "http:/a.test/", "http:\\\\a.test\\", "https:a.test", "http//a.test"),
    *(
        "http://a.test/{id}",
        "http://a.test/<x>",
        'http://a.test/"',
        "http://a.test/`",
        "http://a.test/|",
        "http://a.test^",
    ),
    f"http://a.test/{'x' * 2048}",
)

OWN_NAMES = (
    *("localhost", "LOCALHOST.", "app.localhost", "a1", "shop", "valkey", "printer.local", "router.home.arpa"),
    *("metadata.google.internal", "db.eu.internal.", "x.LOCAL"),
)

REFUSED = [
    *(f"http://{ip}:PORT/" for ip in PRIVATE_V4),
    *(f"https://[{ip}]:PORT/x?y=1" for ip in PRIVATE_V6),
    *(f"http://{odd}:PORT/" for ip in ("127.0.0.1", "169.254.169.254", "10.0.0.1") for odd in spellings(ip)),
    *(f"http://{odd}:PORT/" for odd in ("127.1", "127.0.1", "0", "00", "0x", "0x0", "017700000001", "127.0.0.01")),
    *(f"http://{odd}:PORT/" for odd in ("1", "1.1", "1.1.1", "a.1", "a.test.127", "a.0x7f", "08.8.8.8", "8.8.8.08")),
    *(
        f"http://[{ip}]:PORT/"
        for v4 in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "100.64.0.1", "168.63.129.16")
        for ip in embedded(v4).values()
    ),
    *(f"http://{name}:PORT/" for name in OWN_NAMES),
    *MALFORMED,
]
PUBLIC = (
    *("http://93.184.216.34/", "https://8.8.8.8:8443/x?y=%20", "HTTP://1.1.1.1", "https://[2606:4700:4700::1111]/"),
    *("https://[2a00:1450:4001:81b::200e]:443/", "http://[::ffff:8.8.8.8]/", "http://[64:ff9b::808:808]/"),
    *("https://100.63.255.255/", "https://100.128.0.1/", "https://172.15.255.255/", "https://172.32.0.1/"),
    *(
        "https://11.0.0.1/",
        "https://126.1.1.1/",
        "https://128.0.0.1/",
        "https://223.255.255.1/",
        "https://192.167.1.1/",
    ),
    *("https://169.253.1.1/", "https://192.0.1.1/", "https://[2a00:1450::5efe:808:808]/"),
)
NAMES = (
    *("https://api.example.com", "https://api.example.com/", "https://api.example.com./x", "http://a.test:8080?x=1"),
    *(
        "https://xn--bcher-kva.test/",
        "https://my_tool.test/a/b;c=d?e=f&g[]=h",
        "http://a1.test/",
        "http://internal.test/",
    ),
    *("http://127.0.0.1.nip.io/", "http://1.a/", "http://0x7f.test/", "https://A.TEST/~x/:y@z"),
)


def http(url: str, **headers: str) -> ToolHttp:
    """A tool's address that nobody has checked yet."""
    return ToolHttp.model_construct(url=url, method="POST", headers=headers)


def tool(url: str, method: str = "POST", **more: Any) -> ToolConfig:
    place = ToolHttp.model_construct(url=url, method=method, headers=more.pop("headers", {}))
    made = {"name": "t", "description": "d", "parameters": {"type": "object"}, "nats": None, "deadline_ms": 2000}
    return ToolConfig.model_construct(http=place, **{**made, **more})


def looked_up(*ips: str) -> Any:
    """What `getaddrinfo` returns."""
    return [
        (
            socket.AF_INET6 if ":" in ip else socket.AF_INET,
            socket.SOCK_STREAM,
            6,
            "",
            (ip, 80, 0, 0)[: 4 if ":" in ip else 2],
        )
        for ip in ips
    ]


class Canary:
    """An HTTP server on this machine that must not be reached. Counts those who do."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self.location = ""

    async def __aenter__(self) -> "Canary":
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            self.hits.append(request.path)
            if request.path == "/away":
                return web.Response(status=302, headers={"Location": self.location})
            return web.json_response({"secret": "of the host"})

        self._runner = web.ServerRunner(web.Server(answer))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    async with Canary() as canary:
        yield canary


@pytest.fixture
async def tools() -> AsyncIterator[Tools]:
    tools = Tools(None)  # type: ignore[arg-type]
    yield tools
    await tools.aclose()


async def called(tools: Tools, wanted: ToolConfig) -> Any:
    return json.loads(await tools.call(wanted, "{}", key="k", session="s", turn=1))


# -- spellings --------------------------------------------------------------------------------------------------------


def test_there_are_enough_of_them() -> None:
    assert len(set(REFUSED)) > 250


@pytest.mark.parametrize("url", sorted(set(REFUSED)))
def test_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        Hosts("").check(http(url.replace("PORT", "8080")))


@pytest.mark.parametrize("url", [*PUBLIC, *NAMES])
def test_let_through_to_the_resolver_and_read_alike_by_the_client(url: str) -> None:
    assert Hosts("").check(http(url)) is False
    read, place = URL(url, encoded=True), authority(url)
    assert ((read.raw_host or "").rstrip(".").lower(), read.port) == (place.host, place.port)
    assert read.user is None


async def test_none_of_them_reaches_this_machine(canary: Canary, tools: Tools) -> None:
    for url in REFUSED:
        for method in ("POST", "GET"):
            answer = await called(tools, tool(url.replace("PORT", str(canary.port)), method))
            assert answer == {"error": "address_refused"}, url
    assert canary.hits == []


@pytest.mark.parametrize("name", ["localhost", "localhost.", "LOCALHOST", "ip6-localhost", "its own"])
async def test_no_name_of_this_machine_reaches_it(canary: Canary, tools: Tools, name: str) -> None:
    host = socket.gethostname() if name == "its own" else name
    answer = await called(tools, tool(f"http://{host}:{canary.port}/"))
    assert answer["error"] in ("address_refused", "tool_unavailable")  # there may be no such name
    assert canary.hits == []
    if name.lower() == "localhost":
        assert answer["error"] == "address_refused"


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", [*PRIVATE_V4, *PRIVATE_V6])
def test_not_public(ip: str) -> None:
    assert not is_public(ipaddress.ip_address(ip))


@pytest.mark.parametrize("v4", PRIVATE_V4)
def test_what_holds_a_private_address_is_not_public(v4: str) -> None:
    assert {how for how, ip in embedded(v4).items() if is_public(ipaddress.ip_address(ip))} == set()


def test_what_holds_a_public_address_is_as_public_as_its_kind() -> None:
    public = {how for how, ip in embedded("8.8.8.8").items() if is_public(ipaddress.ip_address(ip))}
    assert public == {"mapped", "mapped in hex", "mapped, long", "nat64", "isatap", "isatap, unique"}


def test_every_special_network_is_refused_from_its_first_to_its_last_address() -> None:
    for network in (*addresses._NOT_PUBLIC_V4, *addresses._NOT_PUBLIC_V6):
        for ip in (network[0], network[-1], network[network.num_addresses // 2]):
            assert not is_public(ip), ip


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1%1", "::ffff:10.0.0.1", "10.0.0.1"])
async def test_a_name_with_one_private_address_is_refused(private: str) -> None:
    for found in ((private,), ("93.184.216.34", private), (private, "93.184.216.34")):
        resolver = Resolver(public_only=True, lookup=lambda *_, found=found: looked_up(*found))
        with pytest.raises(AddressRefused):
            await resolver.resolve("a.test", 80)
        await resolver.close()


async def test_a_name_with_public_addresses_has_them_all() -> None:
    resolver = Resolver(public_only=True, lookup=lambda *_: looked_up("93.184.216.34", "2606:4700:4700::1111"))
    found = await resolver.resolve("a.test", 80)
    assert [row["host"] for row in found] == ["93.184.216.34", "2606:4700:4700::1111"]
    await resolver.close()


@pytest.mark.parametrize("odd", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
async def test_even_the_systems_own_reading_of_odd_numbers_is_refused(odd: str) -> None:
    resolver = Resolver(public_only=True)
    with pytest.raises((AddressRefused, OSError)):
        await resolver.resolve(odd, 80)
    await resolver.close()


async def test_a_name_that_changes_its_address_gains_nothing(
    canary: Canary, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second look-up of a name leads to this machine: there is none between the check and the connection."""
    answers = iter([looked_up("93.184.216.34"), looked_up("93.184.216.35"), looked_up("127.0.0.1")])
    connected: list[str] = []
    make = addresses._public_socket

    def offline(info: tuple[Any, ...]) -> socket.socket:
        make(info).close()
        connected.append(info[4][0])
        raise OSError("this test does not leave the machine")

    monkeypatch.setattr(addresses, "_public_socket", offline)
    tools._pools[False] = connections(public_only=True, lookup=lambda *_: next(answers))
    wanted = tool(f"http://rebinding.test:{canary.port}/")
    assert (await called(tools, wanted))["error"] == "tool_unavailable"
    assert connected == ["93.184.216.34", "93.184.216.35"]  # the call and its one repetition
    assert (await called(tools, wanted))["error"] == "address_refused"
    assert len(connected) == 2
    assert canary.hits == []


async def test_a_resolver_that_lets_it_pass_is_not_enough(canary: Canary, tools: Tools) -> None:
    """What is connected to is checked as well."""
    pool = tools._pools[False] = connections(public_only=True)
    pool.connector._resolver._public_only = False  # type: ignore[union-attr]
    answer = await called(tools, tool(f"http://localhost:{canary.port}/"))
    assert answer == {"error": "address_refused"}
    assert canary.hits == []


async def test_literal_addresses_do_not_pass_the_resolver_but_the_socket(canary: Canary, tools: Tools) -> None:
    pool = connections(public_only=True)
    with pytest.raises(AddressRefused):
        await pool.post(f"http://127.0.0.1:{canary.port}/")
    await pool.close()
    assert canary.hits == []


async def test_proxies_of_the_environment_are_not_used(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tools = Tools(None, "a.test")  # type: ignore[arg-type]
    tools._pools[True] = connections(public_only=False, lookup=lambda *_: looked_up("127.0.0.1"))
    assert await called(tools, tool(f"http://a.test:{port}/")) == {"error": "tool_unavailable"}
    await tools.aclose()
    assert canary.hits == []


# -- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_redirects_are_not_followed(canary: Canary, method: str) -> None:
    async with Canary() as inner:
        canary.location = f"http://127.0.0.1:{inner.port}/secret"
        tools = Tools(None, f"127.0.0.1:{canary.port},127.0.0.1:{inner.port}")  # type: ignore[arg-type]
        answer = await called(tools, tool(f"http://127.0.0.1:{canary.port}/away", method))
        assert answer == {"error": "tool_redirects", "status": 302}
        await tools.aclose()
        assert (canary.hits, inner.hits) == (["/away"], [])


# -- named hosts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "url", "passes"),
    [
        ("localhost:9000", "http://localhost:9000/", True),
        ("localhost:9000", "http://localhost:9001/", False),
        ("localhost:9000", "http://LOCALHOST.:9000/", True),
        ("localhost", "http://localhost:9001/", True),
        (" Localhost , ", "https://localhost/", True),
        ("10.1.2.3", "http://10.1.2.3:81/", True),
        ("[::1]:80", "http://[0:0::1]/", True),
        ("[::1]:80", "https://[::1]/", False),
        ("*.example.com", "https://a.example.com/", True),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://aexample.com/", False),
        ("*.example.com", "https://a.example.com.evil.test/", False),
        ("*.example.com:443", "https://a.example.com/", True),
        ("*.example.com:443", "http://a.example.com/", False),
        ("example.com", "https://a.example.com/", False),
        ("", "https://a.example.com/", False),
    ],
)
def test_named(named: str, url: str, passes: bool) -> None:
    assert Hosts(named).named(authority(url)) is passes


def test_the_end_of_an_address_is_no_domain() -> None:
    assert not Hosts("*.example.com").named(authority("http://10.0.0.1/"))
    hosts = Hosts("")
    hosts._named = {(".0.0.1", None)}
    assert not hosts.named(authority("http://10.0.0.1/"))


@pytest.mark.parametrize(
    "entry", ["*", "*.", "http://a.test", "a.test/x", "a b", "a:0", "a:99999", "::1", "*.0.0.1", "127.1"]
)
def test_entries_that_name_nothing(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Hosts(f"a.test,{entry}")
    assert entry in str(caught.value)
    assert "host:port" in caught.value.fix


@pytest.mark.parametrize("entry", ["http://me:hush@a.test/", "a.test\nb.test", "a.test\x1b[2J", "\udcff", "10.0.0.0/8"])
def test_what_is_said_of_one_is_a_line_without_a_password(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Hosts(entry)
    assert str(caught.value).isprintable()
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("stage", "entry"), [("llm", "https://a.test"), ("transport", "*")])
def test_a_service_says_at_its_start_what_is_wrong_with_them(stage: str, entry: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshag", "serve", stage],
        env={**os.environ, "MESHAG_TOOL_HOSTS": f"b.test, {entry}", "NATS_URL": "nats://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    said, fix = done.stderr.splitlines()
    assert said == f"meshag: MESHAG_TOOL_HOSTS: '{entry}' is no host"
    assert fix.startswith("  fix: write host, host:port, ")


async def test_a_named_host_is_reached(canary: Canary) -> None:
    tools = Tools(None, f"localhost:{canary.port}")  # type: ignore[arg-type]
    assert await called(tools, tool(f"http://localhost:{canary.port}/x")) == {"secret": "of the host"}
    assert await called(tools, tool(f"http://127.0.0.1:{canary.port}/x")) == {"error": "address_refused"}
    await tools.aclose()
    assert canary.hits == ["/x"]


async def test_variables_are_sent_to_named_hosts_only(canary: Canary) -> None:
    """Whoever may create a session may name any public address of his own."""
    tools = Tools(None, "a.test", environment={"MESHAG_TOOL_KEY": "k-123"})  # type: ignore[arg-type]
    tools._pools[False] = connections(public_only=True, lookup=lambda *_: pytest.fail("looked up"))
    wanted = tool("https://b.test/", headers={"X-Key": "${MESHAG_TOOL_KEY}"})
    assert await called(tools, wanted) == {"error": "secret_refused"}
    await tools.aclose()
    (concern,) = tools.hosts.concerns([tool("https://a.test/"), wanted])
    assert (concern.path, concern.code) == ("config.tools.1.http.headers", "secret_refused")
    assert not concern.warning
