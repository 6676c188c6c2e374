// The first page: a prompt, four glyphs that form out of noise, and a link that draws the same again.

import { Painter, savePicture, show, wholeNumber } from "./painter.js";

const COUNT = 4;
const STEPS = 15;
const find = (name) => document.getElementById(name);
const [form, prompt, seed, guidance, said, read, progress] = [
  "ask", "prompt", "seed", "guidance", "said", "read", "progress",
].map(find);

/** A glyph's place: its canvas, its caption, and a button that saves it. */
function place(at) {
  const figure = document.createElement("figure");
  figure.className = "glyph";
  const canvas = Object.assign(document.createElement("canvas"), { width: 128, height: 128 });
  canvas.setAttribute("role", "img");
  const caption = document.createElement("figcaption");
  const label = document.createElement("span");
  const save = Object.assign(document.createElement("button"), { type: "button", textContent: "Save" });
  save.addEventListener("click", () => savePicture(canvas, places[at].name));
  caption.append(label, save);
  figure.append(canvas, caption);
  find("glyphs").append(figure);
  return { figure, canvas, label, save, name: "" };
}

const places = Array.from({ length: COUNT }, (_, at) => place(at));

function name(one, text, noise) {
  one.name = `${text}, noise ${noise}`;
  one.label.textContent = `noise ${noise}`;
  one.canvas.setAttribute("aria-label", `Glyph for “${text}”, noise ${noise}`);
  one.save.setAttribute("aria-label", `Save the glyph of noise ${noise}`);
}

/** Pieces of text and what is not known of them, once the tokenizer is there. */
function showReading({ count, most, unknown }) {
  const cut = count > most ? ` Only the first ${most} are read.` : "";
  const strange = unknown.length ? ` Unknown to the text encoder: ${unknown.join(", ")}.` : "";
  read.textContent = `${count} of at most ${most} tokens.${cut}${strange}`;
}

const on = {
  read: showReading,
  step({ at, step, steps, pixels, size }) {
    const one = places[at];
    places.forEach(({ figure }, other) => figure.classList.toggle("forming", other === at && step < steps));
    one.figure.classList.remove("waiting");
    show(one.canvas, pixels, size);
    one.save.hidden = step < steps;
    progress.hidden = false;
    progress.value = (at * steps + step) / (COUNT * steps);
    if (step === 1) said.textContent = `Drawing glyph ${at + 1} of ${COUNT}.`;
    if (at === COUNT - 1 && step === steps) finish();
  },
};

const painter = new Painter("worker.js", on, "Press Draw to try again.");

function finish() {
  progress.hidden = true;
  said.textContent = `Four glyphs for “${prompt.dataset.asked}”, each out of its own noise.`;
}

/** What the address holds, or what it would have to hold. */
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!given.has("prompt")) return false;
  prompt.value = given.get("prompt").slice(0, prompt.maxLength);
  seed.value = wholeNumber(given.get("seed"), seed.max);
  guidance.value = Number(given.get("guidance")) || 5; // the slider keeps it in its range
  showGuidance();
  return true;
}

const address = () => `#${new URLSearchParams({ prompt: prompt.value, seed: seed.value, guidance: guidance.value })}`;

function draw() {
  const text = prompt.value.trim();
  if (!text) {
    said.textContent = "Type what the kanji is made of, or what it means.";
    prompt.focus();
    return;
  }
  seed.value = wholeNumber(seed.value, seed.max);
  history.replaceState(null, "", address());
  prompt.dataset.asked = text;
  const seeds = places.map((_, at) => Number(seed.value) + at);
  places.forEach((one, at) => {
    one.figure.classList.add("waiting");
    one.save.hidden = true;
    name(one, text, seeds[at]);
  });
  painter.ask({ prompt: text, seeds, guidance: Number(guidance.value), steps: STEPS });
}

/** The glyphs that were drawn when this page was built, side by side in one picture. */
async function showDrawn() {
  const { drawn, prompt: text } = find("glyphs").dataset;
  places.forEach((one, at) => name(one, text, at));
  if (!drawn) return;
  const picture = new Image();
  picture.src = drawn;
  await picture.decode();
  if (painter.number) return;
  const size = picture.naturalHeight;
  places.forEach(({ canvas }, at) => {
    canvas.width = canvas.height = size;
    canvas.getContext("2d").drawImage(picture, -at * size, 0);
  });
  said.textContent = `These four were drawn beforehand for “${text}”, each out of its own noise.`;
}

function showGuidance() {
  find("guidance-said").textContent = guidance.value;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
for (const chip of document.querySelectorAll(".chips button")) {
  chip.addEventListener("click", () => {
    prompt.value = chip.textContent;
    draw();
  });
}
guidance.addEventListener("input", showGuidance);
find("others").addEventListener("click", () => {
  seed.value = wholeNumber(Number(seed.value) + COUNT, seed.max);
  draw();
});
find("link").addEventListener("click", async () => {
  history.replaceState(null, "", address());
  try {
    await navigator.clipboard.writeText(location.href);
    said.textContent = "The link is copied. It draws the same glyphs again.";
  } catch {
    said.textContent = "The browser refused to copy; the link is in its address bar.";
  }
});
addEventListener("hashchange", () => readAddress() && draw());

showDrawn();
if (readAddress()) draw();
