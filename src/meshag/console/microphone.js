/** The person's microphone: frames of 20 ms PCM16 mono, at `rate`. */

/** Rates asked for, best first: 16 kHz is what the mesh hears; some browsers capture at the device's own rate only. */
const RATES_HZ = [16000, 48000, 44100];

/** Quieter than this, dB below full scale, shows as nothing. */
const FLOOR_DB = 60;

/** Why there is no sound from the microphone, in words for the person. */
export class MicrophoneError extends Error {}

const WHY = {
  NotAllowedError: "The microphone is not allowed for this page. Allow it in the browser's address bar, then press Use microphone.",
  NotFoundError: "No microphone was found. Plug one in, then press Use microphone.",
  NotReadableError: "The microphone is in use by another program, or the system refuses it.",
};

export class Microphone {
  #stream;
  #context;
  #source;

  /** Ask for it. `onFrame(pcm, level)`: level 0 to 1. `onLost(error)`: it was unplugged or taken away. Throws MicrophoneError. */
  static async open(onFrame, onLost) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new MicrophoneError("Browsers give the microphone only to pages on https or localhost.");
    }
    const microphone = new Microphone();
    try {
      microphone.#stream = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
      });
      microphone.#connect();
      await microphone.#capture(onFrame);
    } catch (error) {
      microphone.close();
      throw new MicrophoneError(WHY[error.name] ?? `The microphone does not work: ${error.message}`);
    }
    microphone.#stream.getAudioTracks()[0].addEventListener("ended", () => {
      onLost(new MicrophoneError("The microphone is gone: it was unplugged, or its permission was taken back."));
    });
    return microphone;
  }

  get rate() {
    return this.#context.sampleRate;
  }

  /** Muted, it gives silence: the mesh has to hear that you stopped. */
  set muted(muted) {
    for (const track of this.#stream.getAudioTracks()) track.enabled = !muted;
  }

  /** Let go of it; the browser's sign that it listens goes out. */
  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    if (this.#context && this.#context.state !== "closed") this.#context.close();
  }

  #connect() {
    for (const sampleRate of RATES_HZ) {
      this.#context = new AudioContext({ sampleRate, latencyHint: "interactive" });
      try {
        this.#source = this.#context.createMediaStreamSource(this.#stream);
        return;
      } catch (error) {
        this.#context.close();
        if (error.name !== "NotSupportedError" || sampleRate === RATES_HZ.at(-1)) throw error;
      }
    }
  }

  async #capture(onFrame) {
    await this.#context.audioWorklet.addModule(new URL("capture-worklet.js", import.meta.url));
    const capture = new AudioWorkletNode(this.#context, "capture", { channelCount: 1, channelCountMode: "explicit" });
    capture.port.onmessage = ({ data }) => {
      const level = data.rms ? 1 + (20 * Math.log10(data.rms)) / FLOOR_DB : 0;
      onFrame(data.pcm, Math.max(0, Math.min(1, level)));
    };
    // It gives out silence, but what is not connected is not run.
    this.#source.connect(capture).connect(this.#context.destination);
    await this.#context.resume();
  }
}
