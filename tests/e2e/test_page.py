"""The page in a real browser: what a person sees, hears and does on it."""

import asyncio
import math
import re
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from browser import CHROMIUM, Page, chromium

from bench import instant
from meshag.audio import read_wav, write_wav
from meshag.embedded.mesh import Mesh
from meshag.settings import default_cache_dir
from meshes import call, create, join, start_mesh

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH"),
]

SPEECH = Path(__file__).parent.parent / "data" / "speech"
REPLY = "".join(instant.TOKENS).strip()

EARS = """
// What the page sends, and what reaches the loudspeaker, watched from outside.
window.sent = { frames: [], said: [], bodies: [] };
const sendAsIs = WebSocket.prototype.send;
WebSocket.prototype.send = function (message) {
  if (typeof message === "string") sent.said.push(JSON.parse(message));
  else sent.frames.push(message.byteLength);
  return sendAsIs.call(this, message);
};
const connectAsIs = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...more) {
  if (this instanceof AudioBufferSourceNode && to === this.context.destination) {
    window.ear ??= new AnalyserNode(this.context, { fftSize: 2048 });
    connectAsIs.call(this, ear);
  }
  return connectAsIs.call(this, to, ...more);
};
window.played = [];
const startAsIs = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
  played.push({ when, late: when < this.context.currentTime, samples: this.buffer.length });
  return startAsIs.call(this, when);
};
window.stopped = 0;
const stopAsIs = AudioBufferSourceNode.prototype.stop;
AudioBufferSourceNode.prototype.stop = function (when) {
  stopped += 1;
  return stopAsIs.call(this, when);
};
window.loudness = () => {
  if (!window.ear) return 0;
  const samples = new Float32Array(ear.fftSize);
  ear.getFloatTimeDomainData(samples);
  return Math.max(...samples.map(Math.abs));
};
"""

OWN_CONFIG = """
// The page asks for a session of the default configuration; here it gets one of the instant providers'.
const asIs = window.fetch;
window.fetch = (url, asked) => {
  if (asked?.body) {
    sent.bodies.push(asked.body);
    asked = { ...asked, body: CONFIG };
  }
  return asIs(url, asked);
};
""".replace("CONFIG", repr(msgspec.json.encode({"config": instant.config()}).decode()))


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """A browser whose microphone hears a tone."""
    wav = tmp_path / "tone.wav"
    tone = [int(8000 * math.sin(2 * math.pi * 300 * i / 48_000)) for i in range(48_000)]
    write_wav(wav, struct.pack(f"<{len(tone)}h", *tone), 48_000)
    microphone = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={wav}")
    async with chromium(tmp_path / "profile", *microphone) as page:
        yield page


@pytest.fixture
async def page_without_microphone(tmp_path: Path) -> AsyncIterator[Page]:
    async with chromium(tmp_path / "profile") as page:
        yield page


async def allow(page: Page, setting: str = "granted") -> None:
    await page.send("Browser.setPermission", permission={"name": "microphone"}, setting=setting)


def text(element: str) -> str:
    return f"document.querySelector({element!r})?.textContent"


def shown(element: str) -> str:
    return f"document.querySelector({element!r}).checkVisibility()"


async def press(page: Page, button: str) -> None:
    await page.until(f"{shown(button)} && document.querySelector({button!r}).ariaDisabled !== 'true'")
    await page.run(f"document.querySelector({button!r}).click()")


async def type_text(page: Page, said: str) -> None:
    await page.run("document.querySelector('#text').focus()")
    await page.type(said)


def state(name: str) -> str:
    return f"document.body.dataset.state === {name!r}"


async def test_a_typed_conversation_is_seen_and_heard(page_without_microphone: Page, mesh: Mesh) -> None:
    page, created = page_without_microphone, create(mesh)
    await page.open(f"{mesh.url}/?session={created['session_id']}", before=EARS)
    question = '<img src=x onerror="alert(1)"> Where is my order?'
    await type_text(page, question)
    await page.until(state("speaking"))
    await page.until("loudness() > 0.2")
    assert await page.run(text(".you span:last-child")) == question
    assert await page.run("document.querySelectorAll('img').length") == 0
    await page.until(f"{text('.agent span:last-child')} === {REPLY!r}")
    await page.until(state("listening").replace("listening", "typing"))
    await page.until("loudness() === 0")
    assert await page.run("played.reduce((sum, piece) => sum + piece.samples, 0)") == 3 * 24_000  # all of it
    assert not await page.run("played.some(piece => piece.late)")
    facts = await page.run(text(".facts"))
    assert re.fullmatch(r"answered by instant(: \S+)?\nafter Enter: first reply \d+ ms, voice \d+ ms", facts), facts
    assert f"Agent: {REPLY}" in await page.run(text("#announcer"))
    assert await page.run(text("#problem")) == ""
    assert (page.console, page.errors) == ([], [])


async def test_the_microphone_is_heard_shown_and_muted(page: Page, mesh: Mesh) -> None:
    created = create(mesh)
    await allow(page)
    await page.open(f"{mesh.url}/?session={created['session_id']}", before=EARS)
    for _ in range(2):  # past the conversation, which scrolls
        await page.press("Tab", 9)
    assert await page.run("document.activeElement.id") == "talk"
    await page.press("Enter", 13, "\r")
    await page.until(state("listening"))
    await page.until("document.querySelector('#level').value > 0.3")
    await page.until("sent.frames.length > 20")
    assert await page.run("[...new Set(sent.frames)]") == [640]  # 20 ms at 16 kHz
    assert await page.run("document.activeElement.id") == "mute"  # not lost with the button that went
    await page.press(" ", 32, " ")
    await page.until("document.querySelector('#mute').ariaPressed === 'true'")
    await page.until("document.querySelector('#level').value === 0")
    frames = await page.run("sent.frames.length")
    await page.until(f"sent.frames.length > {frames + 10}")  # silence is sent: the mesh hears that one stopped
    assert await page.run(text("#state")) == "Muted"
    await press(page, "#mute")
    await page.until("document.querySelector('#level').value > 0.3")
    await press(page, "#end")
    await page.until(shown("#talk"))
    assert await page.run(text(".note")) == "You have left the session."
    assert call(mesh, "GET", f"/sessions/{created['session_id']}")[0] == 200  # not the page's to end
    assert (page.console, page.errors) == ([], [])


async def test_talk_makes_a_session_and_end_ends_it(page: Page, mesh: Mesh) -> None:
    await allow(page)
    await page.open(mesh.url, before=EARS + OWN_CONFIG)
    await press(page, "#talk")
    await page.until(state("listening"))
    assert await page.run("sent.bodies") == ['{"config":{}}']
    session = await page.run(text("[data-name=session]"))
    assert call(mesh, "GET", f"/sessions/{session}")[1]["status"] == "live"
    assert set(await page.run("[...document.querySelectorAll('dt')].map(each => each.textContent)")) >= {
        "session",
        "stt",
        "llm",
        "tts",
    }
    await press(page, "#end")
    await page.until(f"{text('.note')} === 'The session has ended.'")
    await page.until(shown("#talk"))
    await page.until(f"fetch('/sessions/{session}').then(answer => answer.status === 404)")
    await press(page, "#talk")
    await page.until(f"{state('listening')} && {text('[data-name=session]')} !== {session!r}")
    again = await page.run(text("[data-name=session]"))
    await page.open(f"{mesh.url}/health")  # going elsewhere ends it too
    await page.until(f"fetch('/sessions/{again}').then(answer => answer.status === 404)")
    assert page.errors == []


async def test_an_interruption_is_silence_at_once(page_without_microphone: Page, mesh: Mesh) -> None:
    page, created = page_without_microphone, create(mesh)
    await page.open(f"{mesh.url}/?session={created['session_id']}", before=EARS)
    await type_text(page, "Tell me everything.")
    await page.until("loudness() > 0.2")
    await press(page, "#hush")
    await page.until("loudness() === 0", timeout_s=1)  # of three seconds of speech
    assert await page.run("stopped") > 0  # what waited in the page is not played either
    await page.until(f"{text('.facts')}.startsWith('interrupted')")
    assert await page.run("sent.said.map(said => said.type)") == ["text", "interrupt"]
    assert (page.console, page.errors) == ([], [])


async def test_a_denied_microphone_is_said_in_words_and_typing_works(page: Page, mesh: Mesh) -> None:
    created = create(mesh)
    await allow(page, "denied")
    await page.open(f"{mesh.url}/?session={created['session_id']}", before=EARS)
    await press(page, "#talk")
    await page.until(state("typing"))
    problem = await page.run(text("#problem"))
    assert problem.startswith("The microphone is not allowed for this page.")
    assert problem.endswith("Until then you can type.")
    await type_text(page, "Hello?")
    await page.until(f"{text('.agent span:last-child')} === {REPLY!r}")
    await allow(page)
    await press(page, "#microphone")
    await page.until("document.querySelector('#level').value > 0.3")
    assert await page.run(text("#problem")) == ""
    assert (page.console, page.errors) == ([], [])


async def test_without_a_microphone_it_says_so(page_without_microphone: Page, mesh: Mesh) -> None:
    page, created = page_without_microphone, create(mesh)
    await allow(page)
    await page.open(f"{mesh.url}/?session={created['session_id']}", before=EARS)
    await press(page, "#talk")
    await page.until(state("typing"))
    assert (await page.run(text("#problem"))).startswith("No microphone was found.")
    assert (page.console, page.errors) == ([], [])


async def test_who_is_replaced_can_reconnect(page_without_microphone: Page, mesh: Mesh) -> None:
    page, created = page_without_microphone, create(mesh)
    await page.open(f"{mesh.url}/?session={created['session_id']}", before=EARS)
    await type_text(page, "First?")
    await page.until(state("typing"))
    async with join(created) as other:
        await other.wait_for("ready")
        await page.until(state("lost"))
        assert await page.run(text("#problem")) == "Somebody else has joined this session in your place."
        await press(page, "#reconnect")
        await page.until(state("typing"))
    await type_text(page, "Second?")
    await page.until(
        f"[...document.querySelectorAll('.agent')].filter(a => a.textContent.includes({REPLY!r})).length == 2"
    )
    assert await page.run(text("#problem")) == ""
    assert (page.console, page.errors) == ([], [])


async def test_what_the_service_refuses_is_said_in_words(page_without_microphone: Page, mesh: Mesh) -> None:
    page = page_without_microphone
    await page.open(f"{mesh.url}/?session={'a' * 26}")
    await type_text(page, "Anybody?")
    await page.until(f"{text('#problem')} !== ''")
    assert "session" in await page.run(text("#problem"))
    assert await page.run(state("idle"))
    await page.open(mesh.url)  # no model is in this mesh's cache
    await type_text(page, "Anybody?")
    await page.until(f"{text('#problem')}.includes('local')")
    assert await page.run(state("idle"))
    assert page.errors == []


async def test_it_comes_back_by_itself_and_the_agent_goes_on_where_it_was_cut(
    page_without_microphone: Page, own_mesh: Mesh
) -> None:
    page, created = page_without_microphone, create(own_mesh)
    await page.open(f"{own_mesh.url}/?session={created['session_id']}", before=EARS)
    await type_text(page, "Where is my order?")
    await page.until("played.length > 20")
    own_mesh.find("transport").child.kill()
    await page.until(state("resuming"))
    while not await page.run("document.body.dataset.state !== 'resuming'"):
        own_mesh.tend()
        await asyncio.sleep(0.1)
    whole = 3 * 24_000
    await page.until(f"played.reduce((sum, piece) => sum + piece.samples, 0) >= {whole}")
    await page.until(state("typing"))
    assert await page.run("played.reduce((sum, piece) => sum + piece.samples, 0)") == whole
    assert await page.run(text(".agent span:last-child")) == REPLY
    await type_text(page, "Still there?")
    await page.until(f"played.reduce((sum, piece) => sum + piece.samples, 0) >= {2 * whole}")
    assert await page.run(text("#problem")) == ""
    assert page.errors == []


async def test_a_takeover_is_told(page_without_microphone: Page, own_mesh: Mesh) -> None:
    page, created = page_without_microphone, create(own_mesh)
    await page.open(f"{own_mesh.url}/?session={created['session_id']}", before=EARS)
    await type_text(page, "Hello?")
    await page.until(f"{text('.agent span:last-child')} === {REPLY!r}")
    owner = call(own_mesh, "GET", f"/sessions/{created['session_id']}")[1]["owners"]["tts"]["worker"]
    for service in own_mesh.services:
        if service.stage == "tts" and own_mesh._ready_body(service)["worker"] == owner:
            service.child.kill()
    await page.until(f"{text('.note')} === 'tts was taken over by another worker'")
    await type_text(page, "Still there?")
    await page.until("loudness() > 0.2")
    assert (page.console, page.errors) == ([], [])


@pytest.mark.models
async def test_a_spoken_sentence_is_heard_and_answered_aloud(tmp_path: Path) -> None:
    pcm, rate_hz = read_wav(SPEECH / "sense_and_sensibility_01_austen_64kb-0880.wav")
    silence = bytes(2 * rate_hz)
    wav = tmp_path / "speech.wav"
    write_wav(wav, silence * 2 + pcm + silence * 30, rate_hz)
    microphone = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={wav}%noloop")
    one_each = {"stt": 1, "llm": 1, "tts": 1}
    mesh = start_mesh(tmp_path, workers=one_each, MESHAG_CACHE_DIR=str(default_cache_dir()))
    try:
        async with chromium(tmp_path / "profile", *microphone) as page:
            await allow(page)
            await page.open(mesh.url, before=EARS)
            await press(page, "#talk")
            await page.until(f"{text('.you:not(.interim) span:last-child')}?.includes('young man')", timeout_s=60)
            await page.until("loudness() > 0.02", timeout_s=60)
            facts = await page.run(text(".facts"))
            assert re.match(
                r"heard by local · answered by local: .+\n"
                r"after your last word: transcript \d+ ms, first reply \d+ ms, voice \d+ ms",
                facts,
            ), facts
            print(facts, await page.run("document.body.innerText"))
            assert (page.console, page.errors) == ([], [])
    finally:
        mesh.stop()
