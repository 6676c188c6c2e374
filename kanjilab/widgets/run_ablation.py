"""The ablation panel over a folder of one's own runs: the settings that differ are its sliders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kanjilab.core.images import grayscale
from kanjilab.core.run_differences import arm_settings
from kanjilab.core.run_folder import RunFolder, find_runs
from kanjilab.experiments.image_sheets import GLYPH_PX, sheet_bytes
from kanjilab.experiments.setting_axes import find_axes, star_centre
from kanjilab.viz.charts import arm_values
from kanjilab.viz.strip import Strip, draw_strip
from kanjilab.widgets.ablation_catalogue import SETTINGS, Catalogue, axis_json, differences_json
from kanjilab.widgets.ablation_view import AblationView
from kanjilab.widgets.common import Panel, python_call
from kanjilab.widgets.tracks import Track, name_runs, read_tracks

PROMPTS_MOST = 24
SCORE, SPLIT = "loss", "all"
MEASURE = "training loss, mean of the tenth of the training before; the band is from the least to the greatest seed"
MOMENTS = 4  # of a training that has drawn nothing


@dataclass(frozen=True)
class Training:
    """One arm of a run.

    Attributes:
        name: of the run, and of the arm where it has several.
        settings: of the run and the arm, but the seed.
        seed: of the training.
        logged: (N, 2) float, images seen and loss of each record of the log.
        track: its newest samples, or None.
    """

    name: str
    settings: Mapping[str, Any]
    seed: int
    logged: np.ndarray
    track: Track | None

    @property
    def seen(self) -> list[int]:
        """Images seen at the moments that are shown: those that were drawn, or quarters of the log."""
        if self.track:
            return list(self.track.images_seen)
        last = int(self.logged[-1, 0]) if len(self.logged) else 0
        return [last * (moment + 1) // MOMENTS for moment in range(MOMENTS)]

    def loss(self, seen: int) -> float | None:
        """Mean loss over the tenth of the training before some number of images seen; None where none was logged."""
        length = self.logged[-1, 0] / 10 if len(self.logged) else 0
        some = self.logged[(self.logged[:, 0] <= seen) & (self.logged[:, 0] > seen - length), 1]
        return round(float(some.mean()), 5) if len(some) else None


def read_trainings(folder: Path | str) -> list[Training]:
    """Every arm of every run below a folder.

    Raises:
        ValueError: fewer than two.
    """
    runs = find_runs(folder)
    names = {path: name for name, path in name_runs([run.path for run in runs]).items()} if runs else {}
    found = [_training(run, arm, names[run.path]) for run in runs for arm in range(len(run.settings.get("arms", ())))]
    if len(found) < 2:
        raise ValueError(f"{folder}: expected two or more trainings to compare, found {len(found)}")
    return found


def _training(run: RunFolder, arm: int, name: str) -> Training:
    settings = arm_settings(run, arm)
    seed = settings.pop("seed")
    plain = {key: json.dumps(value) if isinstance(value, list) else value for key, value in settings.items()}
    log = run.read_log()
    logged = np.zeros((0, 2))
    if len(log):
        logged = np.stack([arm_values(log, name)[:, arm] for name in ("images_seen", "loss")], axis=1)
        logged = logged[np.isfinite(logged).all(axis=1)]
    several = len(run.settings["arms"]) > 1
    return Training(f"{name}, arm {arm}" if several else name, plain, seed, logged, _track(run, arm))


def _track(run: RunFolder, arm: int) -> Track | None:
    """The newest samples of an arm."""
    if not run.samples():
        return None
    own = (arm, run.settings["arms"][arm])
    return next((track for track in read_tracks({run.name: run.path}) if track.facts.get("arm", 0) in own), None)


def runs_catalogue(folder: Path | str, trainings: Sequence[Training]) -> tuple[Catalogue, list[bytes]]:
    """Trainings for the browser, in the shape that `ablation.js` describes.

    Args:
        folder: of the runs, for the title.
        trainings: two or more.
    Returns:
        The catalogue, and a sheet of each training that has drawn something.
    """
    groups: dict[str, dict[int, Training]] = {}
    for training in trainings:
        groups.setdefault(json.dumps(training.settings, sort_keys=True), {})[training.seed] = training
    settings = list(groups.values())
    firsts = [next(iter(group.values())) for group in settings]
    labels = [first.name for first in firsts]
    axes, places = find_axes([first.settings for first in firsts], labels, SETTINGS)
    seeds = sorted({seed for group in settings for seed in group})
    prompts, noises = _asked(trainings)
    images: list[bytes] = []
    arms = [[_arm(group.get(seed), prompts, noises, images) for seed in seeds] for group in settings]
    counted = f"{len(trainings)} trainings with {len(settings)} different settings"
    differing = ", ".join(str(axis_json(axis)["label"]).lower() for axis in axes) or "the seed alone"
    shown = [{"split": SPLIT, "text": text, "expected": "", "row": row} for row, text in enumerate(prompts)]
    stopped: list[str] = []
    return {
        "name": str(folder),
        "title": f"Runs in {folder}",
        "verdict": f"{counted}; they differ in {differing}.",
        "place": "",
        "percent": False,
        "measure": MEASURE,
        "axes": [axis_json(axis) for axis in axes],
        "settings": [
            {"label": label, "at": at, "seconds": 0, "stopped": stopped}
            for label, at in zip(labels, places, strict=True)
        ],
        "first": star_centre(places) or 0,
        "seeds": seeds,
        "noises": noises,
        "prompts": shown,
        "splits": [[SPLIT, SPLIT]],
        "radicals": [],
        "judges": [[SCORE, SCORE]],
        "arms": arms,
        "rates": {SCORE: {SPLIT: {"": [_rates(group, seeds) for group in settings]}}},
        "contrasts": {},
        "differences": differences_json({first.name: first.settings for first in firsts}, labels),
        "glyph_px": GLYPH_PX,
        "trainable": False,
    }, images


def _asked(trainings: Sequence[Training]) -> tuple[list[str], list[int]]:
    """The prompts that most trainings have drawn, and the noise seeds of the first."""
    tracks = [training.track for training in trainings if training.track]
    counts = Counter(prompt for track in tracks for prompt in track.prompts)
    return [prompt for prompt, _ in counts.most_common(PROMPTS_MOST)], list(tracks[0].seeds[:1]) if tracks else [0]


def _arm(
    training: Training | None, prompts: Sequence[str], noises: Sequence[int], images: list[bytes]
) -> dict[str, Any] | None:
    """One training for the browser; its sheet, if it has one, is appended to the images."""
    if training is None:
        return None
    sheet = -1
    if training.track and prompts:
        sheet = len(images)
        images.append(sheet_bytes(glyphs_of_track(training.track, prompts, noises)))
    return {"sheet": sheet, "seen": training.seen, "hits": {}, "seconds": 0}


def glyphs_of_track(track: Track, prompts: Sequence[str], noises: Sequence[int]) -> np.ndarray:
    """What a training drew: (P, C, S, H, W) uint8, white where it did not draw a prompt in a noise.

    Args:
        track: its samples.
        prompts: P prompts.
        noises: S noise seeds.
    """
    glyphs = grayscale(track.images) if track.images.ndim == 6 else track.images
    found = np.full((len(prompts), len(glyphs), len(noises), *glyphs.shape[3:]), 255, dtype=np.uint8)
    for row, prompt in enumerate(prompts):
        for column, noise in enumerate(noises):
            if prompt in track.prompts and noise in track.seeds:
                found[row, :, column] = glyphs[:, track.prompts.index(prompt), track.seeds.index(noise)]
    return found


def _rates(group: Mapping[int, Training], seeds: Sequence[int]) -> list[list[Any] | None]:
    """Loss of a setting at each moment: mean, least and greatest over the seeds, and that of each."""
    moments = max(len(training.seen) for training in group.values())
    rates: list[list[Any] | None] = []
    for moment in range(moments):
        losses = [
            group[seed].loss(group[seed].seen[moment]) if seed in group and moment < len(group[seed].seen) else None
            for seed in seeds
        ]
        known = [loss for loss in losses if loss is not None]
        rates.append([float(np.mean(known)), min(known), max(known), losses] if known else None)
    return rates


class RunsPanel(Panel):
    """Sliders over the runs in a folder. Make one with `AblationPanel.of_runs`.

    Args:
        folder: searched for runs to any depth.
    Raises:
        ValueError: fewer than two trainings are there.
    """

    def __init__(self, folder: Path | str):
        self._folder, self._trainings = folder, read_trainings(folder)
        catalogue, images = runs_catalogue(folder, self._trainings)
        self.widget = AblationView(catalogue=catalogue, images=images)

    @property
    def code(self) -> str:
        """The call that shows the same."""
        return python_call("AblationPanel.of_runs", self._folder)

    def picture(self) -> Image.Image:
        """What each training drew at its end, trainings in columns; raises ValueError where none has drawn."""
        prompts, noises = _asked(self._trainings)
        drawn = [training for training in self._trainings if training.track]
        if not drawn or not prompts:
            raise ValueError(f"{self._folder}: no run has stored samples")
        last = [glyphs_of_track(training.track, prompts, noises)[:, -1, 0] for training in drawn if training.track]
        return draw_strip(Strip(np.stack(last, axis=1), tuple(prompts), tuple(training.name for training in drawn)))
