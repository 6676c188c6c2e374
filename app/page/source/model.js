// Models that `kanjilab export --format onnx` wrote: from a prompt to pictures.

import { normals } from "./random.js";
import { DpmSolver, guided } from "./sampler.js";
import { WordPiece } from "./tokenizer.js";

/** The bytes of a file, which is unpacked where it is gzip's. */
export async function fetchBytes(address, onBytes = () => {}) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the server answered ${response.status}`);
  const counted = new TransformStream({
    transform(chunk, controller) {
      onBytes(chunk.byteLength);
      controller.enqueue(chunk);
    },
  });
  const bytes = new Uint8Array(await new Response(response.body.pipeThrough(counted)).arrayBuffer());
  const packed = bytes[0] === 0x1f && bytes[1] === 0x8b; // some servers unpack it themselves
  if (!packed) return bytes;
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

/** What models have in common: networks by name, the denoising, the decoder. */
class Diffusion {
  /**
   * Loads the networks of a model.
   * @param {object} ort onnxruntime-web
   * @param {object} facts of kanjilab.json
   * @param {Record<string, Promise<Uint8Array>>} files its networks, by name
   * @param {(done: number, all: number) => void} onPrepared called when one can compute
   */
  async prepare(ort, facts, files, onPrepared) {
    Object.assign(this, { ort, facts, sessions: {} });
    const names = Object.keys(files);
    for (const [number, name] of names.entries()) {
      this.sessions[name] = await ort.InferenceSession.create(await files[name], { executionProviders: ["wasm"] });
      onPrepared(number + 1, names.length);
    }
  }

  tensor(numbers, shape) {
    return new this.ort.Tensor("float32", numbers, shape);
  }

  integers(numbers, shape) {
    return new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
  }

  /** The numbers of a network's one output. */
  async compute(part, inputs) {
    const results = await this.sessions[part].run(inputs);
    return Object.values(results)[0].data;
  }

  /** Gray pixels 0 to 255 of N latents, picture after picture. */
  async decode(latents, count) {
    const { latent_shape, scaling_factor, shift_factor } = this.facts;
    const scaled = latents.map((value) => value / scaling_factor + shift_factor);
    const images = await this.compute("decoder", { latents: this.tensor(scaled, [count, ...latent_shape]) });
    return Uint8ClampedArray.from(images, (value) => (value + 1) * 127.5);
  }

  /**
   * Draws some pictures at once.
   * @param {number[]} seeds the noise of each picture
   * @param {Record<string, object>} conditioning tensors for the denoiser; their rows are the copies of a picture side
   *   by side, as `guided` expects them
   * @param {{steps: number, guidance: number, arrayGuidance?: number}} how
   * @yields {{step: number, latents: Float32Array, clean: Float32Array}} after each step
   */
  async *denoise(seeds, conditioning, { steps, guidance, arrayGuidance }) {
    const size = this.facts.latent_shape.reduce((product, edge) => product * edge);
    const rows = conditioning.states.dims[0];
    let latents = new Float32Array(seeds.length * size);
    for (const [number, seed] of seeds.entries()) latents.set(normals(seed, size), number * size);
    const solver = new DpmSolver(this.facts.schedule, steps);
    for (const [number, timestep] of solver.timesteps.entries()) {
      const copies = new Float32Array(rows * size);
      for (let row = 0; row < rows; row++) {
        const source = Math.floor((row * seeds.length) / rows) * size;
        copies.set(latents.subarray(source, source + size), row * size);
      }
      const predicted = await this.compute("denoiser", {
        latents: this.tensor(copies, [rows, ...this.facts.latent_shape]),
        timestep: this.tensor(new Float32Array(rows).fill(timestep), [rows]),
        ...conditioning,
      });
      const taken = solver.step(latents, guided(predicted, size, guidance, arrayGuidance));
      latents = taken.latents;
      yield { step: number + 1, ...taken };
    }
  }
}

/** Draws what a text asks for. */
export class Writer extends Diffusion {
  /** As `Diffusion.prepare`; tokenizer: content of tokenizer.json. */
  async load(ort, json, files, onPrepared) {
    const [facts, tokenizer] = await Promise.all([json("kanjilab.json"), json("tokenizer.json")]);
    await this.prepare(ort, facts, files, onPrepared);
    this.tokenizer = new WordPiece(tokenizer, facts.caption_tokens);
    this.known = new Map(); // states of captions
    return this;
  }

  /** (L · D) states of a caption. */
  async states(caption) {
    if (!this.known.has(caption)) {
      const { ids, mask } = this.tokenizer.encode(caption);
      const [input_ids, attention_mask] = [ids, mask].map((numbers) => this.integers(numbers, [1, numbers.length]));
      const wanted = { input_ids, attention_mask };
      const inputs = Object.fromEntries(this.sessions.text_encoder.inputNames.map((name) => [name, wanted[name]]));
      this.known.set(caption, await this.compute("text_encoder", inputs));
    }
    return this.known.get(caption);
  }

  /**
   * Draws one prompt with some seeds.
   * @param {string} prompt
   * @param {number[]} seeds
   * @param {{steps: number, guidance: number}} how
   * @yields as `denoise`
   */
  async *draw(prompt, seeds, how) {
    const pair = [await this.states(""), await this.states(prompt)];
    const [size, tokens] = [pair[0].length, this.facts.caption_tokens];
    const states = new Float32Array(2 * seeds.length * size);
    for (let row = 0; row < 2 * seeds.length; row++) states.set(pair[row % 2], row * size);
    yield* this.denoise(seeds, { states: this.tensor(states, [2 * seeds.length, tokens, size / tokens]) }, how);
  }
}

/** Writes lines in a style: calligraphy. The states of its captions come with it. */
export class Calligrapher extends Diffusion {
  /** As `Diffusion.prepare`. */
  async load(ort, json, { states, ...files }, onPrepared) {
    await this.prepare(ort, await json("kanjilab.json"), files, onPrepared);
    this.known = new Float32Array((await states).buffer); // of `facts.captions`, one after the other
    return this;
  }

  /**
   * Writes one character.
   * @param {{style: string, lines: Uint8Array, typed: boolean, index: number}} prompt lines: 1 on a line of the
   *   character; typed: whether they are those of print, to be written in the style, and not followed; index: of the
   *   character, 0 for none
   * @param {number} seed
   * @param {{steps: number, guidance: number, arrayGuidance: number}} how
   * @yields as `denoise`
   */
  async *write({ style, lines, typed, index }, seed, how) {
    const { captions, caption_tokens, condition_encoder } = this.facts;
    const size = this.known.length / captions.length;
    const states = new Float32Array(3 * size);
    for (const [row, caption] of ["", "", style].entries()) {
      const start = captions.indexOf(caption) * size;
      states.set(this.known.subarray(start, start + size), row * size);
    }
    const led = new Float32Array(3 * lines.length); // without lines, with them, and with them
    led.set(lines, lines.length);
    led.set(lines, 2 * lines.length);
    const edge = condition_encoder.size_px;
    const [drawn, none] = [led, new Float32Array(led.length)].map((array) => this.tensor(array, [3, edge, edge]));
    const { tokens, ...rest } = await this.sessions.condition_encoder.run({
      states: this.tensor(states, [3, caption_tokens, size / caption_tokens]),
      skeleton: typed ? none : drawn,
      typed: typed ? drawn : none,
      index: this.integers([0, index, index], [3]),
    });
    yield* this.denoise([seed], { states: tokens, ...rest }, how);
  }
}
