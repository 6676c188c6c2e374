// What the two drawing pages have in common: a worker that draws, what it says, and pictures.

import { kept } from "./offline.js";

const WHITE = 240; // shown as white: a decoder's blank paper is mottled just below 255 (kanjilab.viz.strip)
const SAVED_PX = 512;
const [said, progress] = ["said", "progress"].map((name) => document.getElementById(name));
const megabytes = (bytes) => Math.round(bytes / 1e6);

/** Asks a worker, which is started once; answers to an older question are dropped. */
export class Painter {
  /**
   * @param {string} file of the worker
   * @param {Record<string, (answer: object) => void>} on what to do with its answers, by their kind
   * @param {string} again what to do when it failed, in words
   */
  constructor(file, on, again) {
    Object.assign(this, { file, number: 0, starting: null });
    this.on = {
      loading({ loaded, total }) {
        progress.value = loaded / total;
        said.textContent = `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB, once.`;
      },
      preparing({ done, all }) {
        said.textContent = `Preparing the model: part ${done} of ${all}.`;
      },
      failed({ reason }) {
        progress.hidden = true;
        said.textContent = `That did not work: ${reason}. ${again}`;
      },
      ...on,
    };
  }

  /** A promise of the worker, which loads the model. */
  start() {
    this.starting ??= kept.then(() => {
      const worker = new Worker(this.file, { type: "module" });
      worker.onmessage = ({ data }) => {
        if (data.number === undefined || data.number === this.number) this.on[data.kind](data);
      };
      worker.onerror = () => {
        const reason = "this browser could not start the model (it needs WebAssembly and module workers)";
        this.on.failed({ reason });
        this.starting = null;
      };
      return worker;
    });
    return this.starting;
  }

  /** Begins a drawing, and ends the one before. */
  ask(question) {
    const number = ++this.number;
    said.textContent = "Loading the model.";
    progress.hidden = false;
    progress.removeAttribute("value");
    this.start().then((worker) => worker.postMessage({ number, ...question }));
  }

  /** Ends the drawing, where there is one. */
  stop() {
    const number = ++this.number;
    progress.hidden = true;
    this.starting?.then((worker) => worker.postMessage({ number, stop: true }));
  }
}

/** Gray pixels onto a canvas. */
export function show(canvas, pixels, size) {
  const image = new ImageData(size, size);
  pixels.forEach((gray, at) => image.data.set([gray, gray, gray].map((level) => (level * 255) / WHITE), 4 * at));
  for (let at = 3; at < image.data.length; at += 4) image.data[at] = 255;
  canvas.width = canvas.height = size;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Saves what is on a canvas as a PNG. */
export function savePicture(canvas, name) {
  const large = Object.assign(document.createElement("canvas"), { width: SAVED_PX, height: SAVED_PX });
  const context = large.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, 0, 0, SAVED_PX, SAVED_PX);
  large.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}

/** The whole number of an input, 0 where it holds none of its range. */
export function wholeNumber(text, most) {
  const value = Math.floor(Number(text));
  return value >= 0 && value <= Number(most) ? value : 0;
}
