// Compares stored strips. The browser holds all frames, so every change shows at once, even while the kernel is busy.
// Untrusted texts (prompts, run names) are only set as textContent.

const PLAY_MS = 700; // per checkpoint
const BLINK_MS = 500; // for each of the two glyphs: 1 Hz; up to 2 Hz is harmless
const SAVE_MS = 150; // changes are sent to the kernel after such a pause
const PINNED_INK = [0, 90, 181]; // blue and orange, which colour-blind readers can distinguish
const SELECTED_INK = [220, 90, 0];
const FIT = 0; // twice, or as large as there is room
const ZOOMS = [FIT, 1, 2, 3, 4, 6];
const KEYS = [
  ["← → ↑ ↓", "move in the grid"],
  [", .", "one checkpoint back, or on"],
  ["Enter", "pin the selected glyph (also a double click)"],
  ["Space, Enter", "on a button: press it"],
  ["?", "show or hide these keys"],
];

function node(name, options = {}, ...children) {
  const { text, data, ...properties } = options;
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  Object.assign(made.dataset, data ?? {});
  made.append(...children);
  return made;
}

function seenLabel(seen) {
  return seen ? `${seen.toLocaleString("en")} images seen` : "before training";
}

// Frames by number, as bitmaps. If there are many, the kernel sends each one when it is first shown.
class Frames {
  constructor(model, onArrival) {
    this.model = model;
    this.bitmaps = new Map();
    this.asked = new Set();
    this.waiting = [];
    this.onArrival = onArrival;
    this.loaded = this.decode(model.get("frames").map((png, number) => [number, png]));
  }

  async decode(entries) {
    await Promise.all(
      entries.map(async ([number, png]) => {
        this.bitmaps.set(number, await createImageBitmap(new Blob([png], { type: "image/png" })));
      }),
    );
    this.onArrival();
  }

  get(number) {
    const bitmap = this.bitmaps.get(number);
    if (!bitmap && this.model.get("lazy") && !this.asked.has(number)) {
      this.asked.add(number);
      if (this.waiting.push(number) === 1) queueMicrotask(() => this.ask());
    }
    return bitmap;
  }

  ask() {
    this.model.send({ kind: "frames", wanted: this.waiting });
    this.waiting = [];
  }
}

class Comparator {
  constructor(model, el) {
    this.model = model;
    this.el = el;
    // Random, because anywidget loads this file again for every widget: a counter would restart in each.
    this.id = `kanjilab-comparator-${Math.random().toString(36).slice(2)}`;
    this.catalogue = model.get("catalogue");
    this.state = structuredClone(model.get("state"));
    this.readings = new Map(Object.entries(model.get("readings")));
    this.askedReadings = new Set();
    this.cells = []; // {place, step, box, canvas, button, reading} of each cell of the grid
    this.zoom = FIT;
    this.calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    this.frames = new Frames(model, () => this.draw());
    this.build();
    this.listen();
    this.refresh();
  }

  // ------------------------------------------------------------------------------------------ what is shown

  get steps() {
    return this.catalogue.timeline.length;
  }

  // Number of the frame that a cell shows at a point of the timeline; -1 for none.
  frameAt([track, prompt, seed], step, exact = false) {
    const entry = this.catalogue.tracks[track];
    const first = entry.first[prompt][seed];
    const checkpoint = entry.at[step];
    if (first < 0 || checkpoint < 0) return -1;
    if (exact && entry.images_seen[checkpoint] !== this.catalogue.timeline[step]) return -1;
    return first + checkpoint;
  }

  // A glyph in words; its run is named only where several are shown.
  describe([track, prompt, seed], step) {
    const entry = this.catalogue.tracks[track];
    const seen = entry.at[step] < 0 ? "no checkpoint yet" : seenLabel(entry.images_seen[entry.at[step]]);
    const { tracks, selected, pinned } = this.state;
    const run = new Set([...tracks, selected[0], pinned?.[0] ?? selected[0]]).size > 1 ? [entry.label] : [];
    return [this.catalogue.prompts[prompt], ...run, `seed ${this.catalogue.seeds[seed]}`, seen].join(", ");
  }

  exists([track, prompt, seed]) {
    return this.catalogue.tracks[track].first[prompt][seed] >= 0;
  }

  // ------------------------------------------------------------------------------------------ building

  build() {
    this.el.classList.add("kanjilab-comparator");
    this.el.dataset.lmSuppressShortcuts = "true"; // keys pressed here trigger none of JupyterLab's shortcuts
    const parts = [this.buildControls(), this.buildHelp(), this.buildChoice()];
    this.grid = node("div", { className: "grid" });
    this.detail = this.buildDetail();
    parts.push(node("div", { className: "stage" }, this.grid, this.detail), this.buildFoot());
    parts.splice(1, 0, this.ownStatus);
    this.el.replaceChildren(...parts);
  }

  buildHelp() {
    const keys = KEYS.flatMap(([key, text]) => [node("dt", {}, node("kbd", { text: key })), node("dd", { text })]);
    this.help = node("div", { className: "help", id: `${this.id}-help`, hidden: true }, node("dl", {}, ...keys));
    this.helper.setAttribute("aria-controls", this.help.id);
    return this.help;
  }

  buildChoice() {
    const box = node("div", { className: "choice", id: `${this.id}-choice`, hidden: true });
    this.chooser.setAttribute("aria-controls", box.id);
    this.choice = box;
    this.words = node("input", { type: "search", id: `${this.id}-words`, className: "words" });
    const search = node("label", { htmlFor: this.words.id, text: "Find " });
    const all = ["All", "None"].map((text) => node("button", { type: "button", text, data: { every: text } }));
    const size = { type: "range", id: `${this.id}-size`, min: 32, max: 256, step: 8, className: "size" };
    this.size = node("input", size);
    const look = node(
      "div",
      { className: "row" },
      this.buildSelect("Columns ", "columns", [
        ["checkpoints", "checkpoints"],
        ["runs", "runs and seeds"],
      ]),
      node("span", {}, node("label", { htmlFor: this.size.id, text: "Cell size " }), this.size),
      this.buildSelect("Judge’s reading ", "judge", [
        ["", "none"],
        ["A", "judge A"],
        ["B", "judge B"],
      ]),
    );
    const seeds = this.catalogue.seeds.map((seed) => `seed ${seed}`);
    box.append(
      this.buildChecks("Runs", "tracks", this.catalogue.tracks.map((track) => track.label)),
      this.buildChecks("Prompts", "prompts", this.catalogue.prompts, search, this.words, ...all),
      this.buildChecks("Seeds", "seeds", seeds),
      look,
      this.buildDifferences(),
    );
    return box;
  }

  // A table of the settings in which the chosen runs differ; filled by `showDifferences`.
  buildDifferences() {
    this.differences = node("table", { className: "differences" });
    return this.differences;
  }

  showDifferences() {
    const { tracks } = this.state;
    const rows = this.model
      .get("differences")
      .map(([label, name, values]) => [label, name, tracks.map((track) => values[track])])
      .filter(([, , values]) => new Set(values).size > 1);
    this.differences.hidden = !rows.length;
    const head = tracks.map((track) => node("th", { scope: "col", text: this.catalogue.tracks[track].label }));
    const body = rows.map(([label, name, values]) => {
      const cells = values.map((value) => node("td", { text: value }));
      return node("tr", {}, node("th", { scope: "row", text: label, title: name }), ...cells);
    });
    this.differences.replaceChildren(
      node("caption", { text: "What differs between the runs" }),
      node("thead", {}, node("tr", {}, node("td"), ...head)),
      node("tbody", {}, ...body),
    );
  }

  buildChecks(title, name, labels, ...extra) {
    const group = node("fieldset", {}, node("legend", { text: title }), ...extra);
    const list = node("div", { className: "checks" });
    labels.forEach((text, index) => {
      const box = node("input", { type: "checkbox", value: index, data: { list: name } });
      list.append(node("label", {}, box, node("span", { text })));
    });
    group.append(list);
    return group;
  }

  buildControls() {
    const slider = { type: "range", id: `${this.id}-step`, min: 0, max: this.steps - 1, step: 1, className: "step" };
    this.slider = node("input", slider);
    this.said = node("output", { htmlFor: this.slider.id, className: "said", ariaLive: "polite" });
    this.player = node("button", { type: "button", text: "Play", className: "play" });
    this.chooser = node("button", { type: "button", className: "chooser", ariaExpanded: "false" });
    this.helper = node("button", { type: "button", text: "?", className: "helper", ariaExpanded: "false" });
    this.helper.ariaLabel = "Keyboard help";
    return node(
      "div",
      { className: "controls" },
      node("label", { htmlFor: this.slider.id, text: "Checkpoint" }),
      this.slider,
      this.player,
      this.said,
      this.buildOwn(),
      this.chooser,
      this.helper,
    );
  }

  buildOwn() {
    this.own = node("input", { type: "text", id: `${this.id}-own`, className: "own", maxLength: 1000 });
    this.own.placeholder = "your own prompt";
    this.own.ariaLabel = "Your own prompt, drawn from the stored checkpoints";
    this.drawer = node("button", { type: "button", text: "Draw", className: "drawer" });
    const form = node("span", { className: "own-form" }, this.own, this.drawer);
    form.hidden = this.model.get("alone") || !(this.catalogue.can_draw ?? []).some(Boolean);
    return form;
  }

  buildSelect(title, name, options) {
    const select = node("select", { id: `${this.id}-${name}`, data: { choice: name } });
    select.append(...options.map(([value, text]) => node("option", { value, text })));
    return node("span", {}, node("label", { htmlFor: select.id, text: title }), select);
  }

  buildDetail() {
    this.pin = node("button", { type: "button", text: "Pin this glyph", className: "pin" });
    this.unpin = node("button", { type: "button", text: "Unpin", className: "unpin" });
    const modes = node("fieldset", { className: "modes" }, node("legend", { text: "Compare pinned and selected" }));
    for (const mode of ["side by side", "blink", "difference"]) {
      const radio = node("input", { type: "radio", name: `${this.id}-compare`, value: mode, data: { mode } });
      modes.append(node("label", {}, radio, node("span", { text: mode })));
    }
    this.calmNote = node("p", { className: "note", text: "Blinking is off, because your system asks for reduced motion." });
    const zoom = node("select", { id: `${this.id}-zoom`, className: "zoom" });
    zoom.append(...ZOOMS.map((times) => node("option", { value: times, text: times === FIT ? "to fit" : `${times} ×` })));
    zoom.value = this.zoom;
    this.zoomer = zoom;
    this.figures = { pinned: this.buildFigure(), selected: this.buildFigure() };
    this.note = node("p", { className: "note" });
    return node(
      "div",
      { className: "detail", role: "region", ariaLabel: "Enlarged" },
      node("div", { className: "row" }, this.pin, this.unpin),
      modes,
      this.calmNote,
      node("div", { className: "row" }, node("label", { htmlFor: zoom.id, text: "Enlarge pixels" }), zoom),
      node("div", { className: "figures" }, this.figures.pinned.figure, this.figures.selected.figure),
      this.note,
    );
  }

  buildFigure() {
    const canvas = this.buildCanvas();
    const title = node("b");
    const caption = node("span");
    const figure = node("figure", {}, canvas, node("figcaption", {}, title, " ", caption));
    return { figure, canvas, title, caption };
  }

  buildCanvas() {
    const [height, width] = this.model.get("frame_shape");
    const canvas = node("canvas", { width, height });
    canvas.setAttribute("role", "img");
    canvas.getContext("2d", { willReadFrequently: true });
    return canvas;
  }

  buildFoot() {
    this.legend = node("p", { className: "note legend" });
    this.files = node("div", { className: "row files" }, node("span", { text: "Save what is shown as" }));
    for (const kind of ["PNG", "GIF", "HTML"]) {
      this.files.append(node("button", { type: "button", text: kind, data: { file: kind.toLowerCase() } }));
    }
    this.fileStatus = node("span", { role: "status" });
    this.files.append(this.fileStatus);
    this.ownStatus = node("p", { className: "note", role: "status", text: this.toldLast ?? "" });
    this.files.hidden = this.model.get("alone");
    return node("div", { className: "foot" }, this.legend, this.files);
  }

  // ------------------------------------------------------------------------------------------ events

  listen() {
    this.el.addEventListener("keydown", (event) => this.onKey(event));
    this.el.addEventListener("input", (event) => this.onInput(event.target));
    this.el.addEventListener("click", (event) => this.onClick(event));
    this.el.addEventListener("dblclick", (event) => event.target.closest(".cell") && this.pinSelected());
    this.onMessage = (message, buffers) => this.receive(message, buffers);
    this.onChange = () => {
      if (this.model.get("catalogue") === this.catalogue) this.adopt(this.model.get("state"));
      else this.rebuild();
    };
    this.onCalm = () => this.update({});
    this.model.on("msg:custom", this.onMessage);
    this.model.on("change", this.onChange); // once for all changes of a message
    this.calm.addEventListener("change", this.onCalm);
  }

  remove() {
    clearInterval(this.playing);
    clearInterval(this.blinking);
    clearTimeout(this.saving);
    this.model.off("msg:custom", this.onMessage);
    this.model.off("change", this.onChange);
    this.calm.removeEventListener("change", this.onCalm);
  }

  onKey(event) {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation(); // otherwise arrows collapse headings, and "d d" deletes the cell
    const typing = event.target.matches("input:is([type=text], [type=search])");
    if (event.key === "?" && !typing) this.open(this.helper, this.help, this.help.hidden);
    if (event.key === "Enter" && event.target === this.own) this.drawOwn();
    const cell = event.target.closest(".cell");
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const stepping = { ",": -1, ".": 1 };
    if (event.key in moves) this.moveFrom(cell, ...moves[event.key]);
    else if (event.key in stepping) this.goTo(this.state.step + stepping[event.key]);
    else if (event.key === "Enter") this.pinSelected();
    else return;
    event.preventDefault();
  }

  onInput(target) {
    if (target === this.slider) this.goTo(Number(target.value));
    else if (target === this.size) this.update({ cell_px: Number(target.value) });
    else if (target === this.words) this.filter(target.value);
    else if (target === this.zoomer) {
      this.zoom = Number(target.value);
      this.drawDetail();
    } else if (target.dataset.list) this.choose(target.dataset.list);
    else if (target.dataset.choice) this.update({ [target.dataset.choice]: target.value }, true);
    else if (target.dataset.mode) this.update({ compare: target.value });
  }

  onClick(event) {
    const button = event.target.closest("button");
    if (!button) return;
    if (button === this.player) this.togglePlay();
    else if (button === this.pin) this.pinSelected();
    else if (button === this.unpin) this.update({ pinned: null });
    else if (button === this.drawer) this.drawOwn();
    else if (button === this.chooser) this.open(button, this.choice, this.choice.hidden);
    else if (button === this.helper) this.open(button, this.help, this.help.hidden);
    else if (button.dataset.every) this.chooseEvery(button.dataset.every === "All");
    else if (button.dataset.file) this.askFile(button.dataset.file);
    else if (button.classList.contains("cell")) this.select(this.cells[Number(button.dataset.index)]);
  }

  choose(name) {
    const boxes = this.el.querySelectorAll(`input[data-list="${name}"]`);
    this.update({ [name]: [...boxes].filter((box) => box.checked).map((box) => Number(box.value)) }, true);
  }

  open(button, box, shown) {
    box.hidden = !shown;
    button.ariaExpanded = String(shown);
  }

  // Narrows the list of prompts; what is ticked stays so, and what is selected too.
  filter(words) {
    const wanted = words.trim().toLowerCase();
    for (const box of this.el.querySelectorAll('input[data-list="prompts"]')) {
      const prompt = this.catalogue.prompts[Number(box.value)];
      box.parentElement.hidden = !prompt.toLowerCase().includes(wanted);
    }
  }

  // Ticks or unticks every prompt that is found.
  chooseEvery(ticked) {
    for (const box of this.el.querySelectorAll('label:not([hidden]) > input[data-list="prompts"]')) box.checked = ticked;
    this.choose("prompts");
  }

  drawOwn() {
    const text = this.own.value.trim();
    if (!text) return this.tell("Type a prompt first.");
    this.save();
    this.tell(`“${text}” is asked for.`);
    this.model.send({ kind: "prompt", text });
  }

  tell(text) {
    this.toldLast = this.ownStatus.textContent = text;
  }

  select({ place, step }) {
    this.update(this.state.columns === "checkpoints" ? { selected: place, step } : { selected: place });
  }

  moveFrom(button, down, right) {
    const { row, column } = this.cells[Number(button.dataset.index)];
    const next = this.cells.find((cell) => cell.row === row + down && cell.column === column + right);
    if (!next) return;
    next.button.focus();
    this.select(next);
  }

  goTo(step) {
    this.update({ step: Math.min(Math.max(step, 0), this.steps - 1) });
  }

  pinSelected() {
    this.update({ pinned: [...this.state.selected, this.state.step] });
  }

  togglePlay() {
    clearInterval(this.playing);
    this.playing = this.playing ? null : setInterval(() => this.goTo((this.state.step + 1) % this.steps), PLAY_MS);
    this.player.textContent = this.playing ? "Pause" : "Play";
    this.said.ariaLive = this.playing ? "off" : "polite";
  }

  // ------------------------------------------------------------------------------------------ state

  update(changes, rebuild = false) {
    Object.assign(this.state, changes);
    if (rebuild) this.refresh();
    else this.draw();
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.save(), SAVE_MS);
  }

  save() {
    clearTimeout(this.saving);
    this.model.set("state", structuredClone(this.state));
    this.model.save_changes();
  }

  adopt(state) {
    if (JSON.stringify(state) === JSON.stringify(this.state)) return;
    this.state = structuredClone(state);
    this.refresh();
  }

  // Other samples are stored now: a prompt of one's own, say.
  rebuild() {
    const opened = !this.choice.hidden;
    this.catalogue = this.model.get("catalogue");
    this.state = structuredClone(this.model.get("state"));
    this.readings.clear();
    this.askedReadings.clear();
    this.cells = [];
    this.frames = new Frames(this.model, () => this.draw());
    this.build();
    this.player.textContent = this.playing ? "Pause" : "Play";
    this.open(this.chooser, this.choice, opened);
    this.refresh();
  }

  // ------------------------------------------------------------------------------------------ drawing

  refresh() {
    const { tracks, prompts, seeds } = this.state;
    const counts = [
      [tracks, "run"],
      [prompts, "prompt"],
      [seeds, "seed"],
    ].map(([list, name]) => `${list.length} ${name}${list.length === 1 ? "" : "s"}`);
    this.chooser.textContent = `${counts.join(", ")} ▾`;
    this.chooser.ariaLabel = `Choose runs, prompts and seeds: ${counts.join(", ")}`;
    this.showDifferences();
    for (const box of this.el.querySelectorAll("input[data-list]")) {
      box.checked = this.state[box.dataset.list].includes(Number(box.value));
    }
    for (const select of this.el.querySelectorAll("select[data-choice]")) {
      select.value = this.state[select.dataset.choice];
    }
    this.fillGrid();
    this.draw();
  }

  fillGrid() {
    const { tracks, prompts, seeds } = this.state;
    const sources = tracks.flatMap((track) => seeds.map((seed) => [track, seed]));
    const table = node("table");
    this.before = new Map(this.cells.map((cell) => [this.cellKey(cell.place, cell.step), cell]));
    this.cells = [];
    if (!prompts.length || !sources.length) {
      this.grid.replaceChildren(node("p", { text: "Choose at least one run, one prompt and one seed." }));
      return;
    }
    if (this.state.columns === "checkpoints") this.fillCheckpoints(table, prompts, sources);
    else this.fillRuns(table, prompts, sources);
    this.grid.replaceChildren(table);
  }

  fillCheckpoints(table, prompts, sources) {
    const used = new Set(this.state.tracks.flatMap((track) => this.catalogue.tracks[track].images_seen));
    const steps = this.catalogue.timeline.flatMap((seen, step) => (used.has(seen) ? [step] : []));
    const heads = steps.map((step) => {
      const seen = this.catalogue.timeline[step];
      return node("th", { scope: "col", text: seen ? seen.toLocaleString("en") : "before", data: { step } });
    });
    table.append(node("caption", { text: "Images seen, from left to right" }));
    table.append(node("thead", {}, node("tr", {}, node("td"), ...heads)));
    const body = node("tbody");
    let row = 0;
    for (const prompt of prompts) {
      for (const [track, seed] of sources) {
        const place = [track, prompt, seed];
        if (!this.exists(place)) continue;
        const cells = steps.map((step, column) => this.placeCell(place, step, row, column));
        const first = track === sources[0][0] && seed === sources[0][1];
        body.append(node("tr", { className: first ? "first" : "" }, this.rowHead(place, sources), ...cells));
        row += 1;
      }
    }
    table.append(body);
  }

  rowHead([track, prompt, seed], sources) {
    const head = node("th", { scope: "row" }, node("span", { text: this.catalogue.prompts[prompt] }));
    const parts = [];
    if (this.state.tracks.length > 1) parts.push(this.catalogue.tracks[track].label);
    if (this.state.seeds.length > 1) parts.push(`seed ${this.catalogue.seeds[seed]}`);
    if (sources.length > 1) head.append(node("small", { text: parts.join(", ") }));
    return head;
  }

  fillRuns(table, prompts, sources) {
    const runs = this.state.tracks.map((track) => {
      const options = { scope: "colgroup", colSpan: this.state.seeds.length, text: this.catalogue.tracks[track].label };
      return node("th", options);
    });
    const seeds = sources.map(([, seed]) => {
      return node("th", { scope: "col", text: `seed ${this.catalogue.seeds[seed]}` });
    });
    table.append(
      node("thead", {}, node("tr", {}, node("td"), ...runs), node("tr", {}, node("td"), ...seeds)),
      node(
        "tbody",
        {},
        ...prompts.map((prompt, row) => {
          const cells = sources.map(([track, seed], column) => this.placeCell([track, prompt, seed], null, row, column));
          const head = node("th", { scope: "row", text: this.catalogue.prompts[prompt] });
          return node("tr", { className: "first" }, head, ...cells);
        }),
      ),
    );
  }

  // A cell that was shown before is used again: building a hundred new ones takes a tenth of a second.
  placeCell(place, step, row, column) {
    const cell = this.before.get(this.cellKey(place, step)) ?? this.buildCell(place, step);
    Object.assign(cell, { row, column });
    cell.button.dataset.index = this.cells.push(cell) - 1;
    return cell.box;
  }

  buildCell(place, step) {
    const canvas = this.buildCanvas();
    const reading = node("span", { className: "reading" });
    const button = node("button", { type: "button", className: "cell" }, canvas, reading);
    return { place, step, box: node("td", {}, button), canvas, button, reading };
  }

  cellKey(place, step) {
    return `${place} ${step}`;
  }

  draw() {
    const { state } = this;
    this.slider.value = state.step;
    this.size.value = state.cell_px;
    const where = `${seenLabel(this.catalogue.timeline[state.step])} (${state.step + 1} of ${this.steps})`;
    if (this.said.textContent !== where) this.said.textContent = where;
    this.slider.setAttribute("aria-valuetext", where);
    this.el.style.setProperty("--cell", `${state.cell_px}px`);
    for (const cell of this.cells) this.drawCell(cell);
    for (const head of this.grid.querySelectorAll("th[data-step]")) {
      head.classList.toggle("now", Number(head.dataset.step) === state.step);
    }
    this.settleFocus();
    this.drawDetail();
    this.askReadings();
  }

  drawCell(cell) {
    const { state } = this;
    const strip = state.columns === "checkpoints";
    const step = strip ? cell.step : state.step;
    const number = this.frameAt(cell.place, step, strip);
    if (cell.number !== number || !cell.drawn) {
      cell.number = number;
      cell.drawn = this.paint(cell.canvas, number);
    }
    const name = this.describe(cell.place, step);
    if (cell.canvas.ariaLabel !== name) cell.canvas.ariaLabel = name;
    const chosen = String(cell.place) === String(state.selected) && (!strip || step === state.step);
    const pinned = String([...cell.place, step]) === String(state.pinned);
    cell.button.classList.toggle("selected", chosen);
    cell.button.classList.toggle("pinned", pinned);
    cell.button.classList.toggle("now", strip && step === state.step);
    cell.button.setAttribute("aria-current", chosen);
    cell.button.disabled = number < 0 && strip;
    const reading = this.readings.get(this.readingKey(number)) ?? (state.judge && number >= 0 ? "…" : "");
    const text = state.judge ? reading : "";
    if (cell.reading.textContent !== text) cell.reading.replaceChildren(...this.colouredMarks(text));
  }

  colouredMarks(text) {
    return text.split(/([◎○✓✗])/).map((part) => {
      const kind = { "◎": "yes", "✓": "yes", "○": "no", "✗": "no" }[part];
      return node("span", { text: part, className: kind ?? "" });
    });
  }

  // Only one cell is reached by Tab: the selected one, or else the first.
  settleFocus() {
    const target = this.cells.find((cell) => cell.button.classList.contains("selected")) ?? this.cells[0];
    for (const cell of this.cells) cell.button.tabIndex = cell === target ? 0 : -1;
  }

  paint(canvas, number) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (number < 0) return true;
    const bitmap = this.frames.get(number);
    if (!bitmap) return false;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    }
    context.drawImage(bitmap, 0, 0);
    return true;
  }

  drawDetail() {
    const { state, figures } = this;
    const pinned = state.pinned;
    const mode = !pinned ? "side by side" : state.compare === "blink" && this.calm.matches ? "side by side" : state.compare;
    clearInterval(this.blinking);
    this.blinking = null;
    this.unpin.disabled = !pinned;
    this.calmNote.hidden = !this.calm.matches;
    for (const radio of this.el.querySelectorAll("input[data-mode]")) {
      radio.checked = radio.value === mode;
      radio.disabled = !pinned || (radio.value === "blink" && this.calm.matches);
    }
    this.el.style.setProperty("--zoom", this.zoom || 2);
    this.el.classList.toggle("fit", this.zoom === FIT);
    this.el.style.setProperty("--frame", `${this.model.get("frame_shape")[1]}px`);
    this.fillFigure(figures.selected, "Selected:", state.selected, state.step);
    figures.pinned.figure.hidden = !pinned || mode !== "side by side";
    this.note.textContent = pinned ? "" : "Pin a glyph to compare it with others.";
    if (!pinned) return;
    this.fillFigure(figures.pinned, "Pinned:", pinned.slice(0, 3), pinned[3]);
    if (mode === "difference") this.drawDifference();
    if (mode === "blink") this.blink();
  }

  fillFigure({ canvas, title, caption }, name, place, step) {
    this.paint(canvas, this.frameAt(place, step));
    title.textContent = name;
    caption.textContent = canvas.ariaLabel = this.describe(place, step);
  }

  blink() {
    let first = false;
    const turn = () => {
      first = !first;
      const { pinned, selected, step } = this.state;
      if (first) this.fillFigure(this.figures.selected, "Pinned:", pinned.slice(0, 3), pinned[3]);
      else this.fillFigure(this.figures.selected, "Selected:", selected, step);
    };
    turn();
    this.blinking = setInterval(turn, BLINK_MS);
  }

  drawDifference() {
    const { canvas, title, caption } = this.figures.selected;
    const { width, height } = canvas;
    const ours = canvas.getContext("2d").getImageData(0, 0, width, height);
    const theirs = this.figures.pinned.canvas.getContext("2d").getImageData(0, 0, width, height);
    let total = 0;
    for (let at = 0; at < ours.data.length; at += 4) {
      const selected = 255 - (ours.data[at] + ours.data[at + 1] + ours.data[at + 2]) / 3;
      const pinned = 255 - (theirs.data[at] + theirs.data[at + 1] + theirs.data[at + 2]) / 3;
      const shared = Math.min(selected, pinned) / 255;
      const more = Math.abs(selected - pinned) / 255;
      const ink = selected > pinned ? SELECTED_INK : PINNED_INK;
      total += more * 255;
      for (let c = 0; c < 3; c += 1) ours.data[at + c] = 255 - 110 * shared - (255 - ink[c]) * more;
      ours.data[at + 3] = 255;
    }
    canvas.getContext("2d").putImageData(ours, 0, 0);
    const mean = (total / (width * height)).toFixed(1);
    title.textContent = "Difference:";
    caption.textContent = canvas.ariaLabel = `mean ${mean} of 255 gray levels`;
    const legend = "Blue: ink of the pinned glyph only. Orange: ink of the selected glyph only. Gray: ink of both.";
    const names = `Pinned: ${this.describe(this.state.pinned.slice(0, 3), this.state.pinned[3])}. Selected: `;
    this.note.textContent = `${legend} ${names}${this.describe(this.state.selected, this.state.step)}.`;
  }

  // ------------------------------------------------------------------------------------------ kernel

  readingKey(number) {
    return `${this.state.judge}/${number}`;
  }

  askReadings() {
    const { judge } = this.state;
    this.legend.textContent = judge
      ? `Judge ${judge} reads the parts (– for none); ≈ a character that the glyph resembles; ` +
        "◎ a part that the prompt asks for is there, ○ it is not; ✓ well-formed, ✗ not well-formed."
      : "";
    if (!judge || this.model.get("alone")) return;
    const wanted = this.cells
      .map((cell) => cell.number)
      .filter((number) => number >= 0 && !this.askedReadings.has(`${judge}/${number}`));
    if (!wanted.length) return;
    for (const number of wanted) this.askedReadings.add(`${judge}/${number}`);
    this.model.send({ kind: "read", judge, wanted });
  }

  askFile(kind) {
    this.save();
    this.fileStatus.textContent = "Writing …";
    this.model.send({ kind: "file", ending: kind });
  }

  receive(message, buffers) {
    if (message.kind === "frames") {
      this.frames.decode(message.numbers.map((number, index) => [number, buffers[index]]));
    } else if (message.kind === "readings") {
      for (const [number, text] of message.entries) this.readings.set(`${message.judge}/${number}`, text);
      for (const cell of this.cells) this.drawCell(cell);
    } else if (message.kind === "file") {
      const link = node("a", { href: URL.createObjectURL(new Blob(buffers)), download: message.name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      this.fileStatus.textContent = `Saved ${message.name}.`;
    } else if (message.kind === "said") {
      this.tell(message.text);
    } else if (message.kind === "refused") {
      this.fileStatus.textContent = message.reason;
    }
  }
}

function render({ model, el }) {
  const comparator = new Comparator(model, el);
  return () => comparator.remove();
}

export default { render };
