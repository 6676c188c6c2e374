// A labelled read-only box with Python source, and a button that copies it.

async function copy(area) {
  try {
    await navigator.clipboard.writeText(area.value);
    return true;
  } catch {
    // Without https or permission: the older way, which copies a selection.
    area.select();
    return document.execCommand("copy");
  }
}

function render({ model, el }) {
  // Random, because anywidget loads this file again for every box: a counter would restart in each.
  const id = `kanjilab-code-${Math.random().toString(36).slice(2)}`;
  const label = document.createElement("label");
  label.htmlFor = id;
  const area = document.createElement("textarea");
  area.id = id;
  area.readOnly = true;
  area.spellcheck = false;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
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
    status.textContent = (await copy(area)) ? "Copied." : "Select the text and copy it.";
    model.set("copies", model.get("copies") + 1);
    model.save_changes();
  });
  el.addEventListener("keydown", (event) => event.stopPropagation());
  model.on("change:code change:label", show);
  show();
  return () => model.off("change:code change:label", show);
}

export default { render };
