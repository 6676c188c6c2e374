// The ablation panel in the browser: sliders over a stored study; what is shown changes at once, without a kernel.
//
// It works on anything with get, set, save_changes, send, on and off, as anywidget's models have them:
//   catalogue  one study, plain JSON: {name, title, verdict, place, percent, measure, glyph_px, trainable,
//              axes: [{name, label, unit, values, texts, number, log, apart (distance of each two stops), typed,
//                      choices}],
//              settings: [{label, at: {axis: value}, seconds, stopped}],       what was trained, one place each
//              first: number of the setting that is shown first,
//              seeds, noises, splits: [[name, label]], judges: [[name, label]], radicals,
//              prompts: [{split, text, expected, row (in every sheet, or -1)}],
//              arms[setting][seed]: {sheet (number or -1), seen: [images at each moment], hits: {judge: [per moment
//                      a letter an image, prompt by prompt and noise by noise: 1, 0 or -]}} or null,
//              rates[judge][split][radical or ""][setting][moment]: [value, low, high, [of each seed]] or null,
//              contrasts[judge][split]: [{first, second, difference: [value, low, high], text}],
//              differences: [[label, name, text in each setting]]}; {} where nothing is stored
//   images     the sheets by number, as bytes or as addresses: glyphs of glyph_px, a row a prompt; in columns the
//              moments, each with all noises
//   menu       [{heading, studies: [{path, label, images}]}]; choosing one sets `chosen`, and whoever answers sets
//              catalogue and images
//   state      what is shown: {study, at, moment, seed, noise, split, judge, radical, over, reach, pinned}
//   work       {text, cost, done, total, running, problem} of a training that the panel has started
//   alone      true where no kernel answers: then nothing can be added or trained
// Untrusted texts (prompts, names) are only set as textContent.

const SAVE_MS = 150;
const CURVE_HEIGHT = 208;
const EDGE = { left: 46, right: 58, top: 30, bottom: 38 };
const GRID_LINES = 5; // at most, above the axis
const PERCENT_STEPS = [0.02, 0.05, 0.1, 0.2]; // between two of them
const MANY_STOPS = 7; // above it, and with more letters than fit, stops are dots without texts
const MOST_LETTERS = 36;
const NEAREST = 3;
const SVG = "http://www.w3.org/2000/svg";

function node(name, options = {}, ...children) {
  const { text, data, aria, ...properties } = options;
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  Object.assign(made.dataset, data ?? {});
  for (const [key, value] of Object.entries(aria ?? {})) made.setAttribute(`aria-${key}`, value);
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const spaced = (caption) => caption.replace(/;(?=\S)/g, "; ");
const count = (number, unit) => `${number.toLocaleString("en")} ${unit}${number === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// Numbers of the settings that are nearest to a place, the nearest first.
export function nearest(catalogue, at) {
  const far = catalogue.settings.map((setting, number) => {
    const steps = catalogue.axes.map(({ name, values, apart }) => apart[values.indexOf(setting.at[name])][values.indexOf(at[name])]);
    return [steps.reduce((sum, step) => sum + step, 0), number];
  });
  return far.sort((one, other) => one[0] - other[0] || one[1] - other[1]).map(([, number]) => number);
}

class Explorer {
  constructor(model, el) {
    this.model = model;
    this.el = el;
    // Random, because anywidget loads this file again for every widget: a counter would restart in each.
    this.id = `kanjilab-ablation-${Math.random().toString(36).slice(2)}`;
    this.el.classList.add("kanjilab-ablation");
    this.el.dataset.lmSuppressShortcuts = "true"; // keys pressed here trigger none of JupyterLab's shortcuts
    this.el.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    this.width = 600;
    this.watched = [
      ["change:catalogue", () => this.load()],
      ["change:state", () => this.adopt(this.model.get("state"))],
      ["change:work", () => this.drawHole()],
      ["change:menu", () => this.fillMenu()],
      ["change:chosen", () => (this.study.value = this.model.get("chosen"))], // back, where it cannot be shown
      ["msg:custom", (message) => this.refuse(message)],
    ];
    for (const [name, act] of this.watched) model.on(name, act);
    this.build();
    this.resizing = new ResizeObserver(([{ contentRect }]) => {
      this.width = Math.max(280, contentRect.width); // kept, because asking for it makes the browser lay out the page
      if (this.catalogue.settings) this.drawCurve();
    });
    this.load();
    this.resizing.observe(this.curve);
  }

  remove() {
    clearTimeout(this.saving);
    this.resizing.disconnect();
    for (const [name, act] of this.watched) this.model.off(name, act);
  }

  // ------------------------------------------------------------------------------------------ building

  build() {
    this.study = node("select", { id: `${this.id}-study`, className: "study" });
    this.study.addEventListener("change", () => {
      this.model.set("chosen", this.study.value);
      this.model.save_changes();
    });
    this.title = node("h3");
    this.verdict = node("p", { className: "verdict" });
    this.sliders = node("div", { className: "sliders", role: "group", ariaLabel: "Settings" });
    this.pin = node("button", { type: "button", className: "pin" });
    this.pin.addEventListener("click", () => this.update({ pinned: this.state.pinned ? null : this.place }));
    this.toggles = node("div", { className: "toggles" });
    this.score = node("div", { className: "score", role: "status" });
    this.hole = node("div", { className: "hole", role: "group", ariaLabel: "A setting that is not trained" });
    this.heads = node("p", { className: "heads" });
    this.cards = node("div", { className: "cards", tabIndex: 0, role: "region", ariaLabel: "What was drawn" });
    this.curve = node("div", { className: "curve" });
    this.over = node("div", { className: "over" });
    this.differences = node("details", { className: "differences" });
    const menu = node("div", { className: "menu" }, node("label", { htmlFor: this.study.id, text: "Study" }), this.study);
    this.reach = node("div", { className: "reach" });
    const left = node("div", { className: "left" }, this.sliders, this.reach, this.pin);
    const right = node("div", { className: "right" }, this.score, this.toggles, this.hole, this.heads, this.cards);
    this.body = node("div", { className: "stage" }, left, right);
    this.foot = node("div", { className: "foot" }, this.over, this.curve, this.differences);
    this.el.append(menu, this.title, this.verdict, this.body, this.foot);
    this.fillMenu();
  }

  fillMenu() {
    const groups = this.model.get("menu").map(({ heading, studies }) => {
      const group = node("optgroup", { label: heading });
      group.append(...studies.map(({ path, label, images }) => node("option", { value: path, text: images ? label : `${label}, numbers only` })));
      return group;
    });
    this.study.replaceChildren(...groups);
    this.study.value = this.model.get("chosen");
    this.study.parentElement.hidden = !groups.length;
  }

  load() {
    this.catalogue = this.model.get("catalogue");
    this.study.value = this.model.get("chosen");
    const there = Boolean(this.catalogue.settings);
    this.body.hidden = this.foot.hidden = !there;
    this.el.dataset.study = this.model.get("chosen");
    this.title.textContent = there ? this.catalogue.title : "Nothing is stored yet";
    this.verdict.textContent = there ? this.catalogue.verdict : "Train a study of your own below; then its settings become sliders here.";
    if (!there) return;
    this.loadSheets();
    const state = this.model.get("state");
    this.state = state.study === this.catalogue.name && this.fits(state) ? structuredClone(state) : this.firstState();
    this.rebuild();
  }

  async loadSheets() {
    const sheets = (this.sheets = []);
    const catalogue = this.catalogue;
    await Promise.all(
      this.model.get("images").map(async (image, number) => {
        const blob = typeof image === "string" ? await (await fetch(image)).blob() : new Blob([image], { type: "image/webp" });
        sheets[number] = await createImageBitmap(blob);
      }),
    );
    if (this.catalogue === catalogue) this.drawCards();
  }

  // A state that another catalogue was shown with may name stops, judges or radicals that are not there.
  fits({ at, split, judge, radical }) {
    const { axes } = this.catalogue;
    return axes.every(({ name, values }) => values.includes(at?.[name])) && Boolean(this.catalogue.rates[judge]?.[split]?.[radical]);
  }

  // At first one setting at the end of its training.
  firstState() {
    const { axes, settings, first, judges, splits, name } = this.catalogue;
    const [judge, split] = [judges[0][0], splits[0][0]];
    const over = axes[0]?.name ?? "moment";
    const at = { ...settings[first].at };
    const reach = 2 * settings.length < this.combinations ? "stored" : "any"; // where most combinations are missing
    return { study: name, at, moment: this.lastMoment, seed: 0, noise: 0, split, judge, radical: "", over, reach, pinned: null };
  }

  rebuild() {
    this.settingAt = new Map(this.catalogue.settings.map(({ at }, number) => [this.key(at), number]));
    this.fillSliders();
    this.fillToggles();
    this.fillOver();
    this.fillCards();
    this.draw();
  }

  fillSliders() {
    const { axes, seeds, noises } = this.catalogue;
    this.tracks = axes.map((axis) => this.buildSlider(axis));
    const count = this.lastMoment + 1;
    if (count > 1) this.tracks.push(this.buildSlider({ name: "moment", label: "Images seen", values: [...Array(count).keys()] }));
    if (seeds.length > 1) this.tracks.push(this.buildSlider({ name: "seed", label: "Training seed", values: [...seeds.keys()], texts: seeds.map(String) }));
    if (noises.length > 1) this.tracks.push(this.buildSlider({ name: "noise", label: "Noise", values: [...noises.keys()], texts: noises.map(String) }));
    this.sliders.replaceChildren(...this.tracks.map(({ box }) => box));
  }

  buildSlider(axis) {
    const { name, label, values } = axis;
    const isAxis = "apart" in axis;
    const id = `${this.id}-${name}`;
    const input = node("input", { type: "range", id, min: 0, max: Math.max(1, values.length - 1), step: 1, data: { axis: name } });
    input.disabled = values.length < 2;
    const said = node("output", { htmlFor: id, ariaLive: "off" }); // the slider says it
    const stops = values.map((_, stop) => node("i", { data: { stop } }));
    const ticks = node("div", { className: "ticks" }, ...stops);
    const letters = axis.texts ? Math.max(...axis.texts.map((text) => text.length)) : 0;
    ticks.classList.toggle("many", values.length > MANY_STOPS || letters * values.length > MOST_LETTERS);
    const head = node("div", { className: "head" }, node("label", { htmlFor: id, text: label }), said);
    const box = node("div", { className: "slider" }, head, input, ticks);
    if (isAxis && this.canTrain && (axis.typed || axis.choices.length)) this.addAdder(head, box, axis);
    const move = (stop) => this.update(isAxis ? this.moved(name, values[stop]) : { [name]: values[stop] });
    input.addEventListener("input", () => move(Number(input.value)));
    ticks.addEventListener("click", (event) => event.target.dataset.stop && move(Number(event.target.dataset.stop)));
    return { axis, isAxis, input, said, stops, box };
  }

  // Where a slider leads: to a stored setting the others go along, and the curve is over the axis that moves.
  moved(name, value) {
    const at = { ...this.state.at, [name]: value };
    if (this.state.reach !== "stored") return { at };
    const number = nearest(this.catalogue, at).find((other) => this.catalogue.settings[other].at[name] === value);
    return number === undefined ? { at } : { at: { ...this.catalogue.settings[number].at }, over: name };
  }

  // A value that no training has: a number is typed, a category chosen. The kernel answers with a new catalogue.
  addAdder(head, box, axis) {
    const open = node("button", { type: "button", text: "+", className: "add", title: `Another ${axis.label.toLowerCase()}` });
    open.setAttribute("aria-label", `Another value of ${axis.label}`);
    open.setAttribute("aria-expanded", "false");
    const value = axis.typed
      ? node("input", { type: "text", inputMode: "decimal", size: 8, ariaLabel: `New value of ${axis.label}`, placeholder: "number" })
      : node("select", { ariaLabel: `New value of ${axis.label}` }, ...axis.choices.map((text) => node("option", { text, value: text })));
    const add = node("button", { type: "submit", text: "Add" });
    const form = node("form", { className: "adder", hidden: true }, value, add);
    open.addEventListener("click", () => {
      form.hidden = !form.hidden;
      open.setAttribute("aria-expanded", String(!form.hidden));
      if (!form.hidden) value.focus();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
      this.model.send({ kind: "add", axis: axis.name, value: value.value });
    });
    head.append(open);
    box.append(form);
  }

  fillToggles() {
    const { splits, judges, radicals } = this.catalogue;
    const choices = [
      ["split", "Prompts", splits],
      ["judge", "Read by", judges],
      ["radical", "Radical", [["", "all"], ...radicals.map((radical) => [radical, radical])]],
    ];
    const shown = choices.filter(([, , options]) => options.length > (options[0][0] === "" ? 2 : 1));
    const reaches = [["stored", "stored settings"], ["any", "any combination"]];
    const whole = this.catalogue.settings.length === this.combinations;
    this.reach.replaceChildren(whole ? "" : this.buildPills("reach", "Sliders reach", reaches));
    this.toggles.replaceChildren(...shown.map(([name, title, options]) => this.buildPills(name, title, options)));
  }

  buildPills(name, title, options) {
    const box = node("fieldset", { className: "pills" }, node("legend", { text: title }));
    for (const [value, text] of options) {
      const input = node("input", { type: "radio", name: `${this.id}-${name}`, value, checked: this.state[name] === value });
      input.addEventListener("change", () => this.update({ [name]: value }, name !== "judge"));
      box.append(node("label", {}, input, node("span", { text })));
    }
    return box;
  }

  fillOver() {
    const choices = this.catalogue.axes.filter(({ values }) => values.length > 1).map(({ name, label }) => [name, label]);
    if (this.lastMoment > 0) choices.push(["moment", "Images seen"]);
    if (!choices.some(([name]) => name === this.state.over)) this.state.over = choices[0]?.[0] ?? "moment";
    this.over.replaceChildren(choices.length > 1 ? this.buildPills("over", "Curve over", choices) : "");
  }

  // ------------------------------------------------------------------------------------------ what is shown

  key(at) {
    return JSON.stringify(this.catalogue.axes.map(({ name }) => at[name]));
  }

  get combinations() {
    return this.catalogue.axes.reduce((product, { values }) => product * values.length, 1);
  }

  get canTrain() {
    return this.catalogue.trainable && !this.model.get("alone");
  }

  get lastMoment() {
    return Math.max(...this.catalogue.arms.flat().map((arm) => (arm ? arm.seen.length : 1))) - 1;
  }

  // The columns of the strip: moments of one training, or, where it was drawn but once, the trainings.
  get columns() {
    return this.lastMoment > 0 ? "moment" : "seed";
  }

  get place() {
    const { at, moment, seed } = this.state;
    return { at: { ...at }, moment, seed };
  }

  setting(at) {
    return this.settingAt.get(this.key(at)) ?? -1;
  }

  arm(setting, seed) {
    return setting < 0 ? null : this.catalogue.arms[setting][seed];
  }

  rate(setting, moment) {
    const { judge, split, radical } = this.state;
    return (setting >= 0 && this.catalogue.rates[judge]?.[split]?.[radical]?.[setting]?.[moment]) || null;
  }

  seenText(setting, seed, moment) {
    const arm = this.arm(setting, seed);
    const known = arm ?? this.catalogue.arms.flat().find(Boolean);
    return known.seen[Math.min(moment, known.seen.length - 1)].toLocaleString("en");
  }

  placeText({ at, moment, seed }) {
    const parts = this.catalogue.axes.map(({ name, label, values, texts, number, unit }) => {
      const text = texts[values.indexOf(at[name])];
      return number ? `${label.toLowerCase()} ${text}${unit ? ` ${unit}` : ""}` : text;
    });
    if (this.lastMoment > 0) parts.push(`${this.seenText(this.setting(at), seed, moment)} images seen`);
    return parts.join(", ");
  }

  number(value, signed = false) {
    const { percent } = this.catalogue;
    const text = percent ? (100 * value).toFixed(1) : value.toPrecision(3);
    return (signed && value >= 0 ? "+" : "") + text;
  }

  valueText(value) {
    return this.number(value) + (this.catalogue.percent ? "%" : "");
  }

  // ------------------------------------------------------------------------------------------ state

  update(changes, refill = false) {
    const before = this.state;
    this.state = { ...before, ...changes };
    if (refill || Boolean(before.pinned) !== Boolean(this.state.pinned)) this.fillCards();
    this.draw();
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.save(), SAVE_MS);
  }

  save() {
    clearTimeout(this.saving);
    this.model.set("state", structuredClone(this.state));
    this.model.save_changes();
  }

  adopt(state) {
    if (!this.catalogue.settings || same(state, this.state) || state.study !== this.catalogue.name || !this.fits(state)) return;
    this.state = structuredClone(state);
    this.rebuild();
  }

  // ------------------------------------------------------------------------------------------ drawing

  draw() {
    this.pin.textContent = this.state.pinned ? "Unpin A" : "Pin this as A, and move B";
    this.pin.setAttribute("aria-pressed", String(Boolean(this.state.pinned)));
    for (const radio of this.over.querySelectorAll("input")) radio.checked = radio.value === this.state.over;
    this.drawSliders();
    this.drawScore();
    this.drawHole();
    this.drawCards();
    this.drawCurve();
    this.drawDifferences();
  }

  drawSliders() {
    const { at, seed } = this.state;
    const here = this.setting(at);
    for (const { axis, isAxis, input, said, stops } of this.tracks) {
      const { name, values } = axis;
      const value = isAxis ? at[name] : this.state[name];
      const stop = values.indexOf(value);
      const texts = name === "moment" ? values.map((moment) => this.seenText(here, seed, moment)) : axis.texts;
      const stored = values.map((other) => !isAxis || this.setting(this.moved(name, other).at) >= 0);
      input.value = stop;
      const unit = axis.unit ? ` ${axis.unit}` : "";
      said.textContent = texts[stop] + unit;
      const missing = isAxis && here < 0 && !stored[stop];
      input.setAttribute("aria-valuetext", texts[stop] + unit + (missing ? ", not trained" : ""));
      const pinned = isAxis ? this.state.pinned?.at[name] : this.state.pinned?.[name];
      stops.forEach((tick, number) => {
        if (tick.textContent !== texts[number]) tick.textContent = texts[number];
        tick.className = [stored[number] ? "stored" : "open", number === stop ? "now" : "", values[number] === pinned ? "pinned" : ""].join(" ").trim();
        tick.title = stored[number] ? texts[number] : `${texts[number]}: not trained with these`;
      });
    }
  }

  drawScore() {
    const here = { name: "B", ...this.place };
    const lines = this.state.pinned ? [{ name: "A", ...this.state.pinned }, here] : [here];
    this.score.hidden = lines.length === 1 && this.setting(here.at) < 0; // the box below says it
    this.score.replaceChildren(...lines.map((place) => this.scoreLine(place, lines.length > 1)), this.differenceLine());
  }

  scoreLine(place, tagged) {
    const setting = this.setting(place.at);
    const rate = this.rate(setting, place.moment);
    const line = node("p", { className: "line" });
    if (tagged) line.append(node("span", { className: `tag ${place.name}`, text: place.name }), " ");
    if (!rate) {
      line.append(node("b", { text: "–" }), node("span", { className: "where", text: ` ${this.placeText(place)}: not trained` }));
      return line;
    }
    const [value, low, high, blocks] = rate;
    const interval = low === high && low === value ? "" : ` [${this.number(low)}, ${this.number(high)}]`;
    line.append(node("b", { text: this.valueText(value) }), node("span", { className: "interval", text: interval }));
    const parts = [this.placeText(place), count(blocks.filter(Number.isFinite).length, "training")];
    if (blocks.length > 1 && Number.isFinite(blocks[place.seed])) parts.push(`seed ${this.catalogue.seeds[place.seed]} alone ${this.valueText(blocks[place.seed])}`);
    line.append(node("span", { className: "where", text: ` ${parts.join(" · ")}` }));
    const { stopped } = this.catalogue.settings[setting];
    if (stopped.length) line.append(node("span", { className: "where", title: stopped.join("; "), text: ` · ${stopped.length} ended early` }));
    return line;
  }

  // What the report says of these two, where it tested them: at the end of training, over all radicals.
  differenceLine() {
    const { pinned, judge, split, radical, moment } = this.state;
    const line = node("p", { className: "difference" });
    if (!pinned) {
      const over = this.catalogue.seeds.length > 1 ? "seeds and prompts" : "prompts";
      line.textContent = this.catalogue.percent ? `${this.catalogue.measure}, 95% interval over ${over}` : this.catalogue.measure;
      return line;
    }
    const [a, b] = [this.setting(pinned.at), this.setting(this.state.at)];
    const rates = [this.rate(a, pinned.moment), this.rate(b, moment)];
    if (!rates[0] || !rates[1]) return line;
    const tested = (this.catalogue.contrasts[judge]?.[split] ?? []).find(({ first, second }) => a !== b && [first, second].includes(a) && [first, second].includes(b));
    const atEnd = pinned.moment === this.lastMoment && moment === this.lastMoment;
    if (tested && atEnd && !radical) {
      const [first, second] = tested.first === b ? ["B", "A"] : ["A", "B"];
      line.textContent = `${first} against ${second}: ${tested.text}`;
    } else {
      const unit = this.catalogue.percent ? " points" : "";
      line.textContent = `B against A: ${this.number(rates[1][0] - rates[0][0], true)}${unit}; this pair was not tested`;
    }
    return line;
  }

  drawHole() {
    const work = this.model.get("work");
    const missing = this.catalogue.settings && this.setting(this.state.at) < 0;
    this.hole.hidden = !missing && !work.running && !work.problem;
    if (this.hole.hidden || !this.catalogue.settings) return;
    const parts = [];
    if (missing) {
      const close = nearest(this.catalogue, this.state.at).slice(0, NEAREST);
      parts.push(node("p", {}, node("b", { text: "Not trained: " }), this.placeText({ ...this.place, moment: this.lastMoment }), "."));
      const links = close.map((number) => {
        const { label, at } = this.catalogue.settings[number];
        const go = node("button", { type: "button", className: "link", text: label });
        go.addEventListener("click", () => {
          this.update({ at: { ...at } });
          this.tracks[0].input.focus(); // this button is gone
        });
        return go;
      });
      parts.push(node("p", { className: "near" }, "Nearest: ", ...links));
      if (this.canTrain && !work.running) parts.push(...this.trainButtons(close[0], work));
    }
    if (work.running) {
      const stop = node("button", { type: "button", text: "Stop" });
      stop.addEventListener("click", () => this.model.send({ kind: "stop" }));
      const bar = node("progress", work.total ? { max: work.total, value: work.done } : {});
      bar.setAttribute("aria-label", "Progress of the training");
      parts.push(node("p", { className: "work" }, stop, bar, node("span", { text: work.text })));
    }
    if (work.problem) parts.push(node("p", { className: "problem", role: "alert", text: work.problem }));
    const focused = this.hole.contains(document.activeElement) ? document.activeElement.textContent : "";
    this.hole.replaceChildren(...parts);
    if (focused) [...this.hole.querySelectorAll("button")].find(({ textContent }) => textContent === focused)?.focus();
  }

  trainButtons(neighbour, work) {
    const { seconds, label } = this.catalogue.settings[neighbour];
    const { seeds } = this.catalogue;
    const measured = work.cost && same(work.at, this.state.at);
    const known = seconds ? `${label} took ${duration(seconds)} for ${count(seeds.length, "seed")} where it was trained.` : "";
    const train = node("button", { type: "button", className: "primary", text: "Train it" });
    train.addEventListener("click", () => this.ask("train"));
    const measure = node("button", { type: "button", text: "Measure the cost here" });
    measure.addEventListener("click", () => this.ask("measure"));
    const cost = node("span", { text: measured ? work.cost : known });
    return [node("p", { className: "work" }, train, ...(measured ? [] : [measure]), cost)];
  }

  ask(kind) {
    this.save();
    this.model.send({ kind, at: this.state.at });
  }

  refuse(message) {
    if (message.kind !== "refused") return;
    this.hole.hidden = false;
    this.hole.append(node("p", { className: "problem", role: "alert", text: message.reason }));
  }

  // ------------------------------------------------------------------------------------------ the strip

  fillCards() {
    const { prompts } = this.catalogue;
    const { split, radical, pinned } = this.state;
    const pictured = this.catalogue.arms.flat().some((arm) => arm && arm.sheet >= 0);
    const chosen = prompts
      .map((prompt, number) => ({ ...prompt, number }))
      .filter((prompt) => (prompt.split === split || !prompt.split) && (!radical || prompt.expected.includes(radical)) && (!pictured || prompt.row >= 0));
    this.el.classList.toggle("pictured", pictured);
    this.rows = [];
    this.cards.replaceChildren(
      ...chosen.map((prompt) => {
        const head = node("figcaption", {}, node("span", { text: spaced(prompt.text), title: prompt.text }));
        if (prompt.expected) head.append(node("b", { text: prompt.expected }));
        const card = node("figure", {}, head);
        for (const name of pinned ? ["A", "B"] : ["B"]) card.append(this.buildRow(prompt, name, Boolean(pinned), pictured));
        return card;
      }),
    );
    this.cards.scrollTop = 0;
  }

  buildRow(prompt, name, tagged, pictured) {
    const count = this.columns === "moment" ? this.lastMoment + 1 : this.catalogue.seeds.length;
    const row = node("div", { className: "glyphs" });
    if (tagged) row.append(node("span", { className: `tag ${name}`, text: name }));
    const px = this.catalogue.glyph_px;
    for (let column = 0; column < count; column += 1) {
      const canvas = pictured ? node("canvas", { width: px, height: px }) : node("span", { className: "mark" });
      canvas.setAttribute("role", "img");
      const cell = node("span", { className: "glyph" }, canvas);
      cell.addEventListener("click", () => this.update({ [this.columns]: column }));
      row.append(cell);
      this.rows.push({ prompt, name, column, cell, canvas, pictured });
    }
    return row;
  }

  drawCards() {
    if (!this.rows) return;
    const { pinned } = this.state;
    const places = { A: pinned, B: this.place };
    for (const row of this.rows) this.drawGlyph(row, places[row.name]);
    const here = this.setting(this.state.at);
    const texts = this.columns === "moment" ? [...Array(this.lastMoment + 1).keys()].map((moment) => this.seenText(here, this.state.seed, moment)) : this.catalogue.seeds.map(String);
    const title = this.columns === "moment" ? "Images seen, from left to right: " : "Training seeds, from left to right: ";
    const now = this.state[this.columns];
    const heads = texts.flatMap((text, column) => [column ? " · " : "", node(column === now ? "b" : "span", { text })]);
    const noise = pinned ? " The noise is the same in A and B." : "";
    const rule = !this.catalogue.percent ? "" : this.el.classList.contains("pictured") ? " A bar marks a hit." : " ✓ marks a hit; the images are not stored.";
    this.heads.replaceChildren(...(texts.length > 1 ? [title, ...heads, "."] : []), rule, noise);
  }

  drawGlyph({ prompt, column, cell, canvas, pictured }, place) {
    const setting = this.setting(place.at);
    const moment = this.columns === "moment" ? column : place.moment;
    const seed = this.columns === "seed" ? column : place.seed;
    const arm = this.arm(setting, seed);
    const { noise, judge } = this.state;
    const noises = this.catalogue.noises.length;
    const hit = arm?.hits?.[judge]?.[Math.min(moment, arm.seen.length - 1)]?.[prompt.number * noises + noise];
    cell.className = `glyph${hit === "1" ? " hit" : ""}${column === place[this.columns] ? " now" : ""}${arm ? "" : " none"}`;
    const what = !arm ? "not trained" : hit === "1" ? "a hit" : hit === "0" ? "no hit" : "drawn";
    const when = this.columns === "moment" ? `${this.seenText(setting, seed, moment)} images seen` : `training seed ${this.catalogue.seeds[seed]}`;
    canvas.setAttribute("aria-label", `${spaced(prompt.text)}, ${when}: ${what}`);
    if (!pictured) {
      canvas.textContent = hit === "1" ? "✓" : arm ? "·" : "\u00a0";
      return;
    }
    const context = canvas.getContext("2d");
    const px = this.catalogue.glyph_px;
    const sheet = arm ? this.sheets[arm.sheet] : null;
    if (!sheet || moment >= arm.seen.length) context.clearRect(0, 0, px, px);
    else context.drawImage(sheet, px * (moment * noises + noise), px * prompt.row, px, px, 0, 0, px, px);
  }

  // ------------------------------------------------------------------------------------------ the curve

  // The name of what the curve is over.
  get overLabel() {
    return this.catalogue.axes.find(({ name }) => name === this.state.over)?.label ?? "Images seen";
  }

  // The stops of the curve's axis for one place: {x, text, setting, moment, rate, go}.
  curvePoints(place) {
    const { over } = this.state;
    if (over === "moment") {
      const setting = this.setting(place.at);
      const arm = this.arm(setting, place.seed) ?? { seen: [] };
      return arm.seen.map((seen, moment) => ({ x: seen, text: seen.toLocaleString("en"), rate: this.rate(setting, moment), now: moment === place.moment, go: { moment } }));
    }
    const axis = this.catalogue.axes.find(({ name }) => name === over);
    return axis.values.map((value, stop) => {
      const at = { ...place.at, [over]: value };
      return { x: value, text: axis.texts[stop], rate: this.rate(this.setting(at), place.moment), now: value === place.at[over], go: { at } };
    });
  }

  drawCurve() {
    const { width } = this;
    const [measure] = this.catalogue.measure.split(",");
    const title = `${measure[0].toUpperCase()}${measure.slice(1)}, by ${this.overLabel.toLowerCase()}`;
    const svg = shape("svg", { width, height: CURVE_HEIGHT, viewBox: `0 0 ${width} ${CURVE_HEIGHT}`, role: "group", "aria-label": title });
    svg.append(shape("text", { class: "title", x: EDGE.left, y: 12, "aria-hidden": "true" }, title));
    const { pinned, at, over } = this.state;
    const mine = this.curvePoints(this.place);
    const lines = [{ name: "B", points: mine }];
    if (pinned) lines.unshift({ name: "A", points: this.curvePoints(pinned) });
    const alike = pinned && pinned.moment === this.state.moment && over !== "moment" && this.key({ ...pinned.at, [over]: at[over] }) === this.key(at);
    const scale = this.curveScale(lines, width);
    this.drawGrid(svg, scale, mine, width);
    for (const line of alike ? lines.slice(1) : lines) this.drawLine(svg, scale, line, pinned && !alike);
    if (alike) for (const point of lines[0].points) if (point.now && point.rate) svg.append(shape("circle", { class: "ring A", cx: scale.x(point), cy: scale.y(point.rate[0]), r: 9 }));
    const focused = this.curve.querySelector(":focus")?.dataset.stop;
    this.curve.replaceChildren(svg);
    if (focused !== undefined) this.curve.querySelector(`[data-stop="${focused}"]`)?.focus();
  }

  curveScale(lines, width) {
    const axis = this.catalogue.axes.find(({ name }) => name === this.state.over);
    const points = lines.flatMap(({ points }) => points);
    const isNumber = axis ? axis.number : true;
    const isLog = axis ? axis.log : false;
    const value = ({ x }) => (isLog ? Math.log(x) : x);
    const [left, right] = [EDGE.left + 14, width - EDGE.right];
    const xs = points.map(isNumber ? value : () => 0);
    const [least, most] = [Math.min(...xs), Math.max(...xs)];
    const stops = lines.at(-1).points.map(({ text }) => text);
    const x = isNumber
      ? (point) => (most > least ? left + ((right - left) * (value(point) - least)) / (most - least) : (left + right) / 2)
      : (point) => left + (right - left) * (stops.length > 1 ? stops.indexOf(point.text) / (stops.length - 1) : 0.5);
    const ys = points.flatMap(({ rate }) => (rate ? rate.slice(0, 3).concat(rate[3]) : [])).filter(Number.isFinite);
    const bottom = this.catalogue.percent ? 0 : Math.min(...ys, Infinity);
    const top = Math.max(...ys, this.catalogue.percent ? 0.1 : -Infinity);
    const step = this.catalogue.percent ? PERCENT_STEPS.find((some) => some * GRID_LINES >= top - 1e-9) : (top - bottom || 1) / GRID_LINES;
    const low = this.catalogue.percent ? 0 : bottom - step / 3;
    const high = this.catalogue.percent ? step * Math.ceil(top / step - 1e-9) : top + step / 3;
    const y = (value) => CURVE_HEIGHT - EDGE.bottom - ((CURVE_HEIGHT - EDGE.bottom - EDGE.top) * (value - low)) / (high - low || 1);
    return { x, y, low, high, step, isNumber };
  }

  drawGrid(svg, scale, points, width) {
    for (let value = scale.low; value <= scale.high + scale.step / 9; value += scale.step) {
      const y = scale.y(value);
      svg.append(shape("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right + 14, y1: y, y2: y }));
      const text = this.catalogue.percent ? `${Math.round(1000 * value) / 10}%` : value.toPrecision(3);
      svg.append(shape("text", { class: "tick", x: EDGE.left - 6, y: y + 4, "text-anchor": "end" }, text));
    }
    let free = -Infinity;
    points.forEach((point, stop) => {
      const [x, y] = [scale.x(point), CURVE_HEIGHT - EDGE.bottom];
      const half = 3.4 * point.text.length;
      if (x - half >= free || point.now) {
        svg.append(shape("text", { class: point.now ? "tick now" : "tick", x, y: y + 17, "text-anchor": "middle" }, point.text));
        free = x + half + 8;
      }
      if (point.rate) return;
      const open = this.target(shape("circle", { class: "open", cx: x, cy: y, r: 5 }), point, stop, "not trained");
      svg.append(open);
    });
    const axis = this.catalogue.axes.find(({ name }) => name === this.state.over);
    const title = axis ? axis.label + (axis.unit ? `, ${axis.unit}` : "") + (axis.log ? ", log scale" : "") : "Images seen";
    svg.append(shape("text", { class: "title", x: (EDGE.left + width - EDGE.right) / 2, y: CURVE_HEIGHT - 4, "text-anchor": "middle" }, title));
  }

  drawLine(svg, scale, { name, points }, tagged) {
    const stored = points.filter(({ rate }) => rate);
    if (!stored.length) return;
    const low = stored.map((point) => `${scale.x(point)},${scale.y(point.rate[1])}`);
    const high = stored.map((point) => `${scale.x(point)},${scale.y(point.rate[2])}`).reverse();
    if (scale.isNumber) { // between categories there is nothing
      svg.append(shape("polygon", { class: `band ${name}`, points: [...low, ...high].join(" ") }));
      svg.append(shape("polyline", { class: `line ${name}`, points: stored.map((point) => `${scale.x(point)},${scale.y(point.rate[0])}`).join(" ") }));
    }
    points.forEach((point, stop) => {
      if (!point.rate) return;
      const [x, y] = [scale.x(point), scale.y(point.rate[0])];
      for (const block of point.rate[3].filter(Number.isFinite)) svg.append(shape("circle", { class: `block ${name}`, cx: x, cy: scale.y(block), r: 1.8 }));
      svg.append(shape("line", { class: `whisker ${name}${scale.isNumber ? "" : " alone"}`, x1: x, x2: x, y1: scale.y(point.rate[1]), y2: scale.y(point.rate[2]) }));
      const dot = shape("circle", { class: `dot ${name}${point.now ? " now" : ""}`, cx: x, cy: y, r: point.now ? 7 : 5 });
      const said = `${this.valueText(point.rate[0])} [${this.number(point.rate[1])}, ${this.number(point.rate[2])}]`;
      svg.append(name === "B" ? this.target(dot, point, stop, said) : dot);
      if (point.now) svg.append(shape("text", { class: "value", x: x + 11, y: y - 8 }, (tagged ? `${name} ` : "") + this.valueText(point.rate[0])));
    });
  }

  // A point that a click, Enter or Space moves the slider to.
  target(mark, point, stop, said) {
    const name = `${this.overLabel} ${point.text}: ${said}`;
    for (const [key, value] of Object.entries({ tabindex: 0, role: "button", "aria-label": name, "aria-pressed": point.now, "data-stop": stop })) mark.setAttribute(key, value);
    mark.append(shape("title", {}, name));
    mark.addEventListener("click", () => this.update(point.go));
    mark.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.update(point.go);
    });
    return mark;
  }

  // ------------------------------------------------------------------------------------------ differences

  drawDifferences() {
    const { pinned, at } = this.state;
    const [a, b] = [pinned ? this.setting(pinned.at) : -1, this.setting(at)];
    const rows = a < 0 || b < 0 ? [] : this.catalogue.differences.filter((row) => row[2 + a] !== row[2 + b]);
    this.differences.hidden = !rows.length;
    if (!rows.length) return;
    const head = ["Setting", "A", "B"].map((text) => node("th", { scope: "col", text }));
    const body = rows.map((row) => node("tr", {}, node("th", { scope: "row", text: row[0], title: row[1] }), node("td", { text: row[2 + a] }), node("td", { text: row[2 + b] })));
    const table = node("table", {}, node("thead", {}, node("tr", {}, ...head)), node("tbody", {}, ...body));
    const open = this.differences.open;
    this.differences.replaceChildren(node("summary", { text: `What differs between A and B: ${count(rows.length, "setting")}` }), table);
    this.differences.open = open;
  }
}

function render({ model, el }) {
  const explorer = new Explorer(model, el);
  return () => explorer.remove();
}

export default { render };
