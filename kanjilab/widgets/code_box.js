// A labelled read-only box with Python source, and a button that copies it.

async function copy(area) {
  try {
    await navigator.clipboard.writeText(area.value);
    return true;
  } catch {
    // Without https, or without leave: the older way, which works on a selection.
    area.select();
    return document.execCommand("copy");
  }
}

function render({ model, el }) {
  // At random, for anywidget loads this file anew for every box: a counter would begin at 0 in each.
  const id = `kanjilab-code-${Math.random().toString(36).slice(2)}`;
  const label = document.createElement("label");
  label.htmlFor = id;
  const area = document.createElement("textarea");
  area.id = id;
  area.readOnly = true;
  area.spellcheck = false;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy state as code";
  const status = document.createElement("span");
  status.setAttribute("role", "status");
  const head = document.createElement("div");
  head.append(label, button, status);
  el.classList.add("kanjilab-code");
  el.append(head, area);

  const show = () => {
    label.textContent = model.get("label");
    area.value = model.get("code");
    area.rows = area.value.split("\n").length;
    status.textContent = "";
  };
  button.addEventListener("click", async () => {
    status.textContent = (await copy(area)) ? "copied" : "select the text and copy it";
  });
  el.addEventListener("keydown", (event) => event.stopPropagation());
  model.on("change", show);
  show();
  return () => model.off("change", show);
}

export default { render };
