"""What the strip comparator shows, without widgets: stored samples as tracks, and a view of them."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from kanjilab.core.config import settings_hash
from kanjilab.core.run_folder import RunFolder, find_runs

COLUMNS = ("checkpoints", "runs")
COMPARE = ("side by side", "blink", "difference")
JUDGES = ("", "A", "B")
PROMPTS_AT_FIRST = 12  # more rows do not fit on a screen; the others can be chosen
CELL_PX = (32, 256)
SAME_IN_BROWSER = ("columns", "compare", "judge", "cell_px")  # fields of a view that the browser holds unchanged


@dataclass(frozen=True)
class Track:
    """The samples of one arm of a run, checkpoint by checkpoint, with one setting of sampling.

    Args:
        label: unique among the tracks that are shown together.
        images_seen: C numbers, ascending, one per checkpoint.
        prompts: P strings.
        seeds: S noise seeds.
        images: (C, P, S, H, W) or (C, P, S, H, W, 3) uint8, 0 = black.
        facts: stored with the images: run, sampling and others.
        run: name of the run.
    Raises:
        ValueError: the images do not fit the rest.
    """

    label: str
    images_seen: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: np.ndarray
    facts: Mapping[str, Any]
    run: str = ""

    def __post_init__(self) -> None:
        expected = (len(self.images_seen), len(self.prompts), len(self.seeds))
        if self.images.shape[:3] != expected or self.images.ndim not in (5, 6) or self.images.dtype != np.uint8:
            raise ValueError(f"{self.label}: expected uint8 {expected} + (H, W[, 3]), got {self.images.shape}")
        if list(self.images_seen) != sorted(set(self.images_seen)):
            raise ValueError(f"{self.label}: expected ascending images_seen, got {self.images_seen}")

    def checkpoint_at(self, images_seen: int) -> int:
        """Index of the last checkpoint with at most so many images seen; -1 for none."""
        return bisect_right(self.images_seen, images_seen) - 1

    def cell(self, prompt: str, seed: int) -> np.ndarray | None:
        """The glyph of one prompt and seed at every checkpoint, (C, H, W[, 3]); None if it is not stored."""
        if prompt not in self.prompts or seed not in self.seeds:
            return None
        return self.images[:, self.prompts.index(prompt), self.seeds.index(seed)]


Runs = Mapping[str, Path | str] | Sequence[Path | str] | Path | str


def name_runs(runs: Runs) -> dict[str, Path]:
    """Run folders by unique names.

    Args:
        runs: folders by name; or a list of folders; or one folder, of a run or with runs somewhere below it.
    Returns:
        Folders by the given names, or by the shortest ends of their paths that are unique.
    Raises:
        ValueError: no run there.
    """
    if isinstance(runs, Mapping):
        return {str(name): Path(path) for name, path in runs.items()}
    if isinstance(runs, (str, Path)):
        found = [run.path for run in find_runs(runs) if run.samples()]
        if not found:
            raise ValueError(f"{runs}: expected a run with stored samples there or below, found none")
        return name_runs(found)
    paths = [Path(path) for path in runs]
    # A folder called "run", as the demo makes, is named by the folder that it is in.
    named = [path.parent if path.name == "run" else path for path in (path.resolve() for path in paths)]
    for length in range(1, max((len(path.parts) for path in named), default=1)):
        names = ["/".join(path.parts[-length:]) for path in named]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise ValueError(f"expected distinct run folders, got {[str(path) for path in paths]}")


def read_tracks(runs: Mapping[str, Path]) -> list[Track]:
    """The stored samples of some runs; nothing is drawn or trained.

    Args:
        runs: folders by name.
    Returns:
        The tracks of the first run, those of the most checkpoints first, of these the newest; then of the next run.
    Raises:
        ValueError: a run without stored samples; the message says how to draw them.
        RunError: a folder is not a run.
    """
    tracks = []
    for name, path in runs.items():
        run = RunFolder.open(path)
        found = [*_histories(run), *_study_samples(run)]
        if not found:
            raise ValueError(
                f"{path} has no stored samples: kanjilab.training.history.sample_history draws and stores them"
            )
        own = [track for track in found if track.facts.get("own")]
        others = [track for track in found if not track.facts.get("own")]
        # The dates of files alone say nothing in a fresh clone.
        labelled = _labelled(name, sorted(others, key=lambda track: -len(track.images_seen)))
        tracks += [_with_own_prompts(track, own) for track in labelled]
    return tracks


def _with_own_prompts(track: Track, own: Sequence[Track]) -> Track:
    """A track with the prompts that were drawn for it later, one at a time; see `own_prompts`."""
    for other in reversed(own):  # the newest is the first of them, and comes last
        if other.facts["own"] == own_key(track) and other.prompts[0] not in track.prompts:
            images = np.concatenate([track.images, other.images], axis=1)
            track = replace(track, prompts=(*track.prompts, *other.prompts), images=images)
    return track


def own_key(track: Track) -> str:
    """What a further prompt has in common with its track: how, from what and in which noises it is drawn."""
    facts = track.facts
    return settings_hash([facts.get("arm"), track.images_seen, track.seeds, dict(facts.get("sampling", {}))])


def _histories(run: RunFolder) -> list[Track]:
    """Each stored `sample_history`, newest first; of several with the same settings the newest alone."""
    names = [name for name in run.samples() if name.startswith("history_")]
    names.sort(key=lambda name: (run.path / "samples" / f"{name}.safetensors").stat().st_mtime_ns, reverse=True)
    tracks: dict[str, Track] = {}
    for name, images, facts in run.sound_samples(names):
        seen, prompts, seeds = (tuple(facts[key]) for key in ("images_seen", "prompts", "seeds"))
        settings = repr([facts.get("arm"), prompts, seeds, sorted(facts["sampling"].items())])
        kept = _moments(seen)
        seen, images = tuple(seen[at] for at in kept), images[kept]
        tracks.setdefault(settings, Track(name, seen, prompts, seeds, images, facts))
    return list(tracks.values())


def _moments(images_seen: Sequence[int]) -> list[int]:
    """Checkpoints with more images seen than before: an arm that ends before its run repeats its last one."""
    return [at for at, seen in enumerate(images_seen) if seen not in images_seen[:at]]


def _study_samples(run: RunFolder) -> list[Track]:
    """The arms of a study, which stores one file of images per arm and checkpoint."""
    arms: dict[str, list[tuple[np.ndarray, dict[str, Any]]]] = defaultdict(list)
    names = [name for name in run.samples() if not name.startswith("history_")]
    for _, images, facts in run.sound_samples(names):
        if {"key", "images_seen", "prompts", "noise_seeds"} <= facts.keys():
            arms[facts["key"] + str(facts["prompts"])].append((images, facts))
    tracks = []
    for stored in arms.values():
        stored.sort(key=lambda entry: entry[1]["images_seen"])
        stored = [stored[at] for at in _moments([entry["images_seen"] for _, entry in stored])]
        facts = stored[-1][1]
        seen = tuple(entry["images_seen"] for _, entry in stored)
        prompts = tuple(dict.fromkeys(entry["prompt"] for entry in facts["prompts"]))
        first = [[entry["prompt"] for entry in facts["prompts"]].index(prompt) for prompt in prompts]
        images = np.stack([images[first] for images, _ in stored])
        tracks.append(Track(facts["key"][:6], seen, prompts, tuple(facts["noise_seeds"]), images, facts))
    return tracks


def _labelled(name: str, tracks: Sequence[Track]) -> list[Track]:
    """Named by their run and, where a run has several, by the settings in which they differ."""
    if len(tracks) == 1:
        return [replace(tracks[0], label=name, run=name)]
    settings = [_settings(track) for track in tracks]
    differing = [key for key in settings[0] if len({str(some.get(key)) for some in settings}) > 1]
    labels = [", ".join(_setting_text(key, some[key]) for key in differing if key in some) for some in settings]
    if len(set(labels)) < len(labels):
        labels = [f"{label}, no. {number}".removeprefix(", ") for number, label in enumerate(labels, start=1)]
    return [replace(track, label=f"{name}: {label}", run=name) for track, label in zip(tracks, labels, strict=True)]


def _setting_text(key: str, value: Any) -> str:
    name = key.replace("_", " ")
    return f"no {name}" if value == "" else f"{name} {value}"


def _settings(track: Track) -> dict[str, Any]:
    """Settings in which two tracks of a run may differ."""
    arm = track.facts.get("arm", 0)
    of_arm = dict(arm) if isinstance(arm, Mapping) else {"arm": arm}
    sizes = {"prompts": len(track.prompts), "seeds": len(track.seeds)}
    return of_arm | dict(track.facts.get("sampling", {})) | sizes


Cell = tuple[str, str, int]  # track's label, prompt, seed
Frame = tuple[str, str, int, int]  # and images seen


@dataclass(frozen=True)
class View:
    """Which samples are shown, and how, in names and numbers that can be written as code.

    Attributes:
        tracks, prompts, seeds: chosen, in the order shown.
        columns: "checkpoints" (a strip), or "runs" (runs and seeds side by side, at the checkpoint of the slider).
        images_seen: the checkpoint of the slider.
        selected: the enlarged cell.
        pinned: the frame that it is compared with.
        compare: "side by side", "blink" or "difference".
        judge: whose readings are below the glyphs: "A", "B" or "" for none.
        cell_px: edge of a cell.
    """

    tracks: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    columns: str
    images_seen: int
    selected: Cell
    pinned: Frame | None = None
    compare: str = "side by side"
    judge: str = ""
    cell_px: int = 56


def all_prompts(tracks: Iterable[Track]) -> tuple[str, ...]:
    """The prompts of some tracks, each once, in order of appearance."""
    return tuple(dict.fromkeys(prompt for track in tracks for prompt in track.prompts))


def all_seeds(tracks: Iterable[Track]) -> tuple[int, ...]:
    """The noise seeds of some tracks, ascending."""
    return tuple(sorted({seed for track in tracks for seed in track.seeds}))


def timeline(tracks: Iterable[Track]) -> tuple[int, ...]:
    """Images seen at all checkpoints of some tracks, each once, ascending."""
    return tuple(sorted({seen for track in tracks for seen in track.images_seen}))


def _known(tracks: Sequence[Track]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Labels, prompts, seeds and timeline of some tracks."""
    return tuple(track.label for track in tracks), all_prompts(tracks), all_seeds(tracks), timeline(tracks)


def first_view(tracks: Sequence[Track], prompts: Sequence[str] = ()) -> View:
    """The first view: of each run the samples of the most checkpoints, the first seed, the last checkpoint.

    Args:
        tracks: of `read_tracks`, at least one.
        prompts: to show; of each run the first samples that have all of them are taken. () for any.
    """
    by_run: dict[str, list[Track]] = defaultdict(list)
    for track in tracks:
        by_run[track.run].append(track)
    wished = [next((t for t in some if set(prompts) <= set(t.prompts)), some[0]) for some in by_run.values()]
    shown, seeds = tuple(prompts) or all_prompts(wished)[:PROMPTS_AT_FIRST], all_seeds(wished)[:1]
    labels = tuple(track.label for track in wished)
    first = next((prompt for prompt in shown if prompt in wished[0].prompts), wished[0].prompts[0])
    return View(labels, shown, seeds, "checkpoints", timeline(tracks)[-1], (labels[0], first, wished[0].seeds[0]))


def checked_view(view: View, tracks: Sequence[Track]) -> View:
    """The view itself, where the tracks have all that it names.

    Raises:
        ValueError: an unknown name or number; the message lists the known ones.
    """
    labels, prompts, seeds, steps = _known(tracks)
    cells = [view.selected, *([view.pinned[:3]] if view.pinned else [])]
    for name, given, known in (
        ("tracks", view.tracks, labels),
        ("prompts", view.prompts, prompts),
        ("seeds", view.seeds, seeds),
        ("columns", [view.columns], COLUMNS),
        ("compare", [view.compare], COMPARE),
        ("judge", [view.judge], JUDGES),
        ("images_seen", [view.images_seen, *([view.pinned[3]] if view.pinned else [])], steps),
        ("track of a cell", [cell[0] for cell in cells], labels),
        ("prompt of a cell", [cell[1] for cell in cells], prompts),
        ("seed of a cell", [cell[2] for cell in cells], seeds),
    ):
        if strange := [entry for entry in given if entry not in known]:
            raise ValueError(f"{name}: expected some of {sorted(known, key=str)}, got {strange}")
    if not CELL_PX[0] <= view.cell_px <= CELL_PX[1]:
        raise ValueError(f"cell_px: expected {CELL_PX[0]} to {CELL_PX[1]}, got {view.cell_px}")
    return view


def with_chosen_cell(view: View, tracks: Sequence[Track]) -> View:
    """The view with the first of its chosen cells selected, if any is chosen."""
    shown = chosen(tracks, view)
    return replace(view, selected=(shown[0].label, shown[0].prompts[0], shown[0].seeds[0])) if shown else view


def changed_options(view: View, tracks: Sequence[Track]) -> dict[str, Any]:
    """Keyword arguments of `StripComparator` for a view: those that differ from its defaults."""
    wished = () if view.prompts == first_view(tracks).prompts else view.prompts
    first = replace(first_view(tracks, wished), selected=with_chosen_cell(view, tracks).selected)
    names = [field.name for field in fields(View) if getattr(view, field.name) != getattr(first, field.name)]
    return {name: getattr(view, name) for name in names} | ({"prompts": view.prompts} if wished else {})


def catalogue(tracks: Sequence[Track]) -> dict[str, Any]:
    """What the browser needs to find each frame.

    Args:
        tracks: at least one.
    Returns:
        For JSON: prompts, seeds, timeline; of each track its label, its images_seen, `at` (its checkpoint at each
        point of the timeline, -1 before its first) and `first` (prompts x seeds: number of the frame of its first
        checkpoint, -1 if it is not stored). Frames are numbered as in `frame_names`.
    """
    _, prompts, seeds, steps = _known(tracks)
    entries, number = [], 0
    for track in tracks:
        first = [[-1] * len(seeds) for _ in prompts]
        for prompt in track.prompts:
            for seed in track.seeds:
                first[prompts.index(prompt)][seeds.index(seed)] = number
                number += len(track.images_seen)
        at = [track.checkpoint_at(seen) for seen in steps]
        entries.append({"label": track.label, "images_seen": list(track.images_seen), "at": at, "first": first})
    return {"prompts": list(prompts), "seeds": list(seeds), "timeline": list(steps), "tracks": entries}


def frame_names(tracks: Sequence[Track]) -> list[Frame]:
    """(track, prompt, seed, images seen) of each frame: by track, then prompt, seed and checkpoint."""
    return [
        (track.label, *name)
        for track in tracks
        for name in itertools.product(track.prompts, track.seeds, track.images_seen)
    ]


def frame_images(tracks: Sequence[Track]) -> list[np.ndarray]:
    """All frames, each (H, W) or (H, W, 3) uint8, in the order of `frame_names`."""
    swapped = (np.moveaxis(track.images, 0, 2) for track in tracks)  # (P, S, C, H, W[, 3])
    return [frame for images in swapped for frame in images.reshape(-1, *images.shape[3:])]


def state_of(view: View, tracks: Sequence[Track]) -> dict[str, Any]:
    """A view as the browser holds it: indices into the catalogue's lists instead of names and numbers.

    Args:
        tracks: all tracks of the catalogue.
    """
    labels, prompts, seeds, steps = _known(tracks)

    def place(cell: Cell) -> list[int]:
        return [labels.index(cell[0]), prompts.index(cell[1]), seeds.index(cell[2])]

    return {
        "tracks": [labels.index(label) for label in view.tracks],
        "prompts": [prompts.index(prompt) for prompt in view.prompts],
        "seeds": [seeds.index(seed) for seed in view.seeds],
        "step": steps.index(view.images_seen),
        "selected": place(view.selected),
        "pinned": [*place(view.pinned[:3]), steps.index(view.pinned[3])] if view.pinned else None,
        **{name: getattr(view, name) for name in SAME_IN_BROWSER},
    }


def view_of(state: Mapping[str, Any], tracks: Sequence[Track]) -> View:
    """The inverse of `state_of`.

    Args:
        state: from the browser.
        tracks: all tracks of the catalogue.
    Raises:
        ValueError: an index out of range.
    """
    labels, prompts, seeds, steps = known = _known(tracks)

    def words(places: Sequence[int], known: Sequence[Any]) -> tuple[Any, ...]:
        if any(not 0 <= place < len(known) for place in places):
            raise ValueError(f"expected indices 0 to {len(known) - 1}, got {list(places)}")
        return tuple(known[place] for place in places)

    def cell(places: Sequence[int]) -> Any:
        return tuple(words([place], some)[0] for place, some in zip(places, known, strict=False))

    view = View(
        tracks=words(state["tracks"], labels),
        prompts=words(state["prompts"], prompts),
        seeds=words(state["seeds"], seeds),
        images_seen=words([state["step"]], steps)[0],
        selected=cell(state["selected"]),
        pinned=cell(state["pinned"]) if state["pinned"] else None,
        **{name: state[name] for name in SAME_IN_BROWSER},
    )
    return checked_view(view, tracks)


def chosen(tracks: Sequence[Track], view: View) -> list[Track]:
    """The chosen tracks, with the chosen prompts and seeds alone, in the view's order.

    Args:
        tracks: to choose from.
    """
    by_label = {track.label: track for track in tracks}
    result = []
    for track in (by_label[label] for label in view.tracks):
        prompts = tuple(prompt for prompt in view.prompts if prompt in track.prompts)
        seeds = tuple(seed for seed in view.seeds if seed in track.seeds)
        rows, columns = ([track.prompts.index(prompt) for prompt in prompts], [track.seeds.index(s) for s in seeds])
        if rows and columns:
            result.append(replace(track, prompts=prompts, seeds=seeds, images=track.images[:, rows][:, :, columns]))
    return result


def some_chosen(tracks: Sequence[Track], view: View) -> list[Track]:
    """`chosen`, at least one; raises ValueError for none."""
    if shown := chosen(tracks, view):
        return shown
    raise ValueError("expected a run, a prompt and a seed to be chosen, got none")
