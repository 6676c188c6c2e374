// Strips over training as scrubbers: one slider for all glyphs, which are cut from one picture.

const PLAY_MS = 600;

function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

/** @param {{title: string, note: string, rows: string[], columns: string[], image: string}} strip */
function scrubber(strip, number) {
  const last = strip.columns.length - 1;
  const cells = strip.rows.map((text) => {
    const cell = element("i", { className: "cell" });
    cell.setAttribute("role", "img");
    cell.style.backgroundImage = `url("${strip.image}")`;
    cell.style.backgroundSize = `${100 * strip.columns.length}% ${100 * strip.rows.length}%`;
    return { cell, text };
  });
  const slider = element("input", { type: "range", min: 0, max: last, step: 1, value: last, id: `strip-${number}` });
  const said = element("output", { htmlFor: slider.id });
  const play = element("button", { type: "button", className: "plain", textContent: "Play" });
  const label = element("label", { htmlFor: slider.id, textContent: "Checkpoint" });

  const show = () => {
    const at = Number(slider.value);
    said.textContent = strip.columns[at];
    slider.setAttribute("aria-valuetext", strip.columns[at]);
    cells.forEach(({ cell, text }, row) => {
      const down = strip.rows.length > 1 ? (100 * row) / (strip.rows.length - 1) : 0;
      cell.style.backgroundPosition = `${last ? (100 * at) / last : 0}% ${down}%`;
      cell.setAttribute("aria-label", `Glyph for “${text}”, ${strip.columns[at]}`);
    });
  };
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === last) slider.value = 0;
    play.textContent = "Stop";
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === last) stop();
    }, PLAY_MS);
  });
  slider.addEventListener("input", () => {
    stop();
    show();
  });
  show();
  const list = cells.map(({ cell, text }) => element("li", {}, cell, element("span", { textContent: text })));
  const heading = element("h2", { textContent: strip.title, id: `strip-${number}-title` });
  const section = element(
    "section",
    { className: "strip" },
    heading,
    element("p", { className: "quiet", textContent: strip.note }),
    element("div", { className: "bar" }, label, slider, said, play),
    element("ul", { className: "cells" }, ...list),
  );
  section.setAttribute("aria-labelledby", heading.id);
  return section;
}

const strips = await (await fetch("strips.json")).json();
document.getElementById("strips").append(...strips.map(scrubber));
