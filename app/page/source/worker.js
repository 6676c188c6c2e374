// Draws what a text asks for.

import { Writer } from "./model.js";
import { serve } from "./work.js";

async function draw(writer, { number, prompt, seeds, guidance, steps }, wanted) {
  const { count, unknown } = writer.tokenizer.encode(prompt);
  postMessage({ kind: "read", number, count, most: writer.facts.caption_tokens, unknown });
  for (const [at, seed] of seeds.entries()) {
    for await (const { step, clean } of writer.draw(prompt, [seed], { guidance, steps })) {
      const pixels = await writer.decode(clean, 1);
      if (!wanted()) return;
      postMessage({ kind: "step", number, at, step, steps, pixels, size: writer.facts.size_px }, [pixels.buffer]);
    }
  }
}

serve("model", new Writer(), draw);
