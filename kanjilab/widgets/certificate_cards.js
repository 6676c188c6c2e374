// Coined glyphs as cards with a compact certificate each: a group of native radio buttons. Texts are never markup.

const ROWS = { ArrowUp: -1, ArrowDown: 1 };

function line(name, text) {
  const part = document.createElement("span");
  part.className = name;
  part.textContent = text;
  return part;
}

function marks(list) {
  const row = document.createElement("span");
  row.className = "marks";
  for (const [name, passed] of list) {
    const mark = line(passed ? "yes" : "no", passed ? "✓" : "✗");
    mark.title = `${name}: ${passed ? "met" : "not met"}`;
    row.append(mark);
  }
  return row;
}

function render({ model, el }) {
  const group = `kanjilab-coined-${Math.random()}`; // every widget loads this file again
  const box = document.createElement("fieldset");
  const legend = document.createElement("legend");
  const grid = document.createElement("div");
  box.append(legend, grid);
  el.classList.add("kanjilab-coined");
  grid.lang = "ja"; // so that kanji are drawn in their Japanese form
  el.append(box);
  let urls = [];

  const release = (old) => old.forEach((url) => URL.revokeObjectURL(url));

  const card = (facts, index) => {
    const url = URL.createObjectURL(new Blob([model.get("pictures")[index]], { type: "image/png" }));
    urls.push(url);
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "radio";
    input.name = group;
    input.value = index;
    input.setAttribute("aria-label", facts.name);
    const image = document.createElement("img");
    image.src = url;
    image.alt = "";
    const below = document.createElement("span");
    below.className = "below";
    below.setAttribute("aria-hidden", "true"); // the name of the button says it all
    below.append(line("parts", facts.parts), marks(facts.marks), line("sum", facts.sum), line("near", facts.near));
    label.append(input, image, below);
    return label;
  };

  const check = () => {
    const chosen = model.get("selected");
    grid.querySelectorAll("input").forEach((input, index) => (input.checked = index === chosen));
  };

  grid.addEventListener("change", (event) => {
    model.set("selected", Number(event.target.value));
    model.save_changes();
  });
  el.addEventListener("keydown", (event) => {
    event.stopPropagation(); // no key reaches JupyterLab
    if (!(event.key in ROWS) || event.target.type !== "radio") return;
    event.preventDefault();
    const across = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const next = grid.querySelectorAll("input")[Number(event.target.value) + ROWS[event.key] * across];
    next?.focus();
    next?.click();
  });

  let filled = null;
  const show = () => {
    const cards = model.get("cards");
    legend.textContent = model.get("label");
    if (cards !== filled) {
      filled = cards;
      const old = urls;
      urls = [];
      grid.replaceChildren(...cards.map(card));
      release(old);
    }
    box.hidden = !cards.length;
    check();
  };
  model.on("change", show); // called once for all changes of a message
  show();
  return () => {
    model.off("change", show);
    release(urls);
  };
}

export default { render };
