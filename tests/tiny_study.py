"""A study of a few tiny trainings, its images, and a judge, for tests of experiments."""

from functools import partial

import numpy as np
import pandas as pd
from PIL import Image

from kanjilab.core.config import Arm
from kanjilab.data.image_folder import open_dataset
from kanjilab.experiments import context as lab
from kanjilab.experiments import packs
from kanjilab.experiments.run_study import ablate
from kanjilab.experiments.study import Study, Variant
from kanjilab.models.sampling import Sampling, sample
from kanjilab.training.cost import Cost

RADICALS = {"water": "水", "tree": "木", "person": "人", "fire": "火"}
ARM = Arm(targets="attention", rank=2, batch=2, images_seen=8, peak_lr=0.01)


class DarknessJudge:
    """Reads water in the darker images and fire in the others, and abstains where they are white."""

    def __init__(self, threshold=127):
        self.threshold, self.read_images = threshold, 0

    def read(self, images):
        self.read_images += len(images)
        light = images.mean(axis=(1, 2))
        radical = np.where(light < self.threshold, "水", "火")
        return pd.DataFrame({"radical": radical, "probability": light / 255, "abstain": light > 250})


def write_images(folder, captions, held_out):
    """An image folder: captions of two words, the first of which gives the radical."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["file_name,text,radical_character,split"]
    for split, texts in (("train", captions), ("held_out", held_out)):
        for text in texts:
            name = f"{split}-{text.replace(' ', '-')}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / name)
            lines.append(f"{name},{text},{RADICALS[text.split()[0]]},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def four_radicals(folder):
    """An image folder of two training images and a held-out one of each radical."""
    captions = [f"{word} {second}" for word in RADICALS for second in ("castle", "queen")]
    return write_images(folder, captions, [f"{word} mountain" for word in RADICALS])


def tiny_study(base, images):
    return Study(
        name="tiny",
        claim="a higher rank draws better",
        arm=ARM,
        variants=(
            Variant("rank 2", dict(rank=2)),
            Variant("rank 3", dict(rank=3)),
            Variant("the same", dict(alpha=2.0), axes=dict(rank=2)),  # alpha None is the rank
        ),
        seeds=(5, 6),
        data={"folder": str(images)},
        base=str(base),
        precision="fp32",
        prompts_per_radical=1,
        noise_seeds=(0, 1),
        sampling=Sampling("ddim", steps=1, guidance=1),
        loss_images=6,
    )


def quick_measure(base, data, arms, steps=2):
    """In place of `measure_steps`, where the cost does not matter."""
    return Cost(0.1 * len(arms), 1.0)


def make_small(patch):
    """Small pictures; and nothing is measured, which takes longer here than training."""
    patch.setattr(packs, "measure_steps", quick_measure)
    patch.setattr(packs, "_seconds_per_image", lambda lab, arm: 0.1)
    patch.setattr(lab, "open_dataset", partial(open_dataset, size_px=32))
    patch.setattr(packs, "sample", partial(sample, size_px=32))


def run(study, folder, **options):
    said = []
    report = ablate(study, folder, judge=options.pop("judge", DarknessJudge()), say=said.append, **options)
    return report, "\n".join(said)


def table_of(folder, judge="radicals"):
    return pd.read_parquet(folder / f"table-{judge}.parquet")


def assert_same_tables(first, second):
    """All but the seconds, which are measured; bit for bit."""
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"), check_exact=True)


class Forbidden(AssertionError):
    """Something was done that must not be."""


def forbid(monkeypatch, *names):
    def refuse(*arguments, **options):
        raise Forbidden

    for name in names:
        monkeypatch.setattr(packs, name, refuse)
