// A model that `kanjilab export --format onnx` wrote: from a prompt to pictures.

import { normals } from "./random.js";
import { DpmSolver, guided } from "./sampler.js";
import { WordPiece } from "./tokenizer.js";

const PARTS = ["text_encoder", "denoiser", "decoder"];

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

export class Model {
  /**
   * Loads a model.
   * @param {object} ort onnxruntime-web
   * @param {URL} folder its files
   * @param {(bytes: number) => void} onBytes called with the bytes that came
   * @param {(done: number, all: number) => void} onPrepared called when a part can compute
   */
  static async load(ort, folder, onBytes, onPrepared) {
    const json = async (name) => (await fetch(new URL(name, folder))).json();
    const files = PARTS.map((part) => fetchBytes(new URL(`${part}.onnx.gz`, folder), onBytes));
    const [facts, tokenizer] = await Promise.all([json("kanjilab.json"), json("tokenizer.json")]);
    const sessions = {};
    for (const [number, part] of PARTS.entries()) {
      sessions[part] = await ort.InferenceSession.create(await files[number], { executionProviders: ["wasm"] });
      onPrepared(number + 1, PARTS.length);
    }
    return new Model(ort, facts, new WordPiece(tokenizer, facts.caption_tokens), sessions);
  }

  constructor(ort, facts, tokenizer, sessions) {
    Object.assign(this, { ort, facts, tokenizer, sessions });
    this.known = new Map(); // states of captions
  }

  async compute(part, inputs) {
    const results = await this.sessions[part].run(inputs);
    return Object.values(results)[0].data;
  }

  /** (L · D) states of a caption. */
  async states(caption) {
    if (!this.known.has(caption)) {
      const { ids, mask } = this.tokenizer.encode(caption);
      const tensor = (numbers) => new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
      const wanted = { input_ids: tensor(ids), attention_mask: tensor(mask) };
      const inputs = Object.fromEntries(this.sessions.text_encoder.inputNames.map((name) => [name, wanted[name]]));
      this.known.set(caption, await this.compute("text_encoder", inputs));
    }
    return this.known.get(caption);
  }

  /** Gray pixels 0 to 255 of N latents, picture after picture. */
  async decode(latents, count) {
    const { latent_shape, scaling_factor, shift_factor } = this.facts;
    const scaled = latents.map((value) => value / scaling_factor + shift_factor);
    const tensor = new this.ort.Tensor("float32", scaled, [count, ...latent_shape]);
    const images = await this.compute("decoder", { latents: tensor });
    return Uint8ClampedArray.from(images, (value) => (value + 1) * 127.5);
  }

  /** What the denoiser predicts for N latents, with guidance. */
  async predict(latents, count, timestep, states, guidance) {
    const [size, tokens] = [latents.length / count, this.facts.caption_tokens];
    const pairs = new Float32Array(2 * latents.length);
    for (let copy = 0; copy < 2 * count; copy++) {
      const source = Math.floor(copy / 2) * size;
      pairs.set(latents.subarray(source, source + size), copy * size);
    }
    const predicted = await this.compute("denoiser", {
      latents: new this.ort.Tensor("float32", pairs, [2 * count, ...this.facts.latent_shape]),
      timestep: new this.ort.Tensor("float32", new Float32Array(2 * count).fill(timestep), [2 * count]),
      states: new this.ort.Tensor("float32", states, [2 * count, tokens, states.length / (2 * count * tokens)]),
    });
    return guided(predicted, size, guidance);
  }

  /**
   * Draws one prompt with some seeds, all at once.
   * @param {string} prompt
   * @param {number[]} seeds the noise of each picture
   * @param {number} guidance
   * @param {number} steps
   * @yields {{step: number, latents: Float32Array, clean: Float32Array}} after each step
   */
  async *draw(prompt, seeds, guidance, steps) {
    const size = this.facts.latent_shape.reduce((product, edge) => product * edge);
    const [empty, asked] = [await this.states(""), await this.states(prompt)];
    const states = new Float32Array(2 * seeds.length * empty.length);
    let latents = new Float32Array(seeds.length * size);
    for (const [number, seed] of seeds.entries()) {
      latents.set(normals(seed, size), number * size);
      states.set(empty, 2 * number * empty.length);
      states.set(asked, (2 * number + 1) * empty.length);
    }
    const solver = new DpmSolver(this.facts.schedule, steps);
    for (const [number, timestep] of solver.timesteps.entries()) {
      const predicted = await this.predict(latents, seeds.length, timestep, states, guidance);
      const taken = solver.step(latents, predicted);
      latents = taken.latents;
      yield { step: number + 1, ...taken };
    }
  }
}
