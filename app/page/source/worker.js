// Loads the model once and draws, away from the page, which stays free to scroll and type.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { Model, fetchBytes } from "./model.js";

let loading = null;
let latest = 0; // number of the drawing that is wanted; an older one ends at its next step

async function load() {
  const files = await (await fetch("model/files.json")).json(); // bytes by name, as they come
  const total = Object.values(files).reduce((sum, bytes) => sum + bytes);
  let loaded = 0;
  const onBytes = (bytes) => {
    loaded += bytes;
    postMessage({ kind: "loading", loaded, total });
  };
  ort.env.wasm.numThreads = 1; // more need headers that plain servers do not send
  ort.env.wasm.wasmBinary = await fetchBytes(new URL("vendor/ort-wasm-simd-threaded.wasm.gz", self.location), onBytes);
  return Model.load(ort, new URL("model/", self.location), onBytes, (done, all) =>
    postMessage({ kind: "preparing", done, all }),
  );
}

/** Loads the model where it is not loaded; after a failure it can be tried again. */
function model() {
  loading ??= load().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

async function draw({ number, prompt, seeds, guidance, steps }) {
  const loaded = await model();
  const { count, unknown } = loaded.tokenizer.encode(prompt);
  if (number !== latest) return;
  postMessage({ kind: "read", number, count, most: loaded.facts.caption_tokens, unknown });
  for (const [at, seed] of seeds.entries()) {
    for await (const { step, clean } of loaded.draw(prompt, [seed], guidance, steps)) {
      const pixels = await loaded.decode(clean, 1);
      if (number !== latest) return;
      postMessage({ kind: "step", number, at, step, steps, pixels, size: loaded.facts.size_px }, [pixels.buffer]);
    }
  }
}

self.onmessage = async ({ data }) => {
  latest = data.number;
  try {
    await draw(data);
  } catch (error) {
    postMessage({ kind: "failed", number: data.number, reason: String(error.message ?? error) });
  }
};
