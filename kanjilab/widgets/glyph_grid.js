// Glyphs as a group of native radio buttons, so that the browser handles names, arrow keys and focus.

const ROWS = { ArrowUp: -1, ArrowDown: 1 };

function render({ model, el }) {
  // Random, because every widget loads this file again: a counter would give all of them the same name.
  const group = `kanjilab-glyphs-${Math.random()}`;
  const box = document.createElement("fieldset");
  const legend = document.createElement("legend");
  const grid = document.createElement("div");
  box.append(legend, grid);
  el.classList.add("kanjilab-glyphs");
  grid.lang = "ja"; // so that kanji in captions are drawn in their Japanese form
  el.append(box);
  let urls = [];

  const release = (old) => old.forEach((url) => URL.revokeObjectURL(url));

  const cell = (bytes, index) => {
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    urls.push(url);
    const label = document.createElement("label");
    label.title = model.get("names")[index];
    const input = document.createElement("input");
    input.type = "radio";
    input.name = group;
    input.value = index;
    input.setAttribute("aria-label", model.get("names")[index]);
    const image = document.createElement("img");
    image.src = url;
    image.alt = model.get("names")[index];
    image.setAttribute("aria-hidden", "true"); // the button beside it has the name
    const caption = document.createElement("span");
    caption.textContent = model.get("captions")[index];
    caption.setAttribute("aria-hidden", "true"); // the name contains it
    label.append(input, image, caption);
    return label;
  };

  const check = () => {
    const chosen = model.get("selected");
    grid.querySelectorAll("input").forEach((input, index) => (input.checked = index === chosen));
  };

  const fill = () => {
    const old = urls;
    const focused = grid.contains(document.activeElement);
    urls = [];
    const pictures = model.get("pictures");
    grid.replaceChildren(...pictures.map(cell));
    if (!pictures.length) {
      const note = document.createElement("p");
      note.textContent = model.get("empty");
      grid.append(note);
    }
    box.hidden = !pictures.length && !model.get("empty");
    release(old);
    check();
    if (focused) (grid.querySelector("input:checked") ?? grid.querySelector("input"))?.focus();
  };

  const measure = () => {
    legend.textContent = model.get("label");
    grid.style.setProperty("--cell", `${model.get("cell_px")}px`);
    grid.style.setProperty("--columns", model.get("columns"));
  };

  grid.addEventListener("change", (event) => {
    model.set("selected", Number(event.target.value));
    model.save_changes();
  });
  // Up and down move by rows; left and right are those of the radio group. No key reaches JupyterLab.
  el.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (!(event.key in ROWS) || event.target.type !== "radio") return;
    event.preventDefault();
    const across = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const inputs = grid.querySelectorAll("input");
    const next = inputs[Number(event.target.value) + ROWS[event.key] * across];
    if (!next) return;
    next.focus();
    next.click();
  });

  let filled = [];
  const show = () => {
    measure();
    const content = ["pictures", "captions", "names", "empty"].map((name) => model.get(name));
    if (content.some((value, index) => value !== filled[index])) {
      filled = content;
      fill();
    }
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
