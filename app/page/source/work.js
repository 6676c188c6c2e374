// What the workers have in common: a model is loaded once, away from the page, which stays free to scroll and type.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { fetchBytes } from "./model.js";

const RUNTIME = "ort-wasm-simd-threaded";

/** The last part of a file's name, without endings: what a network is called. */
const nameOf = (file) => file.split("/").at(-1).split(".")[0];

async function load(folder, model) {
  const json = async (name) => (await fetch(new URL(`${folder}/${name}`, self.location))).json();
  const sizes = await json("files.json"); // bytes by name, as they come
  const total = Object.values(sizes).reduce((sum, bytes) => sum + bytes);
  let loaded = 0;
  const onBytes = (bytes) => {
    loaded += bytes;
    postMessage({ kind: "loading", loaded, total });
  };
  const pairs = Object.keys(sizes).map((file) => [nameOf(file), fetchBytes(new URL(file, self.location), onBytes)]);
  const { [RUNTIME]: runtime, ...files } = Object.fromEntries(pairs);
  ort.env.wasm.numThreads = 1; // more need headers that plain servers do not send
  ort.env.wasm.wasmBinary = await runtime;
  return model.load(ort, json, files, (done, all) => postMessage({ kind: "preparing", done, all }));
}

/**
 * Answers the page's messages; one with another number ends what is being drawn, at its next step.
 * @param {string} folder of the model, which is loaded when the first drawing is asked for
 * @param {object} model to load it into
 * @param {(model: object, asked: object, wanted: () => boolean) => Promise<void>} draw
 */
export function serve(folder, model, draw) {
  let loading = null;
  let latest = 0; // number of the drawing that is wanted
  self.onmessage = async ({ data }) => {
    const { number } = data;
    latest = number;
    if (data.stop) return;
    try {
      loading ??= load(folder, model);
      await loading.catch((error) => {
        loading = null; // it can be tried again
        throw error;
      });
      if (number === latest) await draw(model, data, () => number === latest);
    } catch (error) {
      postMessage({ kind: "failed", number, reason: String(error.message ?? error) });
    }
  };
}
