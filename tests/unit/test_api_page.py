"""The page: its files as they are served, and that they fit together."""

import re
from html.parser import HTMLParser
from importlib import resources

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from meshag.api import page

pytestmark = pytest.mark.unit

FILES = {
    entry.name: entry.read_text("utf-8")
    for entry in resources.files("meshag.console").iterdir()
    if entry.name.rpartition(".")[2] in page.TYPES
}
HTML = FILES["index.html"]
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}


async def get(name: str) -> web.Response:
    return await page.static(make_mocked_request("GET", f"/static/{name}", match_info={"name": name}))


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


ELEMENTS = Elements(HTML).found
IDS = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]


async def test_the_page_is_served_at_the_root() -> None:
    answer = await page.index(make_mocked_request("GET", "/"))
    assert (answer.status, answer.content_type, answer.text) == (200, "text/html", HTML)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("style.css", "text/css"),
        ("meshag.js", "text/javascript"),
        ("capture-worklet.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ],
)
async def test_its_files_are_served_with_their_types(name: str, kind: str) -> None:
    answer = await get(name)
    assert (answer.status, answer.content_type, answer.charset) == (200, kind, "utf-8")
    assert answer.text == FILES[name]


@pytest.mark.parametrize("name", sorted(FILES))
async def test_nothing_from_elsewhere_and_nothing_inline_may_run(name: str) -> None:
    headers = (await get(name)).headers
    policy = headers["Content-Security-Policy"]
    assert policy.split("; ")[0] == "default-src 'self'"
    assert "unsafe" not in policy
    assert "-src" not in policy.removeprefix("default-src")  # nothing that loosens it
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        "",
        ".js",
        "__init__.py",
        "__pycache__",
        "..",
        "../page.py",
        "../console/meshag.js",
        "./meshag.js",
        "..\\console\\meshag.js",
        "/etc/passwd",
        "meshag.js\0",
        "MESHAG.JS",
        "meshag.js/",
    ],
)
async def test_whatever_else_is_asked_for_is_not_there(name: str) -> None:
    with pytest.raises(web.HTTPNotFound):
        await get(name)


def test_the_page_has_nothing_inline() -> None:
    for tag, attributes in ELEMENTS:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes, tag
        assert tag != "style"
        if tag == "script":
            assert attributes.get("src"), "an inline script"


def test_the_page_loads_only_files_of_its_own() -> None:
    loaded = [a.get("src") or a.get("href") for tag, a in ELEMENTS if tag in ("script", "link", "img")]
    assert loaded
    for address in loaded:
        assert address is not None
        assert address.removeprefix("static/") in FILES, address
    for name, text in FILES.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"'`]*", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{name} names {addresses}"


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_load_only_files_of_their_own(name: str) -> None:
    for found in re.findall(r'(?:from |import |new URL\()"([^"]+\.js)"', SCRIPTS[name]):
        assert found.removeprefix("./") in SCRIPTS


def test_every_element_that_the_scripts_name_is_on_the_page() -> None:
    assert len(IDS) == len(set(IDS))
    script = SCRIPTS["meshag.js"]
    named = set(re.findall(r'(?:element|set)\("([^"]+)"', script))
    shown = re.search(r"const shown = \{(.*?)\};", script, re.DOTALL)
    assert shown is not None
    named |= set(re.findall(r"^ {4}(\w+):", shown[1], re.MULTILINE))
    assert {"talk", "hush", "text", "problem"} <= named
    assert named <= set(IDS)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_what_the_service_says_never_becomes_markup(name: str) -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert way not in SCRIPTS[name]


def test_every_control_has_a_name() -> None:
    labelled = {attributes.get("for") for tag, attributes in ELEMENTS if tag == "label"}
    for tag, attributes in ELEMENTS:
        if tag == "input":
            assert attributes["id"] in labelled
    assert re.search(r"<label[^>]*>\s*<span>Microphone</span> <meter", HTML)
    assert not re.search(r"<button[^>]*>\s*</button>", HTML)
    assert re.search(r'<div id="announcer"[^>]* aria-live="polite">', HTML)
    assert re.search(r'<p id="problem" role="alert">', HTML)
    assert '<html lang="en">' in HTML
