"""Trainings as settings: the demo's and published ones. What was published is repeated; what was not is named.

Sources: the article and the repository "Generative Kanji" (LoRA on SD 1.4), and what is known of "InstantKanji" (every
weight of SD 1.5; LoRA on SD 3.5 Large, trained with SimpleTuner).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kanjilab.core.config import DEFAULT_BASE, Arm
from kanjilab.data.prompts import DEMO
from kanjilab.models.sampling import Sampling

Entry = TypeVar("Entry")

# The studies' arm. The weight on high noise, where the prompt decides which parts there are, made the difference.
PLAIN_ARM = Arm(
    targets="all",
    rank=64,
    peak_lr=1.5e-3,
    schedule="linear",
    warmup_steps=100,
    batch=16,
    min_snr_gamma=5.0,
    velocity_weight=True,
    ema_decay=0.99,
    explosion_factor=1000.0,  # a batch near pure noise weighs two hundred times; clipping is enough for it
)
# Draws sooner (docs/findings.md): levels are drawn as often as they weigh, every caption is read, the rate is kept up.
DEMO_ARM = dataclasses.replace(PLAIN_ARM, timesteps="importance", caption_dropout=0.0, schedule="constant-cooldown")

# The article's own setting, for comparison.
ARTICLE_ARM = Arm(targets="cross-attention", alpha=4.0)

DEMO_SAMPLING = Sampling("dpm-solver++", steps=15, guidance=5.0)
# Of bases that read skeletons: what is typed or asked for by its index; and along the glyph's own lines.
WRITING = Sampling("dpm-solver++", steps=18, guidance=2.5, array_guidance=5.0)
TRACING = dataclasses.replace(WRITING, array_guidance=2.5)


@dataclass(frozen=True)
class Scale:
    """How much of the main job is done.

    Args:
        images_seen: budget of the training.
        checkpoints: columns after "before training".
        captions_per_radical: in each of the two scored prompt sets.
        seeds: images per prompt of the strip; the first is in every column.
    """

    images_seen: int
    checkpoints: int
    captions_per_radical: int
    seeds: int


SCALES = {
    "smoke": Scale(images_seen=64, checkpoints=2, captions_per_radical=1, seeds=2),
    "demo": Scale(images_seen=28_000, checkpoints=6, captions_per_radical=6, seeds=4),
    "full": Scale(images_seen=40_000, checkpoints=8, captions_per_radical=12, seeds=4),
}

TEMPLATE_PREFIX = "Image of a Japanese kanji character in plain font. The character means: "

# The repository's own log: `lora_rank: 64, lr_warmup_steps: 500, max_train_steps: 80000, seed: 42`, no caption dropout,
# LoRA on all attention at alpha = rank, where the article says cross-attention at alpha 4. Its code clips no gradient:
# the filter of trained parameters is used up by the optimizer before `clip_grad_norm_` gets it.
UNCLIPPED = 1e9
REPO_ARM = dataclasses.replace(
    ARTICLE_ARM,
    targets="attention",
    alpha=None,
    epochs=50.0,
    warmup_steps=500,
    caption_dropout=0.0,
    clip_norm=UNCLIPPED,
    seed=42,
)
SD35_ARM = Arm(
    targets="attention", rank=768, alpha=768.0, batch=6, images_seen=36_000 * 6, schedule="cosine", peak_lr=1.05e-3
)


@dataclass(frozen=True)
class Preset:
    """A training that others published, or the demo's.

    Attributes:
        about: what it repeats.
        base: as for `load_base`.
        precision: of the frozen base.
        arms: trained together over one base.
        images: how the training images are made with kanjilab.
        training_images: how many there were.
        prompts: drawn at each checkpoint.
        sampling: how.
        checkpoints: after the one before training.
        defaults: what was not published, and what is taken in its place.
        differences: what was published and is otherwise here, and how it was there.
    """

    about: str
    base: str
    precision: str
    arms: tuple[Arm, ...]
    images: str
    training_images: int
    prompts: tuple[str, ...]
    sampling: Sampling
    checkpoints: int
    defaults: Mapping[str, str]
    differences: Mapping[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What it is, which images it wants, what was not published, and what differs on purpose, a line each."""
        return [
            self.about,
            f"images: {self.images} ({self.training_images:,} there)",
            *(f"not published: {name}; taken: {value}" for name, value in self.defaults.items()),
            *(f"differs on purpose: {name}: {how}" for name, how in self.differences.items()),
        ]


SD1_SAMPLING = Sampling("ddim", steps=50, guidance=7.5)
SD1_DRAWING = {"sampler, steps and guidance": "ddim, 50, 7.5 (diffusers' defaults for SD 1.x, but for the sampler)"}
SAMPLING_TEXTS = {"style prefix": f"{TEMPLATE_PREFIX!r}, from the captions' template", "negative prompt": "none"}


INSTANTKANJI: dict[str, Any] = dict(
    precision="bf16",
    images="kanjilab data data/all --rule all --strokes 5",
    training_images=6_413,
    prompts=("mountains",),
    checkpoints=8,
)


def _instantkanji_sd35(about: str, arm: Arm, further: Mapping[str, str]) -> Preset:
    return Preset(
        about=about,
        base="sd35-large",
        arms=tuple(dataclasses.replace(arm, peak_lr=rate) for rate in (1.05e-3, 9.5e-4)),
        sampling=Sampling("flow-euler", steps=28, guidance=3.5, prefix=TEMPLATE_PREFIX),
        defaults={
            **SAMPLING_TEXTS,
            "targets": "attention (SimpleTuner's default)",
            "caption dropout": "0.1 (SimpleTuner's default)",
            "AdamW's betas, weight decay, clipping": "kanjilab's defaults",
            "sampler, steps and guidance": "flow-euler, 28, 3.5",
            "number of checkpoints": "8",
            **further,
        },
        **INSTANTKANJI,
    )


GENERATIVE_KANJI: dict[str, Any] = dict(
    base="sd14",
    precision="fp32",
    images="kanjilab data data/seed16 --rule seed16",
    training_images=1_600,
    prompts=("queen", "one axe", "crown box", "Elon Musk"),
    sampling=SD1_SAMPLING,
)
PRESETS: dict[str, Preset] = {
    "pocket-demo": Preset(
        about="The demo's settings: LoRA of rank 64 on all layers of pocket2, batch 16, 28,000 images seen",
        base=DEFAULT_BASE,
        precision="bf16",
        arms=(dataclasses.replace(DEMO_ARM, images_seen=SCALES["demo"].images_seen),),
        images="kanjilab data data/left16",
        training_images=1_408,
        prompts=DEMO,
        sampling=DEMO_SAMPLING,
        checkpoints=SCALES["demo"].checkpoints,
        defaults={},
    ),
    "generative-kanji-article": Preset(
        about="Generative Kanji as its article says: LoRA of rank 64, alpha 4, on the cross-attention of SD 1.4, "
        "batch 1, 8 epochs, 1e-4, cosine, 128 px",
        arms=(ARTICLE_ARM,),
        checkpoints=8,
        **GENERATIVE_KANJI,
        defaults={
            "warm-up": "none",
            "caption dropout": "0.1, without which guidance has nothing to go away from",
            "style prefix and negative prompt": "none",
            **SD1_DRAWING,
        },
    ),
    "generative-kanji-repo": Preset(
        about="Generative Kanji as its code and log say: LoRA of rank 64, alpha 64, on all attention of SD 1.4, "
        "batch 1, 50 epochs (80,000 steps), 1e-4, 500 steps of warm-up, cosine, no clipping, no prefix, seed 42, "
        "128 px; seven prompts every 8,000 steps, 20 denoising steps at guidance 7.5",
        arms=(REPO_ARM,),
        checkpoints=10,
        **GENERATIVE_KANJI
        | {
            "prompts": ("water", "iPhone", "king", "tree", "queen", "fire", "one"),
            "sampling": dataclasses.replace(SD1_SAMPLING, steps=20),
        },
        defaults={},
        differences={
            "first values of A": "uniform in ±1/sqrt(inputs), as PEFT has them by default; there Gaussian, std 1/rank",
            "sampler": "ddim; there PNDM, with noise that follows from the seed 42 and the prompts before",
            "an arm whose gradient explodes": "is stopped; there it goes on",
        },
    ),
    "instantkanji-sd15-full": Preset(
        about="InstantKanji on SD 1.5: every weight of the U-Net, captions by the template",
        base="sd15",
        arms=(Arm(targets="full", peak_lr=1e-5, schedule="constant", batch=4, epochs=30.0, ema_decay=0.9999),),
        sampling=dataclasses.replace(SD1_SAMPLING, prefix=TEMPLATE_PREFIX),
        **INSTANTKANJI,
        defaults={
            "rate, schedule and averaging": "1e-5, constant, EMA 0.9999 (diffusers' example of a full fine-tune)",
            "batch and epochs": "4 and 30",
            **SAMPLING_TEXTS,
            **SD1_DRAWING,
        },
    ),
    "instantkanji-sd35-lora": _instantkanji_sd35(
        "InstantKanji on SD 3.5 Large: LoRA of rank 768, alpha 768, batch 6, 36,000 steps, at the rates 1.05e-3 and "
        "9.5e-4 as two arms over one base; cosine as it is commonly understood, down to 0 at the end",
        SD35_ARM,
        {"warm-up": "none"},
    ),
    "instantkanji-sd35-lora-periodic": _instantkanji_sd35(
        "The same with the cosine that SimpleTuner ran by that name: down over the warm-up steps and up again, for "
        "ever, which is where the author's exploding phases may come from",
        dataclasses.replace(SD35_ARM, schedule="periodic", warmup_steps=500),
        {"half a period, which are the warm-up steps": "500"},
    ),
}


def lookup(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """An entry of a table by its name.

    Args:
        table: name -> entry.
        name: as given on a command line.
        what: of what the table is, for the message.
    Raises:
        ValueError: an unknown name; the message lists those that are known.
    """
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")
    return table[name]


def arms_of(
    start: Sequence[Arm], changes: Mapping[str, Any], axis: str = "", values: Sequence[Any] = ()
) -> tuple[Arm, ...]:
    """Arms with some settings changed, and with one varied.

    Args:
        start: of a preset, or the default arm alone.
        changes: setting -> value, in every arm. A budget given in epochs or in images replaces the other.
        axis: a setting to vary.
        values: one arm each, for every arm of the start.
    Raises:
        ValueError: an unknown setting, one both changed and varied, a value outside its range, two budgets, or equal
            arms.
    """
    if axis in changes:
        raise ValueError(f"expected a setting that is set or varied, got {axis} both set and varied")
    if {*changes, axis} >= {"epochs", "images_seen"}:
        raise ValueError("expected a budget in epochs or in images_seen, got both")
    variants = [{**changes, axis: value} for value in values] if axis else [dict(changes)]
    arms = []
    for arm in start:
        for asked in variants:
            budget = {"images_seen": None} if "epochs" in asked and "images_seen" not in asked else {}
            arms.append(Arm.from_json(arm.to_json() | budget | asked))
    if len(set(arms)) < len(arms):
        raise ValueError(f"expected arms that differ, got equal ones: {axis} {', '.join(map(str, values))}")
    return tuple(arms)
