"""A finished study as it is stored, made up: hits by chance at given rates, glyphs from a font; nothing is trained."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ImageFilter

from kanjilab.core.config import Arm, settings_hash
from kanjilab.core.storage import write_json_atomic
from kanjilab.data.rendering import default_font, draw_font
from kanjilab.experiments.image_sheets import ImageSheets, sheet_bytes
from kanjilab.experiments.results import table_report, write_table
from kanjilab.experiments.study import Study, Variant

GLYPHS = {"水": "海河池波", "木": "村林松桜", "金": "鉄銀銅鏡", "言": "語話記詩"}
WORDS = {"水": "water", "木": "tree", "金": "metal", "言": "speech"}
SECOND = ("castle", "queen", "mountain", "river")
DRAWING = "d" * 16


def rank_study(ranks=(1, 16, 64, 256), **changes) -> Study:
    """Ranks in two scalings, rank 4 in one alone, three seeds, four moments."""
    variants = [Variant("rank 4", dict(rank=4), axes=dict(rank=4, scaling="alpha = r"))]
    for scaling, options in {"alpha = r": {}, "rsLoRA": dict(alpha=2.0, rslora=True)}.items():
        for rank in ranks:
            label = f"rank {rank}" + ("" if scaling == "alpha = r" else f", {scaling}")
            variants.append(Variant(label, dict(rank=rank) | options, axes=dict(rank=rank, scaling=scaling)))
    options = dict(name="made", claim="a higher rank draws better", arm=Arm(images_seen=4_000), seeds=(0, 1, 2))
    return Study(**options | dict(variants=tuple(variants), base="pocket2", checkpoints=4) | changes)


def store_study(folder: Path, study: Study, rates=None, judges=("radicals", "judge-b"), images=True) -> Path:
    """Write a study's reports, tables and sheets.

    Args:
        folder: of the study.
        rates: setting's label -> share of hits at the end; by default they grow with the variant's number.
        judges: names.
        images: whether there are sheets.
    """
    folder.mkdir(parents=True)
    rates = rates or {v.label: (at + 1) / (len(study.variants) + 1) for at, v in enumerate(study.variants)}
    for number, judge in enumerate(judges):
        rng = np.random.default_rng(number)
        table = pd.concat([_arm_table(study, v, seed, rates[v.label], rng) for v, seed in study.cells()])
        write_table(table, folder / f"table-{judge}.parquet")
        write_json_atomic(folder / f"report-{judge}.json", table_report(study, table, DRAWING, judge))
    if images:
        _store_sheets(folder, study, rates)
    return folder


def prompts_of(study):
    """Split, prompt and expected radicals, in the order of the rows."""
    return [
        {
            "split": split,
            "prompt": f"{WORDS[radical]} {second}{'' if split == 'held_out' else ' old'}",
            "expected": [radical],
        }
        for split in study.splits
        for second in SECOND
        for radical in GLYPHS
    ]


def arm_key(study, variant, seed):
    return settings_hash(study.arm_of(variant, seed))


def _arm_table(study, variant, seed, rate, rng):
    rows = []
    arm = study.arm_of(variant, seed)
    for moment in range(1, study.checkpoints + 1):
        for asked in prompts_of(study):
            for noise in study.noise_seeds:
                hit = bool(rng.random() < rate * moment / study.checkpoints)
                read = {"radical": asked["expected"][0] if hit else "火", "abstain": not hit, "hit": hit}
                at = {"checkpoint": moment, "images_seen": arm.images_seen * moment // study.checkpoints}
                asked_for = asked | {"expected": "".join(asked["expected"]), "noise_seed": noise}
                rows.append(at | {"final": moment == study.checkpoints} | asked_for | read)
    before = {"study": study.name, "variant": variant.label, "arm": arm_key(study, variant, seed), "run": "made"}
    after = {"diversity": 0.2, "held_out_loss": 0.1 + 0.01 * seed, "stopped": None, "seconds": 60.0}
    return pd.DataFrame(rows).assign(**before, seed=seed, **after)


def _store_sheets(folder, study, rates):
    (folder / "images").mkdir()
    prompts, arms = prompts_of(study), {}
    glyphs = {
        a["prompt"]: draw_font(GLYPHS[a["expected"][0]][i // 4 % 4], default_font()) for i, a in enumerate(prompts)
    }
    for variant in study.variants:
        drawn = _drawn(study, rates[variant.label], [glyphs[asked["prompt"]] for asked in prompts])
        for seed in study.seeds:
            key, arm = arm_key(study, variant, seed), study.arm_of(variant, seed)
            sheets = ImageSheets(folder, DRAWING, tuple(prompts), study.noise_seeds, arms)
            sheets.path(key).write_bytes(sheet_bytes(np.roll(drawn, 4 * seed, axis=4)))
            arms[key] = tuple(arm.images_seen * (m + 1) // study.checkpoints for m in range(study.checkpoints))
    ImageSheets(folder, DRAWING, tuple(prompts), study.noise_seeds, arms).write()


def _drawn(study, rate, glyphs):
    """(P, C, S, 64, 64): blurred the more, the fewer hits there are."""
    images = np.zeros((len(glyphs), study.checkpoints, len(study.noise_seeds), 64, 64), dtype=np.uint8)
    for moment in range(study.checkpoints):
        blur = ImageFilter.GaussianBlur(7 * (1 - rate * (moment + 1) / study.checkpoints) ** 2)
        for row, glyph in enumerate(glyphs):
            images[row, moment] = np.asarray(glyph.resize((64, 64)).filter(blur).point(lambda v: 255 * (v > 150)))
    return images
