/** The agent's voice: PCM16 mono at `rate`, played without gaps, silenced at once. */

/** Rate asked of the service. The browser brings it to the device's own. */
const RATE_HZ = 24000;

/** The jitter buffer, seconds: how late sound begins, so that what arrives late is still in time. It grows when it was too little. */
const LEAD_S = { first: 0.04, step: 0.02, most: 0.2 };

export class Speaker {
  #context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
  #playing = new Set();
  #lead_s = LEAD_S.first;
  #until = 0; // samples of the context's time: whole ones, so that pieces join without a click
  #begins = true;

  /** To be called from a click or a key: browsers let no page begin to sound by itself. */
  async wake() {
    await this.#context.resume();
  }

  get rate() {
    return this.#context.sampleRate;
  }

  /** What comes now is new speech: silence before it is no gap. */
  begin() {
    this.#begins = true;
    this.#lead_s = Math.max(LEAD_S.first, this.#lead_s - LEAD_S.step);
  }

  /** Play `pcm` (ArrayBuffer) after what is already there. */
  play(pcm) {
    const samples = new Int16Array(pcm);
    const piece = this.#context.createBuffer(1, samples.length, this.rate);
    const channel = piece.getChannelData(0);
    samples.forEach((sample, i) => (channel[i] = sample / 32768));

    const now = Math.ceil(this.#context.currentTime * this.rate);
    if (this.#until < now) {
      if (!this.#begins) this.#lead_s = Math.min(LEAD_S.most, this.#lead_s + LEAD_S.step);
      this.#until = now + Math.round(this.#lead_s * this.rate);
    }
    this.#begins = false;
    const source = new AudioBufferSourceNode(this.#context, { buffer: piece });
    source.connect(this.#context.destination);
    source.addEventListener("ended", () => this.#playing.delete(source));
    source.start(this.#until / this.rate);
    this.#playing.add(source);
    this.#until += samples.length;
  }

  /** Silence, now. */
  clear() {
    for (const source of this.#playing) source.stop();
    this.#playing.clear();
    this.#until = 0;
  }
}
