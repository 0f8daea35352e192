/**
 * The page: a person talks to the agent.
 *
 * talk        click → microphone → session → connection
 * onEvent     the service's events → captions, state
 * onAudio     the agent's voice → speaker
 * onClosed    → comeBack: the same conversation, over another connection; or the end
 *
 * `?session=<id>` joins a session that exists; else each Talk makes one.
 */

import { Captions } from "./captions.js";
import { Microphone, MicrophoneError } from "./microphone.js";
import { Session } from "./session.js";
import { Speaker } from "./speaker.js";

const element = (id) => document.getElementById(id);
const captions = new Captions(element("turns"), element("announcer"));

const STATES = {
  idle: "Not connected",
  asking: "Allow the microphone, please",
  connecting: "Connecting…",
  listening: "Listening",
  muted: "Muted",
  typing: "Ready for what you type",
  hearing: "Hearing you",
  thinking: "Thinking",
  speaking: "Speaking",
  resuming: "Connection lost, coming back…",
  lost: "Connection lost",
};

/** How long a lost connection is tried again before the person is asked to, how often, and what is said meanwhile. */
const COME_BACK_MS = 20000;
const AGAIN_MS = 300;
const KEPT_FRAMES = 150;

const ENDINGS = {
  ended: "The session has ended.",
  expired: "The session has expired.",
  failed: "The session could not be kept up.",
  replaced: "Somebody else has joined this session in your place.",
};
const OVER = ["ended", "expired", "failed"];

let session = null;
let connection = null;
let microphone = null;
let speaker = null;
let phase = "idle"; // idle, asking, connecting, live, resuming, lost
let lostAt = 0; // when the connection broke that is being replaced
let unheard = []; // frames of the microphone that wait for a connection
let listens = false; // whether the person wants to speak, not only type
let refusal = ""; // why the service takes no connection
let voice = false; // the person's, as the service hears it
let agent = ""; // thinking, speaking
let speaking = 0; // the turn that is being spoken
let unsent = []; // typed before there was a connection
let followed = true; // whether the person looks at the newest, and so wants to see what comes

// -- what the person does ---------------------------------------------------------------------------------------------

/** Connect, with a session of our own where there is none yet. */
async function talk({ listen }) {
  if (isBusy()) return;
  hangUp();
  listens = listen;
  refusal = "";
  problem("");
  to(listen ? "asking" : "connecting");
  try {
    speaker ??= new Speaker();
    await speaker.wake();
    if (listen) await openMicrophone();
    to("connecting");
    session ??= await theSession();
    connection = await session.connect({
      microphone_hz: microphone?.rate ?? 0,
      speaker_hz: speaker.rate,
      on: { event: onEvent, audio: onAudio, closed: onClosed },
    });
  } catch (error) {
    if (error.status === 404) forget();
    lose(error.message);
  }
}

function theSession() {
  const id = new URLSearchParams(location.search).get("session");
  return id ? new Session(id) : Session.create();
}

async function openMicrophone() {
  try {
    microphone = await Microphone.open(onFrame, withoutMicrophone);
  } catch (error) {
    if (!(error instanceof MicrophoneError)) throw error;
    withoutMicrophone(error);
  }
}

function withoutMicrophone(error) {
  microphone?.close();
  microphone = null;
  problem(`${error.message} Until then you can type.`);
  draw();
}

function type(submit) {
  submit.preventDefault();
  const text = element("text").value.trim();
  if (!text) return;
  element("text").value = "";
  captions.typed(text);
  followed = true;
  follow();
  if (phase === "live") {
    connection.type(text);
  } else {
    unsent.push(text);
    if (phase !== "resuming") talk({ listen: false });
  }
}

function mute() {
  const muted = !isMuted();
  element("mute").setAttribute("aria-pressed", muted);
  microphone.muted = muted;
  draw();
}

function isMuted() {
  return element("mute").getAttribute("aria-pressed") === "true";
}

function hush() {
  if (agent) connection.interrupt();
}

async function end() {
  const ending = session;
  leave(ending.ours ? ENDINGS.ended : "You have left the session."); // who joined it does not end it
  try {
    if (ending.ours) await ending.end();
  } catch (error) {
    problem(error.message);
  }
}

// -- what the service says --------------------------------------------------------------------------------------------

function onEvent(event) {
  captions.show(event);
  events[event.type]?.(event);
  follow();
  draw();
}

const events = {
  ready(event) {
    facts({ session: event.session, ...event.owners });
    if (phase !== "resuming") captions.announce("Connected");
    to("live");
    lostAt = 0;
    connection.catchUp(unheard.splice(0));
    for (const text of unsent.splice(0)) connection.type(text);
  },
  voice_started: () => (voice = true),
  turn_ended(event) {
    voice = false;
    if (event.text && agent !== "speaking") agent = "thinking";
  },
  reply_started(event) {
    if (agent !== "speaking") agent = "thinking";
    facts({ model: event.model ? `${event.provider}: ${event.model}` : event.provider });
  },
  reply_ended(event) {
    if (event.reason === "interrupted" && agent === "thinking") agent = "";
  },
  speech_started(event) {
    speaker.begin();
    agent = "speaking";
    speaking = event.turn;
  },
  speech_resumed(event) {
    speaker.begin();
    agent = "speaking";
    speaking = event.turn;
  },
  draining: () => comeBack("The service is leaving."),
  speech_ended(event) {
    if (event.interrupted) speaker.clear();
    if (event.turn >= speaking) agent = "";
  },
  owner_changed(event) {
    captions.note(`${event.stage} was taken over by another worker`);
    facts({ [event.stage]: event.worker });
  },
  error(event) {
    if (phase === "connecting") refusal = event.message;
    else captions.note(event.stage ? `${event.stage}: ${event.message}` : event.message, true);
    if (agent === "thinking") agent = "";
  },
  session_ended(event) {
    const why = ENDINGS[event.reason] ?? "The service has closed the connection.";
    if (OVER.includes(event.reason)) leave(why);
    else if (event.reason === "replaced") lose(why);
    else comeBack(why);
  },
};

function onAudio(pcm) {
  speaker.play(pcm);
}

function onClosed(code, reason) {
  const why = { 1013: `The service cannot keep the connection: ${reason}.` }[code] ?? "The connection was lost.";
  if (refusal) lose(refusal);
  else comeBack(why);
}

/** Go on over another connection, with the microphone and what is being heard as they are. */
function comeBack(why) {
  const now = performance.now();
  lostAt ||= now;
  connection?.leave();
  connection = null;
  if (!session?.resumable || now - lostAt > COME_BACK_MS || !["live", "resuming"].includes(phase)) {
    lose(why);
    return;
  }
  voice = false;
  to("resuming");
  setTimeout(
    () => {
      if (phase !== "resuming" || connection) return;
      connection = session.resume({
        microphone_hz: microphone?.rate ?? 0,
        speaker_hz: speaker.rate,
        on: { event: onEvent, audio: onAudio, closed: onClosed },
      });
    },
    lostAt === now ? 0 : AGAIN_MS,
  );
}

function onFrame(pcm, level) {
  element("level").value = level;
  if (phase === "resuming") {
    unheard.push(pcm);
    unheard.splice(0, unheard.length - KEPT_FRAMES);
  } else {
    connection?.hear(pcm);
  }
}

// -- between the two --------------------------------------------------------------------------------------------------

/** The connection is gone; the session, where there is one, is not. */
function lose(why) {
  hangUp();
  problem(why);
  to(session ? "lost" : "idle");
}

/** The session is over. */
function leave(why) {
  hangUp();
  captions.note(why);
  forget();
  to("idle");
}

function forget() {
  session = null;
  unsent = [];
  captions.forget();
}

function hangUp() {
  connection?.leave();
  microphone?.close();
  speaker?.clear();
  connection = microphone = null;
  unheard = [];
  lostAt = 0;
  voice = false;
  agent = "";
  speaking = 0;
  element("mute").setAttribute("aria-pressed", "false");
}

// -- what is seen -----------------------------------------------------------------------------------------------------

function to(next) {
  phase = next;
  draw();
}

function draw() {
  const live = phase === "live";
  const here = live || phase === "resuming";
  const state = live ? (agent === "speaking" && agent) || (voice && "hearing") || agent || waiting() : phase;
  document.body.dataset.state = state;
  set("state", STATES[state]);
  const shown = {
    talk: phase === "idle" || isBusy(),
    reconnect: phase === "lost",
    mute: here && microphone,
    microphone: here && !microphone,
    hush: live,
    end: here || phase === "lost",
    hearing: here && microphone,
  };
  const focused = document.activeElement;
  for (const [id, visible] of Object.entries(shown)) element(id).hidden = !visible;
  // Not `disabled`: that would take the focus from whoever has just pressed it.
  element("talk").ariaDisabled = isBusy();
  element("hush").ariaDisabled = !agent;
  if (focused?.hidden) ["mute", "microphone", "reconnect", "talk"].map(element).find((one) => !one.hidden).focus();
}

function waiting() {
  return microphone ? (isMuted() ? "muted" : "listening") : "typing";
}

function isBusy() {
  return phase === "asking" || phase === "connecting";
}

function problem(text) {
  set("problem", text);
}

/** What is known of the session. */
function facts(known) {
  for (const [name, value] of Object.entries(known)) {
    let found = element("facts").querySelector(`[data-name="${CSS.escape(name)}"]`);
    if (!found) {
      const term = document.createElement("dt");
      term.textContent = name;
      found = document.createElement("dd");
      found.dataset.name = name;
      element("facts").append(term, found);
    }
    found.textContent = value;
  }
}

function set(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}

function onScroll() {
  const shown = element("conversation");
  followed = shown.scrollHeight - shown.scrollTop - shown.clientHeight < 80;
}

function follow() {
  if (followed) element("conversation").scrollTop = element("conversation").scrollHeight;
}

element("talk").addEventListener("click", () => talk({ listen: true }));
element("reconnect").addEventListener("click", () => talk({ listen: listens }));
element("microphone").addEventListener("click", () => talk({ listen: true }));
element("mute").addEventListener("click", mute);
element("hush").addEventListener("click", hush);
element("end").addEventListener("click", end);
element("typing").addEventListener("submit", type);
element("conversation").addEventListener("scroll", onScroll);
new ResizeObserver(follow).observe(element("conversation")); // a phone's keyboard comes and goes
window.addEventListener("pagehide", () => {
  if (session?.ours) session.end().catch(() => {});
});
draw();
