/**
 * What both sides say, turn by turn, and what each turn took.
 *
 * Text from the service only ever becomes the text of a node. Screen readers are told what is final, through `announcer`;
 * what still changes is for the eye.
 */

/** Messages that the announcer keeps. */
const ANNOUNCED = 6;

/** What a turn's times are called, in the order in which they happen. */
const TIMES = [["transcript", "transcript"], ["reply", "first reply"], ["voice", "voice"]];

export class Captions {
  #list;
  #announcer;
  #turns = new Map();
  #typed = []; // turns whose number the service has not yet told

  constructor(list, announcer) {
    this.#list = list;
    this.#announcer = announcer;
  }

  /** The person typed something. */
  typed(text) {
    const turn = new Turn(this.#row("turn"));
    turn.heard(text, true);
    turn.from = { what: "Enter", ms: performance.now() };
    this.#typed.push(turn);
  }

  /** A remark beside the conversation. `bad`: something failed. */
  note(text, bad = false) {
    this.#row(bad ? "note bad" : "note").textContent = text;
    this.announce(text);
  }

  /** An event of the service's. */
  show(event) {
    const part = this[`on_${event.type}`];
    if (part) part.call(this, event);
  }

  /** The session is over: the next one counts its turns from one again. */
  forget() {
    this.#turns.clear();
    this.#typed = [];
  }

  on_voice_started(event) {
    this.#spoken(event.turn);
  }

  on_transcript(event) {
    const turn = this.#spoken(event.turn);
    turn.heard(event.text, event.final);
    turn.hearer = event.provider;
    if (!event.final) return;
    turn.mark("transcript", event.t_ms);
    this.announce(`You: ${event.text}`);
  }

  on_turn_ended(event) {
    const turn = this.#spoken(event.turn);
    turn.from = { what: "your last word", ms: event.speech_end_ms };
    if (event.text) {
      turn.heard(event.text, true);
      turn.draw();
    } else {
      turn.row.remove(); // a noise, no speech
      this.#turns.delete(event.turn);
    }
  }

  on_reply_started(event) {
    const turn = this.#answered(event.turn);
    turn.answerer = event.model ? `${event.provider}: ${event.model}` : event.provider;
    turn.draw();
  }

  on_reply(event) {
    const turn = this.#answered(event.turn);
    if (turn.reply(event.n, event.text)) turn.mark("reply", event.t_ms);
  }

  on_reply_ended(event) {
    const turn = this.#answered(event.turn);
    turn.ended(event.reason === "interrupted");
    this.announce(`Agent: ${turn.answer}`);
  }

  on_speech_started(event) {
    this.#answered(event.turn).mark("voice", event.t_ms);
  }

  on_speech_ended(event) {
    if (event.interrupted) this.#answered(event.turn).ended(true);
  }

  on_error(event) {
    if (!event.stage) this.#typed.pop(); // what was typed is not taken: nobody will answer it
  }

  #spoken(number) {
    if (!this.#turns.has(number)) this.#turns.set(number, new Turn(this.#row("turn")));
    return this.#turns.get(number);
  }

  /** The turn that is answered: one that was typed gets its number here. */
  #answered(number) {
    if (!this.#turns.has(number) && this.#typed.length) this.#turns.set(number, this.#typed.shift());
    return this.#spoken(number);
  }

  #row(kind) {
    const row = document.createElement("li");
    row.className = kind;
    this.#list.append(row);
    return row;
  }

  /** Tell a screen reader, when it is silent. */
  announce(text) {
    const line = document.createElement("p");
    line.textContent = text;
    this.#announcer.append(line);
    while (this.#announcer.childElementCount > ANNOUNCED) this.#announcer.firstElementChild.remove();
  }
}

/** One turn's row. */
class Turn {
  /** What its times count from: `ms` on the service's clock, or on this page's when it was typed. */
  from = null;
  hearer = "";
  answerer = "";
  #chunks = [];
  #times = new Map();

  constructor(row) {
    this.row = row;
    this.you = this.#line("you", "You said: ");
    this.agent = this.#line("agent", "The agent: ");
    this.facts = this.#line("facts");
  }

  get answer() {
    return this.#chunks.join("").trim();
  }

  heard(text, final) {
    this.#say(this.you, text);
    this.you.classList.toggle("interim", !final);
  }

  /** A piece of the reply. True for the first. A piece that came before is not taken again. */
  reply(n, text) {
    this.#chunks[n] ??= text;
    this.#say(this.agent, this.answer);
    return n === 0;
  }

  ended(interrupted) {
    if (interrupted) this.#times.set("interrupted", true);
    this.draw();
  }

  /** Something happened, at `t_ms` on the service's clock. */
  mark(what, t_ms) {
    if (!this.#times.has(what)) this.#times.set(what, this.from?.what === "Enter" ? performance.now() : t_ms);
    this.draw();
  }

  draw() {
    const times = TIMES.filter(([what]) => this.from && this.#times.has(what)).map(
      ([what, name]) => `${name} ${Math.max(0, Math.round(this.#times.get(what) - this.from.ms))} ms`,
    );
    const facts = [
      this.#times.has("interrupted") && "interrupted",
      this.hearer && `heard by ${this.hearer}`,
      this.answerer && `answered by ${this.answerer}`,
    ];
    const took = times.length && `after ${this.from.what}: ${times.join(", ")}`;
    this.facts.textContent = [facts.filter(Boolean).join(" · "), took].filter(Boolean).join("\n");
    this.facts.hidden = !this.facts.textContent;
  }

  #line(kind, speaker = "") {
    const line = document.createElement("p");
    line.className = kind;
    line.hidden = true;
    if (speaker) {
      const who = document.createElement("span");
      who.className = "unseen";
      who.textContent = speaker;
      line.append(who, document.createElement("span"));
    }
    this.row.append(line);
    return line;
  }

  #say(line, text) {
    line.lastElementChild.textContent = text;
    line.hidden = !text;
  }
}
