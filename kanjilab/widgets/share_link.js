// A button that copies the address of this page with a query, which opens the same state.

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button";
  button.textContent = "Copy link";
  const status = document.createElement("span");
  status.setAttribute("role", "status");
  el.classList.add("kanjilab-share");
  el.append(button, status);
  button.addEventListener("click", async () => {
    const address = `${location.origin}${location.pathname}?${model.get("query")}`;
    history.replaceState(null, "", address); // so that it can be copied from the address line too
    try {
      await navigator.clipboard.writeText(address);
      status.textContent = " Copied.";
    } catch {
      status.textContent = " It stands in the address line: copy it there."; // without https or permission
    }
  });
  const forget = () => (status.textContent = "");
  model.on("change:query", forget);
  return () => model.off("change:query", forget);
}

export default { render };
