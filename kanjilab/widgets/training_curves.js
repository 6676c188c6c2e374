// Loss and gradient norm of trainings over each other, on uPlot, whose source comes before this file.
// Smoothing, zoom, scale and the choice of runs happen here, without the kernel. Texts are never markup.

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito
const CHARTS = [
  ["loss", "Loss"],
  ["gradient_norm", "Gradient norm"],
];
const HEIGHT = 210;
const NARROW = 560; // pixels: below it the charts stand one above the other

function node(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

// Exponential moving average without the bias of its start; share 0 leaves the values as they are.
function smoothed(values, share) {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = share * sum + (1 - share) * value;
    weight = share * weight + (1 - share);
    return sum / weight;
  });
}

function short(value) {
  if (value === null || value === undefined) return "–";
  return value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5)
    ? value.toExponential(1)
    : String(Number(value.toPrecision(3)));
}

class Curves {
  constructor(model, el) {
    this.model = model;
    this.el = el;
    this.id = `kanjilab-curves-${Math.random().toString(36).slice(2)}`;
    this.hidden = new Set(); // names of the runs that are not shown: at first all but the panel's own
    this.known = new Set();
    this.range = null; // [first, last] images seen; null for all
    this.plots = [];
    this.build();
    this.onChange = () => this.fill();
    model.on("change:runs", this.onChange);
    this.sizes = new ResizeObserver(() => this.resize());
    this.sizes.observe(el);
    this.theme = new MutationObserver(() => this.draw());
    this.theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
    el.addEventListener("keydown", (event) => event.stopPropagation());
    this.fill();
  }

  remove() {
    this.model.off("change:runs", this.onChange);
    this.sizes.disconnect();
    this.theme.disconnect();
    for (const plot of this.plots) plot.destroy();
  }

  build() {
    this.smooth = node("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0.8, id: `${this.id}-smooth` });
    this.log = node("input", { type: "checkbox" });
    this.zoomIn = node("button", { type: "button", textContent: "Zoom in", title: "Shows the last half" });
    this.zoomOut = node("button", { type: "button", textContent: "Whole" });
    this.smooth.addEventListener("input", () => this.draw());
    this.log.addEventListener("change", () => this.draw());
    this.zoomIn.addEventListener("click", () => this.zoomToLast());
    this.zoomOut.addEventListener("click", () => this.zoom(null));
    this.names = node("div", { className: "runs" });
    this.box = node("div", { className: "charts" });
    this.said = node("p", { className: "said" });
    const smooth = node("label", { htmlFor: this.smooth.id, textContent: "Smoothing" });
    const log = node("label", {}, this.log, " log scale");
    const bar = node("div", { className: "bar" }, smooth, this.smooth, log, this.zoomIn, this.zoomOut);
    this.el.classList.add("kanjilab-curves");
    this.el.append(bar, this.names, this.box, this.said);
  }

  fill() {
    const runs = this.model.get("runs");
    this.el.hidden = !runs.length;
    this.names.hidden = runs.length < 2;
    runs.forEach(({ name }, index) => {
      if (index > 0 && !this.known.has(name)) this.hidden.add(name);
      if (index === 0) this.hidden.delete(name);
      this.known.add(name);
    });
    this.names.replaceChildren(
      ...runs.map(({ name, label }, index) => {
        const box = node("input", { type: "checkbox", checked: !this.hidden.has(name) });
        box.addEventListener("change", () => {
          if (box.checked) this.hidden.delete(name);
          else this.hidden.add(name);
          this.draw();
        });
        const mark = node("span", { className: "mark" });
        mark.style.background = this.colour(index);
        return node("label", {}, box, mark, node("span", { textContent: label }));
      }),
    );
    this.draw();
  }

  colour(index) {
    return COLOURS[index % COLOURS.length];
  }

  get shown() {
    return this.model.get("runs").flatMap((run, index) => (this.hidden.has(run.name) ? [] : [{ ...run, index }]));
  }

  draw() {
    for (const plot of this.plots) plot.destroy();
    this.box.replaceChildren();
    this.plots = CHARTS.filter(([key]) => this.shown.some((run) => run[key]?.some((value) => value !== null))).map(
      ([key, title]) => this.plot(key, title),
    );
    const last = this.shown.map((run) => `${run.label}: loss ${short(run.loss.at(-1))} after ${run.seen.at(-1).toLocaleString("en")} images`);
    this.said.textContent = last.join("; ");
  }

  // One chart: of each run the raw values faintly, and their average over them.
  plot(key, title) {
    const share = Number(this.smooth.value);
    const seen = [...new Set(this.shown.flatMap((run) => run.seen))].sort((one, other) => one - other);
    const place = new Map(seen.map((count, index) => [count, index]));
    const log = this.log.checked;
    const series = [{ label: "images seen", value: (_, value) => (value === null ? "–" : value.toLocaleString("en")) }];
    const data = [seen];
    const few = seen.length < 40;
    for (const run of this.shown) {
      const raw = Array(seen.length).fill(null);
      run.seen.forEach((count, at) => {
        const value = run[key][at];
        raw[place.get(count)] = log && value !== null && value <= 0 ? null : value;
      });
      const colour = this.colour(run.index);
      const spanGaps = true;
      data.push(raw, smoothed(raw, share));
      series.push({ label: "raw", stroke: `${colour}55`, width: 1, spanGaps, points: { show: false }, value: () => "" });
      series.push({
        label: this.shown.length > 1 ? run.label : title,
        stroke: colour,
        width: 2,
        spanGaps,
        points: { show: few, size: 5 },
        value: (_, value) => short(value),
      });
    }
    const style = getComputedStyle(this.el);
    const ink = style.color;
    const line = style.getPropertyValue("--line") || "#ccc";
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "11px sans-serif" };
    const whole = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7];
    const figure = node("figure", {}, node("figcaption", { textContent: title }));
    figure.setAttribute("role", "group");
    figure.setAttribute("aria-label", `${title} over images seen`);
    this.box.append(figure);
    const options = {
      width: this.width(),
      height: HEIGHT,
      legend: { show: true, live: true },
      cursor: { drag: { x: true, y: false }, points: { size: 6 } },
      scales: { x: { time: false, range: (_, low, high) => this.range ?? (low === high ? [low - 1, high + 1] : [low, high]) }, y: { distr: log ? 3 : 1 } },
      axes: [
        { ...axis, incrs: whole, space: 45, values: (_, splits) => splits.map((at) => at.toLocaleString("en")) },
        { ...axis, size: 52, values: (_, splits) => splits.map((at) => (at === null ? "" : short(at))) },
      ],
      series,
      hooks: {
        setSelect: [(plot) => plot.select.width > 4 && this.zoom([plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")])],
      },
    };
    const plot = new uPlot(options, data, figure);
    plot.root.querySelector(".u-over").addEventListener("dblclick", () => this.zoom(null));
    plot.ctx.canvas.setAttribute("role", "img");
    plot.ctx.canvas.setAttribute("aria-label", `${title} over images seen`);
    return plot;
  }

  zoom(range) {
    this.range = range;
    queueMicrotask(() => this.draw()); // after uPlot has handled the event that asks for it
  }

  zoomToLast() {
    const seen = this.shown.flatMap((run) => run.seen);
    const [first, last] = this.range ?? [Math.min(...seen), Math.max(...seen)];
    this.zoom([(first + last) / 2, last]);
  }

  width() {
    const whole = Math.max(200, this.el.clientWidth - 4);
    return whole < NARROW ? whole : Math.floor((whole - 16) / 2);
  }

  resize() {
    for (const plot of this.plots) if (plot.width !== this.width()) plot.setSize({ width: this.width(), height: HEIGHT });
  }
}

function render({ model, el }) {
  const curves = new Curves(model, el);
  return () => curves.remove();
}

export default { render };
