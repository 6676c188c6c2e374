// The ablation panel (kanjilab/widgets/ablation.js) over stored studies, without a kernel.
// site.json: {menu, studies: {path: {catalogue, images: [addresses]}}}, as the top of that file describes them.

import panel from "./ablation.js";

const { menu, studies } = await (await fetch("ablations/site.json")).json();
const first = Object.keys(studies)[0];
const values = { menu, alone: true, work: {}, state: {}, chosen: first, ...studies[first] };
const listeners = {};
const tell = (name) => (listeners[`change:${name}`] ?? []).forEach((listener) => listener());

const model = {
  get: (name) => values[name],
  set(name, value) {
    values[name] = value;
    if (name === "chosen" && studies[value]) {
      Object.assign(values, studies[value]);
      ["catalogue", "images"].forEach(tell);
    }
  },
  on(name, listener) {
    (listeners[name] ??= []).push(listener);
  },
  save_changes() {},
  send() {},
  off() {},
};
panel.render({ model, el: document.getElementById("ablations") });
