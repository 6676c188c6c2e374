"""The strip comparator: stored samples of runs, scrubbed, pinned and compared in the browser.

The browser holds every frame, so a change shows at once even while the kernel is busy. Nothing is trained: a cell
without stored samples is blank. A prompt of one's own is drawn from the stored checkpoints, in the background.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image

from kanjilab.core.config import Arm
from kanjilab.core.images import grayscale
from kanjilab.core.run_differences import arm_settings, setting_differences
from kanjilab.core.run_folder import RunFolder
from kanjilab.core.storage import write_bytes_atomic
from kanjilab.data.components import normal_form
from kanjilab.evaluation.judges.framing import frame_glyphs
from kanjilab.evaluation.judges.part_judge import load_judge
from kanjilab.viz.animation import save_animation
from kanjilab.viz.strip import draw_strip, save_strip, seen_label
from kanjilab.widgets.common import (
    FOLDER,
    CodeBox,
    Panel,
    escape,
    label_of,
    panel_box,
    png_bytes,
    python_call,
)
from kanjilab.widgets.generation import Models, named_parts
from kanjilab.widgets.own_prompts import can_draw, draw_prompt
from kanjilab.widgets.tracks import (
    Cell,
    Frame,
    Runs,
    Track,
    View,
    all_prompts,
    all_seeds,
    catalogue,
    changed_options,
    checked_view,
    first_view,
    frame_images,
    frame_names,
    name_runs,
    read_tracks,
    some_chosen,
    state_of,
    timeline,
    view_of,
    with_chosen_cell,
)
from kanjilab.widgets.view_strips import view_strip
from kanjilab.widgets.worker import Worker

SENT_AT_ONCE_BYTES = 20_000_000  # above it the browser asks for frames when it shows them
TRIED_FRAMES = 32  # their size estimates that of all
READ_AT_ONCE = 24  # about half a second of one core, so that readings appear gradually
MOST_PARTS = 3  # of a reading below a glyph
STYLE, SCRIPT = FOLDER / "comparator.css", FOLDER / "comparator.js"


class ComparatorView(anywidget.AnyWidget):
    """The browser's side; see comparator.js.

    Attributes:
        catalogue: of `tracks.catalogue`.
        state: of `tracks.state_of`; both sides write it.
        frames: all frames as PNG, in the catalogue's order; [] where `lazy`.
        frame_shape: (H, W) of a frame.
        readings: "judge/frame" -> text, for a page without a kernel.
        differences: of the runs: [setting, its own name, [value in each track]].
        lazy: the browser asks for the frames it shows.
        alone: no kernel answers.
    """

    _esm = SCRIPT
    _css = STYLE
    catalogue = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    frame_shape = traitlets.List(traitlets.Int()).tag(sync=True)
    readings = traitlets.Dict().tag(sync=True)
    differences = traitlets.List().tag(sync=True)
    lazy = traitlets.Bool(False).tag(sync=True)
    alone = traitlets.Bool(False).tag(sync=True)


class StripComparator(Panel):
    """Compares the stored samples of runs, checkpoint by checkpoint.

    Args:
        runs: run folders by name; or a list of run folders; or one folder, of a run or with runs below it.
        tracks, prompts, seeds: the first choice; by default of each run the samples of the most checkpoints (of several
            the newest), at most twelve prompts, and the first seed.
        columns: "checkpoints" (a strip), or "runs" (runs and seeds side by side, at one checkpoint).
        images_seen: the first checkpoint of the slider; by default the last.
        selected: (track, prompt, seed) of the enlarged glyph.
        pinned: (track, prompt, seed, images seen) of the glyph that it is compared with.
        compare: "side by side", "blink" or "difference".
        judge: whose readings are below the glyphs: "A", "B" or "" for none.
        cell_px: edge of a cell, 32 to 256.
    Attributes:
        tracks: all samples that are stored in the runs.
        widget: the panel's widget.
    Raises:
        ValueError: a run without stored samples, or an unknown choice; the message names the known ones.
    """

    def __init__(
        self,
        runs: Runs,
        *,
        tracks: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        columns: str = "checkpoints",
        images_seen: int | None = None,
        selected: Cell | None = None,
        pinned: Frame | None = None,
        compare: str = "side by side",
        judge: str = "",
        cell_px: int = 56,
    ):
        self._runs = name_runs(runs)
        self.tracks = read_tracks(self._runs)
        given = {"tracks": tracks, "prompts": prompts, "seeds": seeds, "selected": selected, "pinned": pinned}
        options: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value is not None}
        options |= {} if images_seen is None else {"images_seen": images_seen}
        options |= {"columns": columns, "compare": compare, "judge": judge, "cell_px": cell_px}
        view = checked_view(replace(first_view(self.tracks, tuple(prompts or ())), **options), self.tracks)
        view = view if selected else with_chosen_cell(view, self.tracks)
        self._images = frame_images(self.tracks)
        self._readings: dict[tuple[str, int], str] = {}
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._models, self._worker = Models(), None
        self._view = ComparatorView(**_browser_values(self.tracks, view, self._images))
        self._view.differences = differences_of(self.tracks, self._runs)
        self._code = CodeBox(self.code)
        self.widget = panel_box([self._view, self._code])
        self._view.observe(lambda _: setattr(self._code, "code", self.code), "state")
        self._view.on_msg(self._answer)

    @property
    def view(self) -> View:
        """What is shown at present."""
        return view_of(self._view.state, self.tracks)

    @view.setter
    def view(self, view: View) -> None:
        self._view.state = state_of(checked_view(view, self.tracks), self.tracks)

    @property
    def code(self) -> str:
        """The call that shows the same."""
        return python_call("StripComparator", self._runs, **changed_options(self.view, self.tracks))

    def picture(self, cell_px: int = 96) -> Image.Image:
        """The chosen runs, prompts and seeds as a static strip."""
        return draw_strip(view_strip(self.tracks, self.view), cell_px)

    def save(self, path: Path | str, title: str = "") -> Path:
        """Write what is shown to a file.

        Args:
            path: ends in .png (the strip), .gif (the selected glyph over the checkpoints), or .html (this comparator as
                one page that needs no kernel and no network). Pictures get a JSON of what they show beside them.
            title: above it.
        Returns:
            The path.
        Raises:
            ValueError: another ending, nothing chosen, or a picture over 500 kB.
        """
        path = Path(path)
        if path.suffix == ".png":
            return save_strip(view_strip(self.tracks, self.view, title), path)
        if path.suffix == ".gif":
            return _save_glyph(self.tracks, self.view, path, title)
        if path.suffix == ".html":
            return write_bytes_atomic(path, page_html(self.tracks, self.view, self._readings, title).encode())
        raise ValueError(f"expected a path ending in .png, .gif or .html, got {str(path)!r}")

    def _answer(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        """Answer a message of the browser."""
        numbers = [number for number in message.get("wanted", ()) if 0 <= number < len(self._images)]
        if message.get("kind") == "frames":
            pictures = [png_bytes(self._images[number]) for number in numbers]
            self._view.send({"kind": "frames", "numbers": numbers}, buffers=pictures)
        elif message.get("kind") == "read":
            for start in range(0, len(numbers), READ_AT_ONCE):
                self._reader.submit(self._read, message["judge"], numbers[start : start + READ_AT_ONCE])
        elif message.get("kind") == "file":
            self._send_file(message["ending"])
        elif message.get("kind") == "prompt" and (self._worker is None or not self._worker.alive):
            self._worker = Worker(Path("own prompt"), lambda worker: self._add_prompt(str(message["text"]), worker))
            self._worker.start()

    def _add_prompt(self, text: str, worker: Worker) -> None:
        """Draw a prompt for the chosen runs, and say how far that is, in a thread."""
        view, prompt = self.view, " ".join(text.split())
        chosen = [track for track in self.tracks if track.label in view.tracks and prompt not in track.prompts]
        try:
            for track in chosen:
                begun = f"Drawing “{prompt}” from {track.label}"
                self._say(f"{begun}: loading …")
                run = RunFolder.open(self._runs[track.run])

                def report(done: int, checkpoints: int, begun: str = begun) -> None:
                    worker.check()
                    self._say(f"{begun}: checkpoint {done + 1} of {checkpoints}")

                draw_prompt(track, run, prompt, self._models, report)
            self._show_prompt(prompt)
            self._say(f"“{prompt}” is drawn." if chosen else f"“{prompt}” is there already.")
        except Exception as error:  # the panel says it, of whatever kind
            self._say(f"“{prompt}” cannot be drawn: {error}")
            raise

    def _show_prompt(self, prompt: str) -> None:
        """Read the stored samples again, and choose a prompt among them."""
        view = self.view
        self.tracks = read_tracks(self._runs)
        self._images, self._readings = frame_images(self.tracks), {}
        first = next(track for track in self.tracks if track.label in view.tracks and prompt in track.prompts)
        prompts = tuple(dict.fromkeys((*view.prompts, prompt)))
        seed = next((seed for seed in view.seeds if seed in first.seeds), first.seeds[0])
        view = replace(view, prompts=prompts, selected=(first.label, prompt, seed))
        with self._view.hold_sync():  # one message, so that no frame is taken for another
            for name, value in _browser_values(self.tracks, view, self._images).items():
                setattr(self._view, name, value)

    def _say(self, text: str) -> None:
        self._view.send({"kind": "said", "text": text})

    def _read(self, judge: str, numbers: Sequence[int]) -> None:
        """Read some frames, in a thread, and send what is read."""
        by_size: dict[tuple[int, ...], list[int]] = {}  # a judge reads glyphs of one size at a time
        for number in numbers:
            if (judge, number) not in self._readings:
                by_size.setdefault(self._images[number].shape[:2], []).append(number)
        try:
            for new in by_size.values():
                self._read_new(judge, new)
        except Exception as error:  # the panel says it, of whatever kind
            self._say(f"Judge {judge} cannot read these glyphs: {error}")
            raise
        entries = [[number, self._readings[judge, number]] for number in numbers]
        self._view.send({"kind": "readings", "judge": judge, "entries": entries})

    def _read_new(self, judge: str, numbers: Sequence[int]) -> None:
        frames, by_label = frame_names(self.tracks), {track.label: track for track in self.tracks}
        asked = [(by_label[frames[number][0]], frames[number][1]) for number in numbers]
        texts = reading_texts(judge, [self._images[number] for number in numbers], [expected_of(*one) for one in asked])
        self._readings |= {(judge, number): text for number, text in zip(numbers, texts, strict=True)}

    def _send_file(self, ending: str) -> None:
        with tempfile.TemporaryDirectory(prefix="kanjilab-") as folder:
            try:
                path = self.save(Path(folder) / f"strip.{ending}")
            except ValueError as error:
                self._view.send({"kind": "refused", "reason": str(error)})
                return
            self._view.send({"kind": "file", "name": path.name}, buffers=[path.read_bytes()])


def _browser_values(tracks: Sequence[Track], view: View, images: Sequence[np.ndarray]) -> dict[str, Any]:
    tried = [png_bytes(image) for image in images[:: max(1, len(images) // TRIED_FRAMES)]]
    lazy = np.mean([len(png) for png in tried]) * len(images) > SENT_AT_ONCE_BYTES
    entries = catalogue(tracks)
    entries["can_draw"] = [can_draw(track) for track in tracks]
    return {
        "catalogue": entries,
        "state": state_of(view, tracks),
        "frames": [] if lazy else [png_bytes(image) for image in images],
        "frame_shape": list(images[0].shape[:2]),
        "lazy": bool(lazy),
    }


def differences_of(tracks: Sequence[Track], runs: Mapping[str, Path]) -> list[list[Any]]:
    """What differs between the runs of some tracks: [setting for readers, its own name, [value in each track]]."""
    settings = {}
    for track in tracks:
        arm, run = track.facts.get("arm", 0), RunFolder.open(runs[track.run])
        of_study = dataclasses.asdict(Arm.from_json(dict(arm))) if isinstance(arm, Mapping) else {}
        settings[track.label] = arm_settings(run, arm if isinstance(arm, int) else 0) | of_study
    table = setting_differences(settings)
    texts = [["–" if value is None else str(value) for value in values] for values in table.to_numpy()]
    return [[label_of(str(name)), name, values] for name, values in zip(table.index, texts, strict=True)]


def expected_of(track: Track, prompt: str) -> tuple[str, ...]:
    """The parts that a right glyph shows: what a study expected of the prompt, or else the parts that it names."""
    for entry in track.facts.get("prompts", ()):
        if isinstance(entry, Mapping) and entry.get("prompt") == prompt and "expected" in entry:
            return tuple(map(normal_form, entry["expected"]))
    return named_parts(prompt, load_judge("B").parts)


def reading_texts(
    judge: str, images: Sequence[np.ndarray], expected: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """What a judge reads in some glyphs, in a few characters each: "氵 木 ≈ 沐 ◎ ✓".

    Args:
        judge: "A" or "B".
        images: each (H, W) or (H, W, 3) uint8, 0 = ink; all of one shape.
        expected: for each the parts of which a right glyph shows one; None for no such parts.
    Returns:
        For each glyph its parts ("–" for none), "≈" and a character if it is near enough to count as that, "◎" or "○"
        for whether an expected part is among them, and "✓" or "✗" for whether it is well-formed; "blank" for a glyph
        without ink.
    """
    glyphs = np.stack([grayscale(image) if image.ndim == 3 else image for image in images])
    _, _, has_ink = frame_glyphs(glyphs)
    readings = load_judge(judge).read(glyphs).to_dict("records")
    wanted = expected or [()] * len(images)
    texts = []
    for reading, inked, parts in zip(readings, has_ink, wanted, strict=True):
        read = " ".join(reading["parts"][:MOST_PARTS]) or "–"
        known = f" ≈ {reading['nearest']}" if reading["exists"] else ""
        right = (" ◎" if set(parts) & set(reading["parts"]) else " ○") if parts else ""
        texts.append(read + known + right + (" ✓" if reading["legal"] else " ✗") if inked else "blank")
    return texts


def _save_glyph(tracks: Sequence[Track], view: View, path: Path, title: str) -> Path:
    """Write the selected cell over its checkpoints, as an animation."""
    label, prompt, seed = view.selected
    track = next(track for track in tracks if track.label == label)
    frames = track.cell(prompt, seed)
    if frames is None:
        raise ValueError(f"{label} did not draw {prompt!r} with seed {seed}")
    frames = grayscale(frames) if frames.ndim == 4 else frames
    facts = {"run": track.facts.get("run", ""), "track": label, "prompt": prompt, "seed": seed}
    facts |= {"images_seen": list(track.images_seen), "sampling": track.facts.get("sampling", {})}
    labels = [f"{seen_label(seen)} images" if seen else "before training" for seen in track.images_seen]
    return save_animation(frames, labels, path, title=title or prompt, facts=facts)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body class="kanjilab-page">
<h1>{title}</h1>
<div id="comparator"></div>
<script type="module">
{script}
const values = {values};
values.frames = values.frames.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
const model = {{
  get: (name) => values[name],
  set: (name, value) => {{ values[name] = value; }},
  save_changes() {{}}, send() {{}}, on() {{}}, off() {{}},
}};
render({{ model, el: document.getElementById("comparator") }});
</script>
</body>
</html>
"""


def page_html(tracks: Sequence[Track], view: View, readings: dict[tuple[str, int], str], title: str = "") -> str:
    """The comparator with the chosen frames, as one page that needs no kernel and no other machine.

    Args:
        tracks: all tracks; the page gets the chosen ones, with the chosen prompts and seeds.
        view: shown at first.
        readings: (judge, number of the frame among all tracks) -> text; the page gets those of its frames.
        title: of the page; "" for one that names the runs.
    Returns:
        HTML.
    Raises:
        ValueError: nothing is chosen.
    """
    shown = some_chosen(tracks, view)
    values = {
        "catalogue": catalogue(shown),
        "state": state_of(_within(view, shown), shown),
        "frames": [base64.b64encode(png_bytes(image)).decode() for image in frame_images(shown)],
        "frame_shape": list(shown[0].images.shape[3:5]),
        "readings": _kept_readings(tracks, shown, readings),
        "differences": [],
        "lazy": False,
        "alone": True,
    }
    return PAGE.format(
        title=escape(title or f"Checkpoint strips of {', '.join(track.label for track in shown)}"),
        style=STYLE.read_text(encoding="utf-8"),
        script=SCRIPT.read_text(encoding="utf-8"),
        values=json.dumps(values).replace("<", "\\u003c"),  # so that no text can end the script
    )


def _within(view: View, shown: Sequence[Track]) -> View:
    """The view, restricted to the chosen tracks."""
    first, steps, names = first_view(shown), timeline(shown), set(frame_names(shown))
    cells = {name[:3] for name in names}
    return replace(
        view,
        tracks=tuple(track.label for track in shown),
        prompts=tuple(prompt for prompt in view.prompts if prompt in all_prompts(shown)),
        seeds=tuple(seed for seed in view.seeds if seed in all_seeds(shown)),
        images_seen=max((seen for seen in steps if seen <= view.images_seen), default=steps[0]),
        selected=view.selected if view.selected in cells else first.selected,
        pinned=view.pinned if view.pinned and view.pinned[:3] in cells and view.pinned[3] in steps else None,
    )


def _kept_readings(
    tracks: Sequence[Track], shown: Sequence[Track], readings: dict[tuple[str, int], str]
) -> dict[str, str]:
    """The readings of the shown frames, by their numbers among the shown tracks alone."""
    before, after = frame_names(tracks), frame_names(shown)
    number = {name: place for place, name in enumerate(after)}
    return {
        f"{judge}/{number[before[place]]}": text for (judge, place), text in readings.items() if before[place] in number
    }
