"""A line of text that a screen reader announces when it changes."""

from __future__ import annotations

import anywidget
import traitlets


class Said(anywidget.AnyWidget):
    """Set `value`.

    Its element stays while the text changes: a live region that comes into the page with its text is not announced.

    Args:
        value: at first; untrusted, it is shown as text.
        soft: in the colour of notes.
    """

    _esm = """
    function render({ model, el }) {
      el.setAttribute("role", "status");
      el.classList.add("kanjilab-said");
      el.classList.toggle("soft", model.get("soft"));
      const show = () => { el.textContent = model.get("value"); };
      model.on("change:value", show);
      show();
      return () => model.off("change:value", show);
    }
    export default { render };
    """
    value = traitlets.Unicode().tag(sync=True)
    soft = traitlets.Bool(False).tag(sync=True)

    def __init__(self, value: str = "", soft: bool = False):
        super().__init__(value=value, soft=soft)
