"""The inputs that describe a study to train: a design by name, or axes of one's own with their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from kanjilab.experiments.designs import BUDGETS, DESIGNS, make_study
from kanjilab.experiments.study import Study
from kanjilab.widgets.common import WRAP, label_of, labelled
from kanjilab.widgets.stored_studies import AXES, free_study, numbers_from_text, value_from_text

FREE, GIVEN, NONE = "my own axes", "the given study", "none"
WIDE = widgets.Layout(width="24em")


class StudyInputs:
    """Drop-downs, texts and check boxes, and the study that they describe.

    Args:
        given: offered beside the designs, and chosen; or None.
        design: one of `DESIGNS`, chosen where no study is given.
        scale: one of `BUDGETS`.
        seeds: training seeds, in place of the scale's.
        changed: called after every change.
    Attributes:
        widget: all of them.
    """

    def __init__(
        self, given: Study | None, design: str, scale: str, seeds: Sequence[int], changed: Callable[[], None]
    ) -> None:
        self.given, self._told = given, changed
        designs = [GIVEN] * (given is not None) + [*DESIGNS, FREE]
        self.design: Any = widgets.Dropdown(options=designs, value=GIVEN if given else design, layout=WIDE)
        self.scale: Any = widgets.Dropdown(options=list(BUDGETS), value=scale, layout=WIDE)
        self.seeds: Any = widgets.Text(
            value=", ".join(map(str, seeds)), placeholder="those of the scale", continuous_update=False, layout=WIDE
        )
        budget = BUDGETS[scale].images_seen
        self.images: Any = widgets.BoundedIntText(value=budget, min=1, max=10**9, layout=WIDE)
        axes = [(label_of(axis), axis) for axis in AXES]
        self.axes: Any = [
            widgets.Dropdown(options=axes, value="rank", layout=WIDE),
            widgets.Dropdown(options=[(NONE, NONE), *axes], value=NONE, layout=WIDE),
        ]
        self.chips = [widgets.HBox(layout=WRAP) for _ in self.axes]
        self.further = [widgets.Text(placeholder="then Enter", continuous_update=False, layout=WIDE) for _ in self.axes]
        self._label()
        self._watch()
        self.widget = self._laid_out()
        self._show_axes()

    def _label(self) -> None:
        labels = {"Design": self.design, "Scale": self.scale, "Training seeds": self.seeds, "Images seen": self.images}
        labels |= {"First axis": self.axes[0], "Second axis": self.axes[1]}
        labels |= {"Another value of the first": self.further[0], "Another value of the second": self.further[1]}
        for label, box in labels.items():
            labelled(box, label)

    def _watch(self) -> None:
        for box in (self.design, self.seeds, self.images):
            box.observe(self._changed, "value")
        self.scale.observe(self._scaled, "value")
        for number, (axis, further) in enumerate(zip(self.axes, self.further, strict=True)):
            self._offer(number)
            axis.observe(lambda _, number=number: (self._offer(number), self._changed(None)), "value")
            further.observe(lambda change, number=number: self._add(number, change["new"]), "value")

    def _laid_out(self) -> widgets.VBox:
        rows = [
            widgets.VBox([widgets.HBox([axis, further], layout=WRAP), chips])
            for axis, further, chips in zip(self.axes, self.further, self.chips, strict=True)
        ]
        self.free = widgets.VBox([*rows, self.images])
        return widgets.VBox([widgets.HBox([self.design, self.scale, self.seeds], layout=WRAP), self.free])

    def _offer(self, number: int) -> None:
        """Check boxes for the values of an axis, the first two checked."""
        axis = self.axes[number].value
        self.further[number].disabled = axis == NONE
        self.chips[number].children = tuple(
            self._chip(value, place < 2) for place, value in enumerate(AXES.get(axis, ()))
        )

    def _chip(self, value: Any, chosen: bool) -> widgets.Checkbox:
        chip = widgets.Checkbox(value=chosen, indent=False, layout=widgets.Layout(width="auto", margin="0 1em 0 0"))
        labelled(chip, str(value))
        chip.observe(self._changed, "value")
        return chip

    def _add(self, number: int, text: str) -> None:
        if not text.strip():
            return
        try:
            self.chips[number].children += (self._chip(value_from_text(self.axes[number].value, text), True),)
        except ValueError:
            self._told()  # `read` says what is wrong with it
            return
        self.further[number].value = ""
        self._told()

    def _show_axes(self) -> None:
        self.free.layout.display = "flex" if self.design.value == FREE else "none"
        self.scale.disabled = self.seeds.disabled = self.design.value == GIVEN

    def _changed(self, _change: Any) -> None:
        self._show_axes()
        self._told()

    def _scaled(self, change: Any) -> None:
        self.images.value = BUDGETS[change["new"]].images_seen
        self._changed(change)

    def read(self) -> Study:
        """The study that the inputs describe.

        Raises:
            ValueError: they describe none.
        """
        seeds = numbers_from_text(self.seeds.value)
        if self.design.value == GIVEN and self.given is not None:
            return self.given
        if self.design.value != FREE:
            return make_study(self.design.value, self.scale.value, seeds)
        chosen: dict[str, list[Any]] = {}
        for axis, chips, further in zip(self.axes, self.chips, self.further, strict=True):
            if axis.value != NONE:
                texts = [chip.description for chip in chips.children if chip.value]  # pyright: ignore
                texts += [further.value] * bool(further.value.strip())
                chosen[axis.value] = [value_from_text(axis.value, text) for text in texts]
        return free_study(chosen, self.scale.value, seeds or BUDGETS[self.scale.value].seeds, self.images.value)
