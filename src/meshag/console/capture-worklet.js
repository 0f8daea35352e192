/** Cuts what the microphone hears into frames of 20 ms, PCM16 little-endian, each with its loudness. */

const FRAME_MS = 20;

class Capture extends AudioWorkletProcessor {
  #samples = new Float32Array((sampleRate * FRAME_MS) / 1000);
  #filled = 0;

  process([channels]) {
    const heard = channels[0] ?? [];
    for (let from = 0; from < heard.length; ) {
      const part = heard.subarray(from, from + this.#samples.length - this.#filled);
      this.#samples.set(part, this.#filled);
      this.#filled += part.length;
      from += part.length;
      if (this.#filled === this.#samples.length) this.#give();
    }
    return true;
  }

  #give() {
    const frame = new DataView(new ArrayBuffer(this.#samples.length * 2));
    let squares = 0;
    this.#samples.forEach((sample, i) => {
      squares += sample * sample;
      frame.setInt16(i * 2, Math.max(-1, Math.min(1, sample)) * 32767, true);
    });
    const pcm = frame.buffer;
    this.port.postMessage({ pcm, rms: Math.sqrt(squares / this.#samples.length) }, [pcm]);
    this.#filled = 0;
  }
}

registerProcessor("capture", Capture);
