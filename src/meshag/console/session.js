/** A session on the service, and the WebSocket to it. */

/** What went wrong, in words for the person. `status`: the HTTP status, 0 when nothing answered. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Microphone audio that may wait to be sent, ms; beyond that it is dropped rather than heard late. */
const BACKLOG_MS = 500;

/** Rate declared when there is no microphone. */
const SILENT_HZ = 16000;

export class Session {
  #token;
  #left = null; // where a connection had come to: what the next one goes on from

  constructor(id, { token = "", ours = false } = {}) {
    this.id = id;
    /** Whether this page made it, and so ends it. */
    this.ours = ours;
    this.#token = token;
  }

  /** Make one with this configuration. Throws Problem. */
  static async create(config = {}) {
    const made = await exchange("POST", "sessions/with-config", { config });
    return new Session(made.session_id, { token: made.token, ours: true });
  }

  /**
   * Join it. `microphone_hz`: 0 without one. `on`: event(event), audio(pcm), closed(code, reason).
   * A token is good for a few minutes: the first one is used once, then another is asked for. Throws Problem.
   */
  async connect({ microphone_hz, speaker_hz, on }) {
    const token = this.#token || (await exchange("POST", `sessions/${this.id}/token`)).token;
    this.#token = "";
    this.#left = new Left(speaker_hz);
    return this.#open({ token }, { microphone_hz, speaker_hz, on });
  }

  /** Whether there was a connection that another can go on from. */
  get resumable() {
    return Boolean(this.#left?.resume);
  }

  /** Go on where the last connection was cut. As `connect`. */
  resume({ microphone_hz, speaker_hz, on }) {
    return this.#open(this.#left.told, { microphone_hz, speaker_hz, on });
  }

  #open(how, { microphone_hz, speaker_hz, on }) {
    const url = new URL(`sessions/${this.id}/stream`, document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.search = new URLSearchParams({ ...how, rate: microphone_hz || SILENT_HZ, out_rate: speaker_hz });
    const left = this.#left;
    return new Connection(url, microphone_hz, {
      event: (event) => (left.note(event), on.event(event)),
      audio: (pcm) => (left.hear(pcm), on.audio(pcm)),
      closed: on.closed,
    });
  }

  /** End it, also while the page is closing. Throws Problem. */
  async end() {
    await exchange("DELETE", `sessions/${this.id}`, undefined, { keepalive: true });
  }
}

/** Where the conversation stands, as docs/websocket.md has the caller keep it. */
class Left {
  resume = "";
  #at = "";
  #turn = 0;
  #heard_bytes = 0;
  #rate_hz;

  constructor(rate_hz) {
    this.#rate_hz = rate_hz;
  }

  get told() {
    const heard_ms = Math.floor((this.#heard_bytes * 500) / this.#rate_hz);
    return { resume: this.resume, at: this.#at, turn: this.#turn, heard_ms };
  }

  note(event) {
    this.resume = event.resume ?? this.resume;
    this.#at = event.at ?? this.#at;
    if (event.type === "speech_started") {
      this.#turn = event.turn;
      this.#heard_bytes = 0;
    } else if (event.type === "speech_ended") {
      this.#turn = 0;
    }
  }

  hear(pcm) {
    this.#heard_bytes += pcm.byteLength;
  }
}

class Connection {
  #socket;
  #backlog_bytes;

  constructor(url, microphone_hz, on) {
    this.#backlog_bytes = (microphone_hz * 2 * BACKLOG_MS) / 1000;
    this.#socket = new WebSocket(url);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => (typeof data === "string" ? on.event(JSON.parse(data)) : on.audio(data));
    this.#socket.onclose = ({ code, reason }) => on.closed(code, reason);
  }

  get open() {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  /** A frame of the microphone's. */
  hear(pcm) {
    if (this.open && this.#socket.bufferedAmount < this.#backlog_bytes) this.#socket.send(pcm);
  }

  /** Frames that waited for the connection. */
  catchUp(frames) {
    for (const pcm of frames) this.#socket.send(pcm);
  }

  /** Something typed. */
  type(text) {
    this.#say({ type: "text", text });
  }

  /** Ask the agent to be silent. */
  interrupt() {
    this.#say({ type: "interrupt" });
  }

  /** Leave without another word: `closed` is not called. */
  leave() {
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(1000);
  }

  #say(message) {
    if (this.open) this.#socket.send(JSON.stringify(message));
  }
}

async function exchange(method, path, body, more = {}) {
  const asked = { method, headers: { "Content-Type": "application/json" }, ...more };
  if (body !== undefined) asked.body = JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), asked);
  } catch {
    throw new Problem("The service does not answer. Is the mesh still up?");
  }
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new Problem(words(found) ?? `The service refused: ${answer.status} ${answer.statusText}`, answer.status);
  return found;
}

/** A problem+json answer in words. */
function words(problem) {
  if (!problem?.title) return null;
  if (!problem.problems) return sentence(problem.title);
  return problem.problems
    .map(({ path, message, fix }) => {
      const told = sentence(path ? `${path}: ${message}` : message);
      return fix && !message.includes(fix) ? `${told} Fix: ${sentence(fix)}` : told;
    })
    .join("\n");
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
