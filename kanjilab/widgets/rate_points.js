// Rates with their intervals, one variant per row; each row is a button that selects its variant.

function row(point, top, select) {
  const button = document.createElement("button");
  button.type = "button";
  const name = document.createElement("span");
  name.className = "name";
  name.textContent = point.label;
  const chart = document.createElement("span");
  chart.className = "chart";
  const place = (value) => `${(100 * value) / top}%`;
  for (const value of point.blocks) {
    const block = document.createElement("i");
    block.className = "block";
    block.style.left = place(value);
    chart.append(block);
  }
  const interval = document.createElement("i");
  interval.className = "interval";
  interval.style.left = place(point.low);
  interval.style.width = place(point.high - point.low);
  const dot = document.createElement("i");
  dot.className = "dot";
  dot.style.left = place(point.value);
  chart.append(interval, dot);
  const numbers = document.createElement("span");
  numbers.className = "numbers";
  const percent = (value) => (100 * value).toFixed(1);
  numbers.textContent = `${percent(point.value)}% [${percent(point.low)}, ${percent(point.high)}]`;
  button.append(name, chart, numbers);
  button.addEventListener("click", () => select(point.label));
  return button;
}

function render({ model, el }) {
  el.classList.add("kanjilab-points");
  const title = document.createElement("div");
  const rows = document.createElement("div");
  rows.setAttribute("role", "group");
  el.append(title, rows);

  const mark = () => {
    model.get("points").forEach((point, index) => {
      rows.children[index]?.setAttribute("aria-pressed", String(point.label === model.get("selected")));
    });
  };
  const select = (label) => {
    model.set("selected", label);
    model.save_changes();
  };
  const show = () => {
    const points = model.get("points");
    title.textContent = points.length ? model.get("title") : "";
    rows.setAttribute("aria-label", model.get("title"));
    const top = Math.max(0.05, ...points.map((point) => Math.max(point.high, ...point.blocks)));
    rows.replaceChildren(...points.map((point) => row(point, top, select)));
    mark();
  };
  el.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...rows.children];
    all[Math.min(all.length - 1, Math.max(0, all.indexOf(document.activeElement) + step))]?.focus();
  });
  model.on("change:points", show);
  model.on("change:title", show);
  model.on("change:selected", mark);
  show();
  return () => {
    model.off("change:points", show);
    model.off("change:title", show);
    model.off("change:selected", mark);
  };
}

export default { render };
