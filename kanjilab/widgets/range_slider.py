"""A native range input with its label and its value, which no slider of ipywidgets offers to screen readers."""

from __future__ import annotations

import anywidget
import traitlets


class RangeSlider(anywidget.AnyWidget):
    """Observe `value`, which follows the thumb.

    Args:
        label: accessible name, shown before it.
        value: at first.
        least, most, step: of the values.
        unit: shown after the value, such as "%".
    """

    _esm = """
    export default { render({ model, el }) {
      const label = document.createElement("label");
      const name = document.createElement("span");
      const input = document.createElement("input");
      const value = document.createElement("span");
      value.setAttribute("aria-hidden", "true"); // the input says it
      input.type = "range";
      name.textContent = model.get("label");
      label.append(name, input, value);
      el.classList.add("kanjilab-range");
      el.append(label);
      let waiting;
      const tell = () => {
        value.textContent = `${input.value}${model.get("unit")}`;
        input.setAttribute("aria-valuetext", value.textContent);
      };
      const show = () => {
        for (const [own, trait] of [["min", "least"], ["max", "most"], ["step", "step"]]) input[own] = model.get(trait);
        input.value = model.get("value");
        tell();
      };
      input.addEventListener("input", () => {
        tell();
        clearTimeout(waiting);
        waiting = setTimeout(() => { model.set("value", Number(input.value)); model.save_changes(); }, 120);
      });
      el.addEventListener("keydown", (event) => event.stopPropagation());
      model.on("change", show);
      show();
      return () => { clearTimeout(waiting); model.off("change", show); };
    } };
    """
    _css = """
    .kanjilab-range label { display: flex; gap: 8px; align-items: center; min-height: 30px; white-space: nowrap; }
    .kanjilab-range input { width: 9em; min-width: 4em; margin: 0; flex: 1 1 auto;
      accent-color: var(--jp-brand-color1, #1976d2); }
    .kanjilab-range span + input + span { min-width: 2.6em; font-variant-numeric: tabular-nums; }
    """
    label = traitlets.Unicode().tag(sync=True)
    value = traitlets.Float().tag(sync=True)
    least = traitlets.Float().tag(sync=True)
    most = traitlets.Float().tag(sync=True)
    step = traitlets.Float().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)

    def __init__(self, label: str, value: float, least: float, most: float, step: float, unit: str = ""):
        super().__init__(label=label, value=value, least=least, most=most, step=step, unit=unit)

    @property
    def checked(self) -> float:
        """The value.

        Raises:
            ValueError: the page sent one out of range.
        """
        if not self.least <= self.value <= self.most:  # NaN is neither
            raise ValueError(f"{self.label}: expected {self.least:g} to {self.most:g}, got {self.value:g}")
        return self.value
