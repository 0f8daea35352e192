"""Functions that the model may call: what a session's JSON says of them. Calling them is `connectors/tools.py`."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import unquote_plus

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, model_validator

from meshag.sessions.pipeline import Part
from meshag.sessions.problems import FoundProblems, Problem, dotted
from meshag.sessions.schemas import schema_problems

STORED = {"stored": True}
"""Validation context of what was checked when it was created: its schemas are not checked again."""

URL_CHARS = 2048
"""Longest address."""

REFERENCE = re.compile(r"\$\{([^{}]*)\}")
"""Where a header's value takes a variable of the service's environment."""

_VARIABLE = re.compile(r"MESHAG_TOOL_(?!HOSTS$)[A-Z0-9_]{1,64}")
_SUBJECT = re.compile(r"tools(\.[A-Za-z0-9_-]{1,64}){1,6}")

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL = re.compile(
    rf"(?i:(?P<scheme>https?))://(?:(?P<name>{_LABEL}(?:\.{_LABEL})*)\.?|\[(?P<ipv6>[0-9A-Fa-f:.]{{2,45}})\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?:[/?][A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]*)?"
)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_PRINTABLE = re.compile(r"[\t -~]{0,1024}")
_OURS = frozenset(
    {
        *("accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host"),
        *("idempotency-key", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent"),
    }
)
_SECRET_NAME = re.compile(r"auth|cookie|token|secret|passw|credential|signature|api-?key|(^|[-_])key$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(bearer|basic)\s+\S", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z =_-]{0,31}|")

_USER = re.compile(r"(?i:https?):[/\\]*[^/?#\\]*@")
_QUERY_WORDS = frozenset(
    {
        *("auth", "authentication", "authorization", "bearer", "cookie", "cred", "credential", "credentials", "jwt"),
        *("key", "oauth", "pass", "passphrase", "passwd", "password", "pw", "pwd", "sas", "secret", "sig", "signature"),
        "token",
    }
)
"""Words of which a secret's name in a query has one."""

_QUERY_NAME = re.compile(r"(api|access|app|auth|client|private|secret|subscription)key|passw|(secret|signature|token)$")
"""Such words written together, lower case, letters only."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


@dataclass(frozen=True, slots=True)
class Authority:
    """Whom an address names."""

    host: str
    """Lower case, without brackets and without a dot at the end."""

    port: int
    """1 to 65535."""

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    """Where the host is an address itself."""


def authority(url: str) -> Authority:
    """Whom an http(s) address names. Raises ValueError for one that two readers might read differently."""
    if len(url) > URL_CHARS:
        raise ValueError(f"longer than {URL_CHARS} characters")
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("not a plain http or https address")
    scheme, name, ipv6, digits = found.group("scheme", "name", "ipv6", "port")
    port = int(digits or (443 if scheme.lower() == "https" else 80))
    if not 0 < port < 65_536:
        raise ValueError("no such port")
    if ipv6 is not None:
        try:
            return Authority(ipv6.lower(), port, ipaddress.IPv6Address(ipv6))
        except ValueError:
            raise ValueError("not an IPv6 address") from None
    if len(name) > 253:
        raise ValueError("the host's name is too long")
    if not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return Authority(name.lower(), port, None)
    try:  # `127.1`, `0x7f.0.0.1`, `2130706433`: what they mean depends on who reads them
        return Authority(name, port, ipaddress.IPv4Address(name))
    except ValueError:
        raise ValueError("an IPv4 address that is not written as four decimal numbers") from None


class ToolHttp(Part):
    """A tool behind an HTTP address."""

    url: str
    """Where it is called: http or https, up to 2048 characters. Hosts that are not public have to be named in the
    service's MESHAG_TOOL_HOSTS."""

    method: Literal["POST", "GET"] = "POST"
    """POST: the arguments are the JSON body. GET: they are the query. Default POST."""

    headers: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Sent along, up to 16. `${MESHAG_TOOL_…}` in a value is a variable of the service's environment. Default none."""

    @model_validator(mode="after")
    def _can_be_called(self, info: ValidationInfo) -> "ToolHttp":
        problems: list[Problem] = []
        try:
            authority(self.url)
        except ValueError as error:
            problems.append(_url_problem(self.url, str(error)))
        else:
            if not (info.context or {}).get("stored") and _has_secret(self.url):
                said = "a parameter that looks like a secret: it must not stand in a session's JSON"
                problems.append(Problem("url", said, _IN_A_HEADER, "tool_secret"))
        seen: set[str] = set()
        for name, value in self.headers.items():
            if problem := _header_problem(name, value, seen):
                said, fix, code = problem
                problems.append(Problem(dotted("headers", name), said, fix, code))
            seen.add(name.lower())
        if problems:
            raise FoundProblems(problems)
        return self


_IN_A_HEADER = (
    "take it out and send it in a header: {'Authorization': 'Bearer ${MESHAG_TOOL_…}'}, with that variable set where "
    "the llm service runs"
)


def _url_problem(url: str, said: str) -> Problem:
    """What is wrong with an address that cannot be read. Nothing of it is repeated: it may hold a password."""
    if _USER.match(url):
        return Problem("url", "a user or a password must not stand in an address", _IN_A_HEADER, "tool_secret")
    if "${" in url:
        return Problem("url", "variables can be used in headers only", _IN_A_HEADER, "tool_secret")
    fix = "write https://host/path, special characters percent-encoded, no user, no password, no fragment"
    return Problem("url", said, fix, "tool_url")


def _has_secret(url: str) -> bool:
    """Whether a parameter of the query has a value and the name, or the look, of a secret."""
    for parameter in re.split("[&;]", url.partition("?")[2]):
        name, _, value = map(unquote_plus, parameter.partition("="))
        plain = re.sub("[^a-z]", "", name.lower())
        words = {word.lower() for word in _WORD.findall(name)}
        if value and (words & _QUERY_WORDS or _QUERY_NAME.search(plain) or _SECRET_VALUE.match(value)):
            return True
    return False


def _header_problem(name: str, value: str, before: set[str]) -> tuple[str, str, str] | None:
    """What is wrong with one header, the fix and the code."""
    if not _HEADER.fullmatch(name):
        return "not a header's name", "use letters, digits and '-'", "tool_header"
    if not _PRINTABLE.fullmatch(value):
        return "not a header's value", "use up to 1024 printable ASCII characters", "tool_header"
    if name.lower() in before:
        return "given twice", "keep one of them", "tool_header"
    if name.lower() in _OURS or name.lower().startswith("x-meshag-"):
        return "MeshAG sets this header itself", "remove it", "tool_header"
    rest = REFERENCE.sub("", value)
    if "${" in rest or not all(_VARIABLE.fullmatch(variable) for variable in REFERENCE.findall(value)):
        fix = "write ${MESHAG_TOOL_…} and set that variable where the llm service runs"
        return "only variables that begin with MESHAG_TOOL_ can be used", fix, "tool_secret"
    is_secret = _SECRET_NAME.search(name) or _SECRET_VALUE.search(value)
    if is_secret and (rest == value or not _SCHEME.fullmatch(rest)):
        fix = "write ${MESHAG_TOOL_…} in its place and set that variable where the llm service runs"
        return "a secret must not stand in a session's JSON", fix, "tool_secret"
    return None


class ToolNats(Part):
    """A tool that answers requests on NATS."""

    subject: str
    """Where it listens: `tools.` and one to six names of letters, digits, `-` and `_`, joined by dots."""

    @model_validator(mode="after")
    def _is_a_tools_own(self) -> "ToolNats":
        if not _SUBJECT.fullmatch(self.subject):
            fix = "write 'tools.<name>': letters, digits, '-' and '_', up to six names joined by dots"
            raise FoundProblems([Problem("subject", "not a tool's subject", fix, "tool_subject")])
        return self


class ToolConfig(Part):
    """A function that the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """What the model calls it: 1 to 64 letters, digits, `-` and `_`."""

    description: str = Field(min_length=1, max_length=1024)
    """What it does and when to call it, for the model. 1 to 1024 characters."""

    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """The JSON schema of its arguments, an object's, up to 16 KB. Default: no arguments."""

    http: ToolHttp | None = None
    """The HTTP address that is called. Either this or `nats`."""

    nats: ToolNats | None = None
    """The NATS subject that is asked. Either this or `http`."""

    deadline_ms: int = Field(default=5_000, ge=100, le=60_000)
    """How long one call may take, a second try included, ms. 100 to 60,000. Default 5,000."""

    say: str = Field(default="One moment, please.", max_length=200)
    """What the caller hears when it takes longer than `say_after_ms`. Up to 200 characters; empty: nothing. Default
    "One moment, please."."""

    say_after_ms: int = Field(default=800, ge=0, le=60_000)
    """When the caller hears it, ms. 0 to 60,000. Default 800."""

    @model_validator(mode="after")
    def _can_be_called(self, info: ValidationInfo) -> "ToolConfig":
        problems: list[Problem] = []
        if (self.http is None) == (self.nats is None):
            said = "neither 'http' nor 'nats'" if self.http is None else "both 'http' and 'nats'"
            problems.append(Problem("", said, "give one of them", "tool_target"))
        if not (info.context or {}).get("stored"):
            for problem in schema_problems(self.parameters):
                path = ".".join(filter(None, ("parameters", problem.path)))
                problems.append(Problem(path, problem.message, problem.fix, problem.code))
        if problems:
            raise FoundProblems(problems)
        return self


def _each_once(tools: list[ToolConfig]) -> list[ToolConfig]:
    names = [tool.name for tool in tools]
    twice = [i for i, name in enumerate(names) if name in names[:i]]
    if twice:
        said, fix = "another tool has this name", "give it a name of its own"
        raise FoundProblems([Problem(f"{i}.name", said, fix, "tool_duplicate") for i in twice])
    return tools


ToolList = Annotated[list[ToolConfig], Field(max_length=32), AfterValidator(_each_once)]
"""The tools of a session, each name once."""
