// Writes lines in a style.

import { Calligrapher } from "./model.js";
import { serve } from "./work.js";

async function write(calligrapher, { number, prompt, seed, guidance, arrayGuidance }, wanted) {
  const { steps } = calligrapher.facts.sampling;
  const how = { steps, guidance, arrayGuidance };
  for await (const { step, clean } of calligrapher.write(prompt, seed, how)) {
    const pixels = await calligrapher.decode(clean, 1);
    if (!wanted()) return;
    const size = calligrapher.facts.size_px;
    postMessage({ kind: "step", number, step, steps, pixels, size }, [pixels.buffer]);
  }
}

serve("calligraphy", new Calligrapher(), write);
