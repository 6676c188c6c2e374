"""Runs of calligraphy, of text encoders and of hands, galleries, and the reports and pictures of stored studies."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from safetensors.torch import load_file, save_file

from kanjilab.cli.options import open_training
from kanjilab.core.run_folder import RunFolder
from kanjilab.experiments.image_sheets import ImageSheets
from kanjilab.experiments.report import StoredStudy
from kanjilab.models.loading import load_base
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.few_shot import learned_hand
from kanjilab.training.loop import train
from kanjilab.widgets.ablation_catalogue import menu, study_catalogue
from kanjilab.widgets.saved_glyphs import load_history
from kanjilab.widgets.stored_studies import read_study, setting_strip
from tests.faults.case import Case, Here
from tests.faults.contents import PAGE, POINTER
from tests.faults.sound import skeleton_data
from tests.stored_study import rank_study
from tests.tiny import tiny_encoded

LAST = "checkpoints/step_000004"
ADAPTER = f"{LAST}/arm_0/adapter_model.safetensors"


def damaged(thing: str, name: str, make: Callable[[Path], object]):
    """A copy of a sound thing with something else in place of a file or folder, or with it changed."""

    def lay(here: Here):
        folder = here.take(thing)
        make(next(iter(sorted(folder.glob(name)))))
        return folder

    return lay


def added(thing: str, name: str):
    """A copy of a sound thing with an empty file more."""

    def lay(here: Here):
        folder = here.take(thing)
        (folder / name).touch()
        return folder

    return lay


def gone(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def holding(data: bytes):
    return lambda path: path.write_bytes(data)


def instead(make: Callable[[Path], object]):
    def damage(path):
        gone(path)
        make(path)

    return damage


def edited(change: Callable[[Any], Any]):
    """A JSON file after somebody's edit."""

    def damage(path):
        found = json.loads(path.read_text())
        changed = change(found)
        path.write_text(json.dumps(found if changed is None else changed))

    return damage


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# runs


def with_skeletons(here):
    return load_base(here.sound("writer"))


def read_run(base_of: Callable[[Here], Any]):
    def act(here, folder):
        run = open_training(folder)
        load_checkpoints(base_of(here), run, run.checkpoints()[-1:])

    return act


def plain(here):
    return load_base(here.sound("plain"))


def go_on(here, folder):
    """The same training once more, which goes on from what is there."""
    base, data = skeleton_data(here.sound)
    arms = [RunFolder.open(here.sound("calligraphy run")).arm(0)]
    for _ in train(base, data, arms, folder, checkpoints=1):
        pass


def go_on_otherwise(here, folder):
    """The same arm on other images."""
    base = with_skeletons(here)
    arms = [RunFolder.open(here.sound("calligraphy run")).arm(0)]
    for _ in train(base, tiny_encoded(base), arms, folder, checkpoints=1):
        pass


def _without_encoder(path):
    tensors = {name: value for name, value in load_file(path).items() if not name.startswith("condition_encoder")}
    save_file(tensors, path)


def _renamed_step(path):
    path.rename(path.with_name("step_000007"))


def _older_encoder(path):
    """The weights of an encoder of one skeleton, with a manifest that says so."""
    import hashlib

    tensors = load_file(path)
    name = "condition_encoder.skeleton.first.weight"
    tensors[name] = tensors[name][:, : tensors[name].shape[1] // 2].contiguous()
    save_file(tensors, path)
    manifest = path.parents[1] / "manifest.json"
    facts = json.loads(manifest.read_text())
    data = path.read_bytes()
    facts["arm_0/adapter_model.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(facts))


RUNS = {
    "the encoder's weights left out": (damaged("calligraphy run", ADAPTER, _without_encoder), "damaged|step"),
    "the encoder's weights of one skeleton": (
        damaged("calligraphy run", ADAPTER, _older_encoder),
        "condition_encoder.skeleton.first.weight",
    ),
    "a flipped bit": (damaged("calligraphy run", ADAPTER, flipped), "SHA-256"),
    "weights not fetched with Git LFS": (damaged("calligraphy run", ADAPTER, holding(POINTER)), "step|list index"),
    "the manifest a list": (damaged("calligraphy run", f"{LAST}/manifest.json", holding(b"[]")), "step|manifest"),
    "the arms of its settings gone": (
        damaged("calligraphy run", "settings.json", edited(lambda found: {**found, "arms": []})),
        "arm",
    ),
    "an arm of a later version": (
        damaged("calligraphy run", "settings.json", edited(lambda f: f["arms"][0].update(tilt=1))),
        "tilt",
    ),
    "arms as a number": (
        damaged("calligraphy run", "settings.json", edited(lambda found: {**found, "arms": 3})),
        "arms",
    ),
    "another base's name": (
        damaged("calligraphy run", "settings.json", edited(lambda found: {**found, "base_identity": "0" * 16})),
        "was trained on base",
    ),
}
GO_ON = {
    "a temporary checkpoint of a killed writer": (
        damaged("calligraphy run", "checkpoints", lambda path: (path / ".tmp_999999_00_step_000002").mkdir()),
        "",
    ),
    "a torn last line of its log": (
        damaged("calligraphy run", "log.jsonl", lambda path: path.write_text(path.read_text() + '{"step": 9')),
        "",
    ),
    "an old request to stop": (added("calligraphy run", "STOP"), ""),
    "the last checkpoint gone": (damaged("calligraphy run", LAST, gone), ""),
    "the state of another step": (
        damaged("calligraphy run", LAST, _renamed_step),
        "step_000007|state",
    ),
    "a flipped bit in the optimizer": (damaged("calligraphy run", f"{LAST}/state.safetensors", flipped), "SHA-256"),
    "half of its settings": (damaged("calligraphy run", "settings.json", cut), "settings.json"),
    "another's settings": (
        damaged("calligraphy run", "settings.json", edited(lambda found: {**found, "hash": "0" * 16})),
        "holds a run of other settings",
    ),
    "a pipe as its log": (damaged("calligraphy run", "log.jsonl", instead(os.mkfifo)), "log.jsonl"),
}


def hand(here, folder):
    learned_hand(with_skeletons(here), folder)


HANDS = {
    "never learned": (lambda here: here.folder / "none", "no settings.json|not a run"),
    "of an empty folder": (lambda here: (here.folder / "run").mkdir() or here.folder, "settings.json"),
}


# what the package writes for a run's readers


def export_text(form):
    return lambda here, _: here.call("export", here.sound("text run"), here.folder / "out", "--format", form)


def export_whole(form):
    return lambda here, _: here.call("export", here.sound("whole text run"), here.folder / "out", "--format", form)


# galleries

GALLERY = {
    "a picture not fetched with Git LFS": (damaged("gallery", "*.png", holding(POINTER)), "has changed"),
    "a picture painted over": (
        damaged("gallery", "*.png", lambda path: Image.new("L", (16, 16)).save(path)),
        "has changed",
    ),
    "a picture gone": (damaged("gallery", "*.png", gone), "history.json"),
    "another kind of file": (damaged("gallery", "history.json", edited(lambda f: {**f, "kind": "notes"})), "kind"),
    "a picture outside": (
        damaged("gallery", "history.json", edited(lambda f: f["glyphs"][0].update(file="../../a.png"))),
        "history.json",
    ),
    "a request of a later version": (
        damaged("gallery", "history.json", edited(lambda f: f["glyphs"][0]["request"].update(tilt=1))),
        "history.json",
    ),
    "a request of no seed": (
        damaged("gallery", "history.json", edited(lambda f: f["glyphs"][0]["request"].update(seeds=[]))),
        "history.json",
    ),
    "a request of a seed of 80 bits": (
        damaged("gallery", "history.json", edited(lambda f: f["glyphs"][0]["request"].update(seeds=[2**80]))),
        "history.json",
    ),
    "a certificate of nothing": (
        damaged("gallery", "history.json", edited(lambda f: f["glyphs"][0].update(certificate={}))),
        "history.json",
    ),
    "glyphs as a number": (damaged("gallery", "history.json", edited(lambda f: {**f, "glyphs": 3})), "history.json"),
    "a glyph in words": (damaged("gallery", "history.json", edited(lambda f: {**f, "glyphs": ["a"]})), "history.json"),
}


# stored studies

REPORT, TABLE, SHEETS = "report-radicals.json", "table-radicals.parquet", "images/sheets.json"


def study(here, folder):
    StoredStudy.read(folder)


def catalogue(here, folder):
    study_catalogue(folder)


def listed(here, folder):
    """The menu of two studies has the sound one."""
    entries = menu({"Mine": folder.parent})[0]["studies"]
    assert [Path(entry["path"]).name for entry in entries] == ["study"]


def strip(here, folder):
    setting_strip(folder, "rank 16")


def sheet(here, folder):
    sheets = ImageSheets.read(folder)
    assert sheets is not None
    for key in sheets.arms:
        sheets.images(key)


def planned(here, folder):
    read_study(rank_study((16, 64)), folder)


def _plan(data: bytes):
    def lay(here):
        folder = here.take("study")
        (folder / "panel").mkdir()
        (folder / "panel" / f"{rank_study((16, 64)).hash}.json").write_bytes(data)
        return folder

    return lay


def _two_studies(damage):
    """A sound study, and beside it one whose reports are damaged."""

    def lay(here):
        folder = here.take("study")
        other = Path(shutil.copytree(folder, here.folder / "other"))
        for path in other.glob("report-*.json"):
            damage(path)
        return folder

    return lay


def _column_gone(name):
    return lambda path: pd.read_parquet(path).drop(columns=name).to_parquet(path)


def _rows_gone(path):
    pd.read_parquet(path).iloc[:0].to_parquet(path)


def _other_variant(path):
    table = pd.read_parquet(path)
    table.loc[table.index[0], "variant"] = "rank 9"
    table.to_parquet(path)


def _smaller(path):
    with Image.open(path) as picture:
        half = picture.resize((picture.width // 2, picture.height // 2))
    half.save(path, "WEBP", lossless=True)


def _lacking(name):
    return edited(lambda found: {key: value for key, value in found.items() if key != name})


def _study_with(**changes):
    return edited(lambda found: found["study"].update(changes))


REPORTS = {
    "a report cut off": (damaged("study", REPORT, cut), study, REPORT),
    "a report not fetched with Git LFS": (damaged("study", REPORT, holding(POINTER)), study, REPORT),
    "a report as a list": (damaged("study", REPORT, holding(b"[1]")), study, REPORT),
    "a pipe as the report": (damaged("study", REPORT, instead(os.mkfifo)), study, REPORT),
    "a report gone": (damaged("study", REPORT, gone), study, REPORT),
    "a report without its study": (damaged("study", REPORT, _lacking("study")), study, REPORT),
    "a report without contrasts": (damaged("study", REPORT, _lacking("contrasts")), study, REPORT),
    "a report without arms": (damaged("study", REPORT, _lacking("arms")), study, REPORT),
    "a report without rates": (damaged("study", REPORT, _lacking("rates")), study, REPORT),
    "contrasts as a list": (
        damaged("study", REPORT, edited(lambda found: {**found, "contrasts": [1]})),
        study,
        REPORT,
    ),
    "no contrasts at all": (damaged("study", REPORT, edited(lambda f: {**f, "contrasts": {}})), study, REPORT),
    "a study of a later version": (damaged("study", REPORT, _study_with(tilt=1)), study, REPORT),
    "a study without seeds": (damaged("study", REPORT, _study_with(seeds=[])), study, REPORT),
    "a study without variants": (damaged("study", REPORT, _study_with(variants=[])), study, REPORT),
    "a variant in words": (damaged("study", REPORT, _study_with(variants=["rank 4"])), study, REPORT),
    "a sampler that nobody knows": (
        damaged("study", REPORT, _study_with(sampling={"sampler": "euler"})),
        study,
        REPORT,
    ),
    "a table gone": (damaged("study", TABLE, gone), study, TABLE),
    "a table cut off": (damaged("study", TABLE, cut), study, TABLE),
    "a table not fetched with Git LFS": (damaged("study", TABLE, holding(POINTER)), study, TABLE),
    "a web page as the table": (damaged("study", TABLE, holding(PAGE)), study, TABLE),
    "an empty file as the table": (damaged("study", TABLE, holding(b"")), study, TABLE),
    "a folder as the table": (damaged("study", TABLE, instead(Path.mkdir)), study, TABLE),
    "a pipe as the table": (damaged("study", TABLE, instead(os.mkfifo)), study, TABLE),
    "a table without hits": (damaged("study", TABLE, _column_gone("hit")), study, TABLE),
    "a table without seeds": (damaged("study", TABLE, _column_gone("seed")), study, TABLE),
    "a table without rows": (damaged("study", TABLE, _rows_gone), study, TABLE),
    "a table of other variants": (damaged("study", TABLE, _other_variant), catalogue, TABLE),
    "sheets cut off": (damaged("study", SHEETS, cut), catalogue, "sheets.json"),
    "sheets as a list": (damaged("study", SHEETS, holding(b"[]")), catalogue, "sheets.json"),
    "sheets not fetched with Git LFS": (damaged("study", SHEETS, holding(POINTER)), catalogue, "sheets.json"),
    "sheets without arms": (damaged("study", SHEETS, _lacking("arms")), catalogue, "sheets.json"),
    "sheets without noises": (damaged("study", SHEETS, _lacking("noise_seeds")), strip, "sheets.json"),
    "sheets with arms in words": (
        damaged("study", SHEETS, edited(lambda found: {**found, "arms": {"a": "b"}})),
        catalogue,
        "sheets.json",
    ),
    "a pipe as the sheets": (damaged("study", SHEETS, instead(os.mkfifo)), catalogue, "sheets.json"),
    "an arm's picture gone": (damaged("study", "images/*.webp", gone), catalogue, "webp"),
    "an arm's picture cut off": (damaged("study", "images/*.webp", cut), sheet, "webp"),
    "an arm's picture not fetched with Git LFS": (damaged("study", "images/*.webp", holding(POINTER)), sheet, "webp"),
    "an arm's picture of half the size": (damaged("study", "images/*.webp", _smaller), sheet, "webp"),
    "a web page as an arm's picture": (damaged("study", "images/*.webp", holding(PAGE)), catalogue, "webp"),
    "a report of the panel cut off": (damaged("study", REPORT, cut), planned, REPORT),
    "a report of the panel without a hash": (damaged("study", REPORT, _lacking("hash")), planned, REPORT),
}
RIGHT = {
    "a menu with a report cut off": (_two_studies(cut), listed),
    "a menu with a report as a list": (_two_studies(holding(b"[1]")), listed),
    "a menu with a report without its study": (_two_studies(_lacking("study")), listed),
    "a menu with a report that is no text": (_two_studies(holding(bytes(3_000))), listed),
    "a plan cut off, which can be made again": (_plan(b'{"cells": [['), planned),
    "a plan as a list": (_plan(b"[]"), planned),
    "a plan without packs": (_plan(b'{"cells": [], "drawing": ""}'), planned),
    "a plan with packs of other fields": (_plan(b'{"cells": [], "drawing": "", "packs": [{"keys": []}]}'), planned),
    "nothing wrong with the numbers": (lambda here: here.take("study"), study),
    "nothing wrong with the catalogue": (lambda here: here.take("study"), catalogue),
    "without pictures": (damaged("study", "images", gone), catalogue),
    "without the second judge": (damaged("study", "report-judge-b.json", gone), catalogue),
    "a note beside the report": (added("study", "notes.txt"), catalogue),
}


CASES = [
    *(Case(f"calligraphy run: {name}", read_run(with_skeletons), lay, says) for name, (lay, says) in RUNS.items()),
    Case(
        "calligraphy run: on a base without an encoder",
        read_run(plain),
        lambda here: here.sound("calligraphy run"),
        "was trained on base",
    ),
    *(
        Case(f"calligraphy run that goes on: {name}", go_on, lay, says, writes=r"calligraphy run(/.*)?")
        for name, (lay, says) in GO_ON.items()
    ),
    Case(
        "calligraphy run that goes on: other images",
        go_on_otherwise,
        lambda here: here.take("calligraphy run"),
        ".",
    ),
    *(Case(f"a hand {name}", hand, lay, says) for name, (lay, says) in HANDS.items()),
    Case("a run of a text encoder as kohya", export_text("kohya"), says="CLIP"),
    *(
        Case(
            f"a run of a whole text encoder as {form}",
            export_whole(form),
            says="trained the whole text encoder.*pipeline",
        )
        for form in ("diffusers", "peft")
    ),
    Case("a run of a whole text encoder as a pipeline", export_whole("pipeline"), writes="out(/.*)?"),
    Case("a run of a text encoder as peft", export_text("peft"), writes="out(/.*)?"),
    Case("a run of a text encoder as a pipeline", export_text("pipeline"), writes="out(/.*)?"),
    *(
        Case(f"gallery: {name}", lambda here, folder: load_history(folder), lay, says)
        for name, (lay, says) in GALLERY.items()
    ),
    *(Case(f"study: {name}", act, lay, says) for name, (lay, act, says) in REPORTS.items()),
    *(Case(f"study: {name}", act, lay) for name, (lay, act) in RIGHT.items()),
]
