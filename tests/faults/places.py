"""Where files from outside come in: a sound one in its place, and what reads it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kanjilab.core.config import Arm
from kanjilab.core.outside_files import read_array
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.dictionary import load_characters
from kanjilab.data.image_files import read_gray
from kanjilab.data.image_folder import open_dataset
from kanjilab.data.kanjivg import KanjiVG
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.experiments.findings import claims
from kanjilab.export.lora_formats import read_lora
from kanjilab.export.release import Handover
from kanjilab.models.hub import family_of, model_folder
from kanjilab.models.loading import load_base
from kanjilab.models.skeleton_encoder import SkeletonEncoder, load_encoder, save_encoder
from kanjilab.training.loop import train
from kanjilab.widgets.saved_glyphs import load_history
from tests.faults.contents import NO_JSON
from tests.tiny import save_tiny_pipeline, tiny_encoded

STUDIES = Path(__file__).parents[2] / "figures" / "studies"
KANJIDIC2 = "<kanjidic2><character><literal>水</literal><radical><rad_value rad_type='classical'>85</rad_value>"
KANJIDIC2 += "</radical><misc><stroke_count>4</stroke_count></misc></character></kanjidic2>"
WEIGHTS = "diffusion_pytorch_model.safetensors"
LOST = ("missing", "a link to nowhere", "a link to itself")
NO_OBJECTS = tuple(f"JSON: {name}" for name in NO_JSON)
TEXTS = ("a line of text", "an HTML page", "brackets without end", "braces without end", "tags without end")
TEXTS += ("the first half", "the second half", "two thirds", *NO_OBJECTS)
# A log's last line without an end is what a killed writer leaves: it does not count.
TORN = ("missing", "empty", "one byte", "an HTML page", "a pickle", "brackets without end", "braces without end")
TORN += ("tags without end", "a long line", "a file of the system without end", "zeros", *NO_OBJECTS)
TORN += ("the first half", "two thirds")
ENCODER_WEIGHTS = "condition_encoder/model.safetensors"
UNSEEN = "zeros in the middle"  # of weights without a hash, which nobody can know


@dataclass(frozen=True)
class Place:
    """One place.

    Attributes:
        file: its path in a folder of its own.
        source: the folder of `sound_files` that is copied there.
        read: gets the folder.
        right: contents that are no fault there.
        sound: whether the file that is there is read.
    """

    file: str
    source: str
    read: Callable[[Path], object]
    right: tuple[str, ...] = ()
    sound: bool = True


def sound_files(folder: Path) -> Path:
    """Writes a folder for each source, all of whose files are sound."""
    base = load_base(save_tiny_pipeline(folder / "base"))
    for _ in train(base, tiny_encoded(base), [Arm(rank=2, images_seen=2)], folder / "run", checkpoints=1):
        pass
    shutil.copytree(folder / "run" / "checkpoints" / "step_000002" / "arm_0", folder / "lora")
    for name in ("table", "lines", "captions", "files"):
        (folder / name).mkdir()
        values = np.full((16, 16), 255, np.uint8)
        values[4:9, 4:12] = 0
        Image.fromarray(values).save(folder / name / "a.png")
    (folder / "table" / "metadata.csv").write_text("file_name,text\na.png,water\n")
    (folder / "lines" / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "water"}) + "\n")
    (folder / "captions" / "a.txt").write_text("water\n")
    (folder / "encoder").mkdir()
    save_encoder(SkeletonEncoder("hint", "永国", 24, 8, 16), folder / "encoder")
    np.save(folder / "encoder" / "skeletons.npy", np.full((40, 128, 16), 255, np.uint8))
    (folder / "files" / "kanjidic2.xml").write_text(KANJIDIC2)
    shutil.copy(default_font(), folder / "files" / "font.ttf")
    shutil.copy(folder / "base" / "unet" / WEIGHTS, folder / "files" / "model.safetensors")
    shutil.make_archive(str(folder / "files" / "kanjivg"), "zip", folder / "table")
    (folder / "studies" / "rank-full").mkdir(parents=True)
    shutil.copy(STUDIES / "rank-full" / "report-radicals.json", folder / "studies" / "rank-full")
    (folder / "kept").mkdir()
    (folder / "kept" / "history.json").write_text("{}")
    return folder


def _skeletons(folder: Path) -> object:
    return read_array(folder / "skeletons.npy", "skeletons")


def _base(folder: Path) -> object:
    return family_of(str(folder), model_folder(str(folder)))


def places(base: object) -> dict[str, Place]:
    """All places by name.

    Args:
        base: the tiny one, loaded.
    """
    lora = {"unet": base.denoiser}  # type: ignore[attr-defined]

    def state(folder: Path) -> object:
        return RunFolder.open(folder).read_state(2)

    return {
        "LoRA": Place("adapter_model.safetensors", "lora", lambda folder: read_lora(folder, lora)),
        "PEFT's configuration": Place("adapter_config.json", "lora", lambda f: read_lora(f, lora), right=("missing",)),
        "single-file base": Place(
            "model.safetensors", "files", lambda f: model_folder(str(f / "model.safetensors")), sound=False
        ),
        "base: index": Place("model_index.json", "base", _base),
        "base: weights": Place(f"unet/{WEIGHTS}", "base", _base, right=("missing", UNSEEN)),
        "base: configuration": Place("unet/config.json", "base", _base, right=("missing",)),
        "base: tokenizer": Place("tokenizer/tokenizer_config.json", "base", _base, right=("missing",)),
        "encoder of skeletons: settings": Place("condition_encoder/config.json", "encoder", load_encoder),
        "encoder of skeletons: weights": Place(ENCODER_WEIGHTS, "encoder", load_encoder, right=(UNSEEN,)),
        "skeletons of calligraphy": Place("skeletons.npy", "encoder", _skeletons, right=(UNSEEN,)),
        "font": Place("font.ttf", "files", lambda f: draw_font("水", f / "font.ttf"), right=(UNSEEN,)),
        "dictionary": Place("kanjidic2.xml", "files", lambda f: load_characters.__wrapped__(f / "kanjidic2.xml")),
        "strokes": Place("kanjivg.zip", "files", lambda f: KanjiVG.open(f / "kanjivg.zip"), sound=False),
        "strip of a card": Place("a.png", "files", lambda f: Handover(card=True, strip=f / "a.png")),
        "photograph": Place("a.png", "files", lambda folder: read_gray(folder / "a.png", 64)),
        "image of a dataset": Place("a.png", "table", open_dataset),
        "metadata.csv": Place("metadata.csv", "table", open_dataset),
        "metadata.jsonl": Place("metadata.jsonl", "lines", open_dataset),
        "caption beside an image": Place("a.txt", "captions", open_dataset, right=TEXTS),
        "report of a study": Place("rank-full/report-radicals.json", "studies", claims, right=LOST),
        "settings of a run": Place("settings.json", "run", RunFolder.open),
        "state of a checkpoint": Place("checkpoints/step_000002/state.json", "run", state),
        "log of a run": Place("log.jsonl", "run", lambda folder: RunFolder.open(folder).read_log(), right=TORN),
        "gallery": Place("history.json", "kept", load_history, sound=False),
    }
