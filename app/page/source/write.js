// The page to write on: strokes, or a typed character, become lines, which are written in a style as they are drawn.

import board from "./brush_board.js";
import { fetchBytes } from "./model.js";
import { Painter, savePicture, show, wholeNumber } from "./painter.js";
import { SIDE, skeletonOfStrokes, unpack } from "./skeleton.js";

const WAIT_MS = 400; // after a stroke, for another may follow
const NOTHING = new DataView(new ArrayBuffer(0));
const find = (name) => document.getElementById(name);
const [form, typed, style, seed, said, progress, figure, canvas, caption, save] = [
  "type", "character", "style", "seed", "said", "progress", "written", "glyph", "caption", "save",
].map(find);
const guidances = [find("guidance"), find("skeleton-guidance")];

// Characters that have a skeleton here: first those that the model knows by an index, too.
const [{ characters, known }, packed] = await Promise.all([
  fetch("skeletons.json").then((response) => response.json()),
  fetchBytes("skeletons.bin.gz"),
]);
const places = new Map([...characters].map((character, place) => [character, place]));

/** (128 · 128) the lines of a character in print. */
function linesOf(character) {
  const bytes = (SIDE * SIDE) / 8;
  const start = places.get(character) * bytes;
  return unpack(packed.subarray(start, start + bytes));
}

/** Lines as a PNG, black on white. */
async function png(lines) {
  const sheet = new OffscreenCanvas(SIDE, SIDE);
  const pixels = new Uint32Array(lines.length).map((_, at) => (lines[at] ? 0xff000000 : 0xffffffff)); // ABGR
  sheet.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), SIDE, SIDE), 0, 0);
  return new DataView(await (await sheet.convertToBlob()).arrayBuffer());
}

// What brush_board.js shows and changes: as the top of that file describes it.
const values = { drawing: { strokes: [], under: NOTHING, of: "" }, example: false, opens: false };
const listeners = [];
const model = {
  get: (name) => values[name],
  set: (given, value) => Object.assign(values, typeof given === "string" ? { [given]: value } : given),
  on: (_, listener) => listeners.push(listener),
  save_changes: () => later(),
  send() {},
  off() {},
};

async function put(character, example = false) {
  model.set({ example, drawing: { strokes: [], under: await png(linesOf(character)), of: character } });
  listeners.forEach((listener) => listener());
}

/** Moves the skeleton's slider to what is usual for what leads now, unless somebody moved it from what was. */
function setUsual(lead) {
  const slider = guidances[1];
  const { drawn, typed, lead: before } = slider.dataset;
  if (slider.value === { drawn, typed }[before]) {
    slider.value = slider.dataset[lead];
    find(`${slider.id}-said`).textContent = slider.value;
  }
  slider.dataset.lead = lead;
}

/** What the drawing asks for; null where it is empty. */
function prompt() {
  const { strokes, of } = values.drawing;
  if (!strokes.length && !of) return null;
  const lines = skeletonOfStrokes(strokes);
  if (of) linesOf(of).forEach((one, at) => (lines[at] |= one));
  const alone = of && !strokes.length;
  setUsual(alone ? "typed" : "drawn");
  const place = alone ? places.get(of) : known;
  return { style: style.value, lines, typed: Boolean(alone), index: place < known ? place + 1 : 0 };
}

const painter = new Painter(
  "write-worker.js",
  {
    step({ step, steps, pixels, size }) {
      show(canvas, pixels, size);
      figure.classList.remove("waiting");
      figure.classList.toggle("forming", step < steps);
      save.hidden = step < steps;
      progress.hidden = step === steps;
      progress.value = step / steps;
      said.textContent = step < steps ? "Writing." : `Written: ${style.value}.`;
    },
  },
  "Draw another stroke to try again.",
);

let timer = null;

function later() {
  clearTimeout(timer);
  timer = setTimeout(write, WAIT_MS);
}

function name() {
  const what = values.drawing.of && !values.drawing.strokes.length ? `“${values.drawing.of}”` : "What you drew";
  caption.textContent = style.value;
  canvas.setAttribute("aria-label", `${what}, written: ${style.value}`);
}

function write() {
  clearTimeout(timer);
  seed.value = wholeNumber(seed.value, seed.max);
  const asked = prompt();
  figure.classList.remove("forming");
  save.hidden = true;
  name();
  if (!asked) {
    painter.stop();
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    canvas.setAttribute("aria-label", "Nothing is written yet");
    said.textContent = "Draw a stroke, or type a character.";
    return;
  }
  figure.classList.add("waiting");
  const [guidance, arrayGuidance] = guidances.map((slider) => Number(slider.value));
  painter.ask({ prompt: asked, seed: Number(seed.value), guidance, arrayGuidance });
}

async function writeTyped() {
  const [character] = typed.value.normalize("NFC").trim();
  if (!places.has(character)) {
    said.textContent = character
      ? `The page has no skeleton of ${character}: draw it, or type a frequent kanji, or kana.`
      : "Type a character.";
    typed.focus();
    return;
  }
  await put(character);
  write();
}

/** What was written when this page was built. */
async function showExample() {
  const { example, picture } = figure.dataset;
  await put(example, true);
  name();
  const image = new Image();
  image.src = picture;
  await image.decode();
  if (painter.number) return;
  canvas.width = canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  said.textContent = `This ${example} was written beforehand. Your first stroke replaces it.`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  writeTyped();
});
for (const chip of document.querySelectorAll(".chips button")) {
  chip.addEventListener("click", () => {
    typed.value = chip.textContent;
    writeTyped();
  });
}
for (const input of [style, seed, ...guidances]) input.addEventListener("change", write);
for (const slider of guidances) {
  slider.addEventListener("input", () => (find(`${slider.id}-said`).textContent = slider.value));
}
find("other").addEventListener("click", () => {
  seed.value = wholeNumber(Number(seed.value) + 1, seed.max);
  write();
});
save.addEventListener("click", () => {
  const { of, strokes } = values.drawing;
  savePicture(canvas, `${(!strokes.length && of) || "drawn"} ${style.value}`);
});

board.render({ model, el: find("board") });
showExample();
