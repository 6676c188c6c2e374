"""The studies by name: what each compares, and how much of it at each scale.

All studies start from one arm, the demo's with half its batch, and change only the settings that they compare.
`BUDGETS` sets what a run may cost, the same for all arms of a study. It never saves on training seeds.

Up to the scale `broad`, which a processor can run, the data are four of the sixteen radicals: a few thousand images
then suffice to distinguish settings, where sixteen radicals need tens of thousands. `full` tests a design's first
contrast alone; `broad` explores all variants at the same cost a run; `steps` sees half as many
images again, on the default base, where glyphs are legible then, and is drawn four times along the way; `legible` is
for the study `claims`, which tests the article's four claims there against one reference; `wide` also has all radicals
and needs an accelerator. `pilot` tries rates for `full`, and `legible-pilot` for `legible`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pandas as pd

from kanjilab.core.config import DEFAULT_BASE, Arm
from kanjilab.experiments.study import Study, Variant
from kanjilab.models.sampling import Sampling
from kanjilab.training.presets import ARTICLE_ARM, DEMO_ARM, DEMO_SAMPLING, PLAIN_ARM, REPO_ARM, lookup

# A study sees few images, so its warm-up is short.
STUDY_ARM = dataclasses.replace(PLAIN_ARM, batch=8, warmup_steps=15)
WARMUP_IMAGES = STUDY_ARM.batch * STUDY_ARM.warmup_steps
# The reference of the article's claims: its schedule and no running average, on layers and at a rate that draw.
CLAIMS_ARM = dataclasses.replace(DEMO_ARM, batch=8, warmup_steps=15, schedule="cosine", ema_decay=None)
# Water, insect, speech, metal: in left16 and in seed16, with captions that differ.
FEW_RADICALS = (85, 142, 149, 167)


@dataclass(frozen=True)
class Budget:
    """How much of a study is done: what each run may cost, and how many runs.

    Args:
        images_seen: of one training.
        prompts_per_radical: of each split.
        seeds: blocks.
        loss_images: of the held-out loss.
        phase: of the study.
        sampling: how images are drawn.
        radicals: classical numbers of the radicals; none for all sixteen.
        per_radical: kanji per radical of the training set.
        claim_alone: only the contrasts that a design makes its claim with, and the variants in them.
        base: as for `load_base`.
        checkpoints: moments of each training that are scored and drawn.
        rates: that a pilot trains every variant at.
        tuned_alone: a study that tests compares variants at the rates that pilots chose, not at one for all too.
    """

    images_seen: int
    prompts_per_radical: int
    seeds: tuple[int, ...]
    loss_images: int
    phase: str
    sampling: Sampling = DEMO_SAMPLING
    radicals: tuple[int, ...] = FEW_RADICALS
    per_radical: int = 88
    claim_alone: bool = False
    base: str = "pocket"
    checkpoints: int = 1
    rates: tuple[float, ...] = ()
    tuned_alone: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """The left16 set at this scale, as a rule's JSON."""
        return self.of_rule("left16", self.per_radical)

    def of_rule(self, name: str, per_radical: int) -> dict[str, Any]:
        """This scale's radicals of a rule, as JSON."""
        rule = {"name": name, "per_radical": per_radical}
        return {"name": "only", "rule": rule, "radicals": list(self.radicals)} if self.radicals else rule


CONFIRM_SEEDS = tuple(range(100, 108))
# Powers of three times the studies' rate, and finer ones: powers of its root, from a third of that rate to nine times.
RATES = tuple(STUDY_ARM.peak_lr * 3.0**power for power in (-2, -1, 0, 1, 2, 3))
FINE_RATES = tuple(STUDY_ARM.peak_lr * 3.0 ** (power / 2) for power in (-2, -1, 0, 1, 2, 3, 4))
BUDGETS = {
    "smoke": Budget(
        16, 1, (0, 1), 8, "explore", dataclasses.replace(DEMO_SAMPLING, steps=2), per_radical=8, claim_alone=True
    ),
    "pilot": Budget(2_400, 5, (0, 1, 2), 256, "pilot", claim_alone=True, rates=RATES),
    "full": Budget(2_400, 10, CONFIRM_SEEDS, 256, "confirm", claim_alone=True),
    "broad": Budget(2_400, 10, CONFIRM_SEEDS, 256, "explore"),
    "steps": Budget(3_600, 5, (0, 1), 256, "explore", base=DEFAULT_BASE, checkpoints=4),
    "legible-pilot": Budget(
        3_600, 10, (0, 1), 256, "pilot", claim_alone=True, base=DEFAULT_BASE, rates=FINE_RATES[2:5]
    ),
    "legible": Budget(3_600, 10, CONFIRM_SEEDS, 256, "confirm", claim_alone=True, base=DEFAULT_BASE, tuned_alone=True),
    "wide": Budget(16_000, 6, CONFIRM_SEEDS, 512, "explore", radicals=()),
}
# What the pilots chose, by study and variant; the studies compare at the fixed rate and at these.
TUNED: dict[str, dict[str, float]] = {
    "rank-full": {"rank 4": RATES[4], "rank 64": RATES[2]},
    "batch-full": {"batch 8": RATES[2], "batch 1": RATES[2]},
    "epochs-full": {"2,400 images seen": RATES[2], "9,600 images seen": RATES[2]},
    "schedule-full": {"constant": RATES[2], "cosine": RATES[2]},
    "claims-legible": {
        "the reference": FINE_RATES[3],
        "rank 4": FINE_RATES[5],
        "batch 1": FINE_RATES[1],
        "half the images seen": FINE_RATES[4],
        "constant rate": FINE_RATES[2],
    },
}
TUNED_SUFFIX = ", tuned"
PILOTS = {"full": "pilot", "legible": "legible-pilot"}  # the scales that choose the rates of these
CLAIMS = ("rank", "batch", "epochs", "schedule")  # the article's four, corrected together
REFERENCE = "the reference"
CLAIM_OF = {
    (REFERENCE, "rank 4"): "a higher rank draws better",
    ("batch 1", REFERENCE): "batch 1 draws better than a larger one",
    (REFERENCE, "half the images seen"): "more epochs draw better",
    (REFERENCE, "constant rate"): "cosine draws better than a constant rate",
}  # the contrasts of the study `claims`


@dataclass(frozen=True)
class Design:
    """What a study compares, at any scale.

    Args:
        claim: in words; its contrast is the first.
        variants: the reference first.
        contrasts: as for `Study`, the most important first.
        arm: what the variants change.
        claims: how many of the contrasts, the first ones, are claims.
        rates: of a variant, by its label, that a pilot tries in place of those that it tries of all.
    """

    claim: str
    variants: Sequence[Variant]
    contrasts: tuple[tuple[str, str], ...] = ()
    arm: Arm = field(default_factory=lambda: STUDY_ARM)
    claims: int = 1
    rates: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The contrasts; by default every variant against the first."""
        return self.contrasts or tuple((v.label, self.variants[0].label) for v in self.variants[1:])

    def claim_alone(self) -> Self:
        """The claims' contrasts, and the variants that they name."""
        pairs = self.pairs[: self.claims]
        named = {label for pair in pairs for label in pair}
        return dataclasses.replace(self, variants=[v for v in self.variants if v.label in named], contrasts=pairs)


def at_batch(batch: int) -> dict[str, Any]:
    """Settings of a batch size: as many images of warm-up, and as many remembered by the running average."""
    ema_decay = (STUDY_ARM.ema_decay or 0.99) ** (batch / STUDY_ARM.batch)
    return dict(batch=batch, warmup_steps=max(1, WARMUP_IMAGES // batch), ema_decay=ema_decay)


def settings_design(budget: Budget) -> Design:
    """One setting at a time is moved in steps away from the studies' arm."""
    moved: dict[str, Sequence[Any]] = {
        "rank": (1, 4, 16, 256),
        "batch": (1, 4, 16, 64),
        "peak_lr": (STUDY_ARM.peak_lr / 9, STUDY_ARM.peak_lr / 3, STUDY_ARM.peak_lr * 3),
        "schedule": ("constant", "cosine", "constant-cooldown"),
        "targets": ("cross-attention", "attention", "attention+feed-forward"),
    }
    usual = {name: getattr(STUDY_ARM, name) for name in moved}
    variants = [Variant("the studies' arm", {}, axes=usual)]
    for name, values in moved.items():
        for value in values:
            changes = at_batch(value) if name == "batch" else {name: value}
            shown = f"{value:.2g}" if name == "peak_lr" else value
            label = f"{name.replace('peak_lr', 'rate')} {shown}"
            variants.append(Variant(label, changes, axes=usual | {name: value}))
    return Design("each setting by itself changes what is drawn", variants)


def rank_design(budget: Budget) -> Design:
    """Ranks, each with three scalings of the update, which are equal at rank 4."""
    variants = [Variant("rank 4", dict(rank=4), axes=dict(rank=4, scaling="alpha = r"))]
    scalings: dict[str, dict[str, Any]] = {
        "alpha = r": dict(alpha=None),
        "alpha 4": dict(alpha=4.0),
        "rsLoRA": dict(alpha=2.0, rslora=True),  # 2 / sqrt(4) = 1
    }
    for scaling, changes in scalings.items():
        for rank in (1, 16, 64, 256):
            label = f"rank {rank}" + ("" if scaling == "alpha = r" else f", {scaling}")
            variants.append(Variant(label, dict(rank=rank) | changes, axes=dict(rank=rank, scaling=scaling)))
    labels = ["rank 64", *(v.label for v in variants[1:] if v.label != "rank 64")]
    return Design("a higher rank draws better", variants, tuple((label, "rank 4") for label in labels))


def batch_design(budget: Budget) -> Design:
    """Batch sizes at equal images and at equal steps, with Adam's second memory counted in steps or in images."""
    usual, variants = STUDY_ARM.batch, []

    def add(label: str, batch: int, images: int, scaled: bool, equal: str) -> None:
        changes = at_batch(batch) | dict(images_seen=images)
        changes |= dict(beta2=STUDY_ARM.beta2 ** (batch / usual)) if scaled else {}
        axes = dict(batch=batch, equal=equal, beta2="per image" if scaled else "per step")
        variants.append(Variant(label, changes, axes=axes))

    for batch in (usual, 1, 4, 64):
        add(f"batch {batch}", batch, budget.images_seen, False, "images")
    for batch in (1, 4, 64):
        add(f"batch {batch}, beta2 per image", batch, budget.images_seen, True, "images")
    for batch in (1, 4, 64):
        add(f"batch {batch}, equal steps", batch, budget.images_seen * batch // usual, False, "steps")
    first = ("batch 1", f"batch {usual}")
    others = tuple((v.label, first[1]) for v in variants[1:] if v.label != first[0])
    return Design("batch 1 draws better than a larger one", variants, (first, *others))


def epochs_design(budget: Budget) -> Design:
    """Budgets, each with its own cool-down, and numbers of different kanji at one budget."""
    arm = dataclasses.replace(STUDY_ARM, schedule="constant-cooldown")
    variants = []
    for factor in (1, 0.25, 0.5, 2, 4):
        images = int(budget.images_seen * factor)
        variants.append(Variant(f"{images:,} images seen", dict(images_seen=images), axes=dict(images_seen=images)))
    radicals = len(budget.radicals) or 16
    for share in (4, 2):
        data = budget.of_rule("left16", budget.per_radical // share)
        label = f"{radicals * (budget.per_radical // share):,} kanji"
        variants.append(Variant(label, {}, data, axes=dict(images_seen=budget.images_seen, kanji=label)))
    labels = [variant.label for variant in variants]
    order = [labels[4], labels[1], labels[2], labels[3], *labels[5:]]
    return Design("more epochs draw better", variants, tuple((label, labels[0]) for label in order), arm)


def schedule_design(budget: Budget) -> Design:
    """Schedules of one peak rate; the constant half of it has about the mean rate of the others."""
    kinds: dict[str, dict[str, Any]] = {
        "constant": {},
        "cosine": dict(schedule="cosine"),
        "linear": dict(schedule="linear"),
        "constant + cool-down": dict(schedule="constant-cooldown"),
        "constant + EMA": dict(ema_decay=STUDY_ARM.ema_decay),
        "constant, half the rate": dict(peak_lr=STUDY_ARM.peak_lr / 2),
        "periodic": dict(schedule="periodic"),
    }
    variants = [Variant(label, changes, axes=dict(schedule=label)) for label, changes in kinds.items()]
    arm = dataclasses.replace(STUDY_ARM, schedule="constant", ema_decay=None)
    return Design("cosine draws better than a constant rate", variants, arm=arm)


def balance_design(budget: Budget) -> Design:
    """The same number of kanji, spread over the same radicals with growing imbalance."""
    variants = [Variant("balanced", {}, budget.data, axes=dict(ratio=1))]
    for ratio in (3, 10, 30):
        data = {"name": "imbalanced", "rule": budget.data, "ratio": float(ratio)}
        variants.append(Variant(f"imbalance {ratio}", {}, data, axes=dict(ratio=ratio)))
    contrasts = tuple(("balanced", f"imbalance {ratio}") for ratio in (10, 3, 30))
    return Design("balanced radicals draw better", variants, contrasts)


def position_design(budget: Budget) -> Design:
    """Radicals always on the left, or at the place of the classical radical."""
    variants = [
        Variant("radicals on the left", {}, budget.data, axes=dict(rule="left16")),
        Variant("radicals anywhere", {}, budget.of_rule("seed16", budget.per_radical), axes=dict(rule="seed16")),
    ]
    contrasts = (("radicals on the left", "radicals anywhere"),)
    return Design("radicals that keep their place are drawn better", variants, contrasts)


def targets_design(budget: Budget) -> Design:
    """Which layers a LoRA is put on."""
    kinds = ("cross-attention", "attention", "attention+feed-forward", "all")
    variants = [Variant("all layers" if kind == "all" else kind, dict(targets=kind)) for kind in kinds]
    contrasts = tuple((v.label, variants[0].label) for v in (variants[3], variants[1], variants[2]))
    return Design("more layers draw better than cross-attention alone", variants, contrasts)


def full_design(budget: Budget) -> Design:
    """A LoRA, or every weight; the latter also at a lower rate, which suits it better."""
    variants = [Variant("LoRA", {}, axes=dict(targets="all"))]
    for label, rate in (("every weight", 5e-4), ("every weight, LoRA's rate", STUDY_ARM.peak_lr)):
        variants.append(Variant(label, dict(targets="full", peak_lr=rate), axes=dict(targets="full", peak_lr=rate)))
    return Design("training every weight draws better than a LoRA", variants)


def article_design(budget: Budget) -> Design:
    """The article's settings and its code's, each at the article's rate and at the demo's; and the demo's arm."""
    names = "targets alpha batch peak_lr schedule velocity_weight min_snr_gamma ema_decay".split()
    # No warm-up for either: the code's 500 steps would be more than all that a study has.
    article, code = (
        {name: getattr(arm, name) for name in names} | {"warmup_steps": 0} for arm in (ARTICLE_ARM, REPO_ARM)
    )
    faster = dict(peak_lr=STUDY_ARM.peak_lr)
    kinds = {
        "article": article,
        "its code": code,
        "article, faster": article | faster,
        "its code, faster": code | faster,
    }
    variants = [Variant(label, changes, axes=dict(setting=label)) for label, changes in kinds.items()]
    variants.append(Variant("demo", {}, axes=dict(setting="demo")))
    # At the article's own rate neither draws anything within a study's budget.
    first = ("its code, faster", "article, faster")
    others = (("its code", "article"), ("demo", "article"), ("demo", "its code"))
    return Design("the article's code draws better than its text", variants, (first, *others))


def claims_design(budget: Budget) -> Design:
    """The article's four claims, each a contrast of one reference with an arm that differs in one setting."""
    half = budget.images_seen // 2
    usual = dict(rank=CLAIMS_ARM.rank, batch=CLAIMS_ARM.batch, images_seen=budget.images_seen, schedule="cosine")
    kinds: dict[str, dict[str, Any]] = {
        REFERENCE: {},
        "rank 4": dict(rank=4),
        "batch 1": dict(batch=1, warmup_steps=CLAIMS_ARM.batch * CLAIMS_ARM.warmup_steps),
        "half the images seen": dict(images_seen=half, warmup_steps=CLAIMS_ARM.warmup_steps // 2),
        "constant rate": dict(schedule="constant"),
    }
    variants = [
        Variant(label, changes, axes=usual | {name: changes[name] for name in usual.keys() & changes.keys()})
        for label, changes in kinds.items()
    ]
    # Below the rates of all nothing is drawn (the study `settings`); fewer weights bear more, small batches less.
    rates = {"rank 4": FINE_RATES[4:], "batch 1": FINE_RATES[:3]}
    return Design("each of the article's four choices draws better", variants, tuple(CLAIM_OF), CLAIMS_ARM, 4, rates)


DESIGNS: dict[str, Callable[[Budget], Design]] = {
    "rank": rank_design,
    "batch": batch_design,
    "epochs": epochs_design,
    "schedule": schedule_design,
    "balance": balance_design,
    "position": position_design,
    "targets": targets_design,
    "full": full_design,
    "article": article_design,
    "settings": settings_design,
    "claims": claims_design,
}


def make_study(name: str, scale: str = "full", seeds: Sequence[int] = ()) -> Study:
    """A study by name.

    Args:
        name: one of `DESIGNS`.
        scale: one of `BUDGETS`.
        seeds: in place of the scale's.
    Raises:
        ValueError: an unknown name or scale, or a seed twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"expected seeds that differ, got {', '.join(map(str, seeds))}")
    budget = lookup(BUDGETS, scale, "scale")
    design = lookup(DESIGNS, name, "study")(budget)
    design = design.claim_alone() if budget.claim_alone else design
    if budget.phase == "pilot":
        design = at_every_rate(design, budget.rates)
    elif budget.phase == "confirm" and (tuned := TUNED.get(f"{name}-{scale}")):
        design = at_tuned_rates(design, tuned) if budget.tuned_alone else with_tuned_rates(design, tuned)
    return Study(
        name=f"{name}-{scale}",
        claim=design.claim,
        arm=dataclasses.replace(design.arm, images_seen=budget.images_seen),
        variants=tuple(design.variants),
        seeds=tuple(seeds) or budget.seeds,
        contrasts=design.contrasts,
        data=budget.data,
        base=budget.base,
        prompts_per_radical=budget.prompts_per_radical,
        sampling=budget.sampling,
        checkpoints=budget.checkpoints,
        loss_images=budget.loss_images,
        phase="explore" if budget.phase == "confirm" and name not in (*CLAIMS, "claims") else budget.phase,
    )


def _at_rate(variant: Variant, rate: float, suffix: str) -> Variant:
    axes = dict(variant.changes if variant.axes is None else variant.axes)
    changes = {**variant.changes, "peak_lr": rate}
    axes |= {"setting": variant.label, "peak_lr": rate}
    return dataclasses.replace(variant, label=variant.label + suffix, changes=changes, axes=axes)


def at_every_rate(design: Design, rates: Sequence[float] = RATES) -> Design:
    """The pilot's design: every variant at each rate, and the contrasts at each that both variants have."""
    suffixes = {rate: f", rate {rate:.2g}" for rate in sorted({*rates, *itertools.chain(*design.rates.values())})}
    tried = {v.label: set(design.rates.get(v.label, rates)) for v in design.variants}
    variants = [_at_rate(v, rate, suffixes[rate]) for v in design.variants for rate in sorted(tried[v.label])]
    pairs = tuple(
        (a + suffix, b + suffix)
        for rate, suffix in suffixes.items()
        for a, b in design.pairs
        if rate in tried[a] & tried[b]
    )
    return dataclasses.replace(design, variants=variants, contrasts=pairs)


def with_tuned_rates(design: Design, tuned: Mapping[str, float]) -> Design:
    """Adds each variant that has a tuned rate again at that rate, and the same contrasts between these.

    Args:
        tuned: label -> rate; if none differs from the design's own, the design is returned unchanged.
    """
    if all(tuned.get(v.label) in (None, v.changes.get("peak_lr", design.arm.peak_lr)) for v in design.variants):
        return design
    variants = [_at_rate(v, tuned[v.label], TUNED_SUFFIX) for v in design.variants if v.label in tuned]
    further = tuple((a + TUNED_SUFFIX, b + TUNED_SUFFIX) for a, b in design.pairs if {a, b} <= tuned.keys())
    return dataclasses.replace(design, variants=[*design.variants, *variants], contrasts=design.pairs + further)


def at_tuned_rates(design: Design, tuned: Mapping[str, float]) -> Design:
    """The design with each variant at its tuned rate.

    Args:
        tuned: label -> rate.
    """
    changed = [dataclasses.replace(v, changes={**v.changes, "peak_lr": tuned[v.label]}) for v in design.variants]
    return dataclasses.replace(design, variants=changed)


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The rates that a pilot chooses: each variant's lowest within one standard error of the most hits.

    A higher rate gains nothing that the pilot can tell from chance, and is nearer to one that explodes.

    Args:
        table: of a pilot; hits are over all its seeds and prompts.
    Returns:
        One row a variant: setting, peak_lr, hits (share), inside (whether lower and higher rates were tried).
    Source: the one-standard-error rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.
    """
    final: Any = table.loc[table["final"]]
    rows = []
    for setting in final["setting"].unique():
        hits = final[final["setting"] == setting].groupby("peak_lr")["hit"]
        shares, most = hits.mean(), float(hits.mean().max())
        error = math.sqrt(most * (1 - most) / int(hits.size().loc[shares.idxmax()]))
        best, tried = float(shares.index[shares >= most - error].min()), [float(rate) for rate in shares.index]
        inside = min(tried) < best < max(tried)
        rows.append({"setting": setting, "peak_lr": best, "hits": float(shares.loc[best]), "inside": inside})
    return pd.DataFrame(rows)
