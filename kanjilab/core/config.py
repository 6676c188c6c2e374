"""The settings of a training: frozen, checked when made, and identified by the hash of their contents."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import Any, Self, get_type_hints

TARGETS = ("cross-attention", "attention", "attention+feed-forward", "all", "full")
UNTRAINED = "none"  # in place of targets: the denoiser stays frozen
WAYS = ("frozen", "lora", "full")  # to train an encoder
SCHEDULES = ("constant", "linear", "cosine", "cosine-restarts", "constant-cooldown", "periodic")
TIMESTEPS = ("uniform", "importance")
QUANTISED = ("8bit", "4bit")  # the frozen weights, through bitsandbytes on CUDA
DEFAULT_BASE = "pocket2"  # of what the package carries, the one that has never seen a kanji and learns them best
PRECISIONS = ("fp32", "bf16", *QUANTISED)
RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (  # NaN fits none of them
    ("targets", f"be one of {(*TARGETS, UNTRAINED)}", lambda value: value in (*TARGETS, UNTRAINED)),
    ("text_encoder condition_encoder", f"be one of {WAYS}", lambda value: value in WAYS),
    ("schedule", f"be one of {SCHEDULES}", lambda value: value in SCHEDULES),
    ("timesteps", f"be one of {TIMESTEPS}", lambda value: value in TIMESTEPS),
    ("rank batch accumulation cycles", "be a whole number from 1 to 65,536", lambda value: 1 <= value <= 2**16),
    ("warmup_steps", "be a whole number from 0 to 10^9", lambda value: 0 <= value <= 10**9),
    ("seed", "lie in [0, 2**63)", lambda value: 0 <= value < 2**63),
    ("peak_lr clip_norm epsilon", "be finite and > 0", lambda value: 0 < value < inf),
    ("epochs", "be > 0 and at most 10^9", lambda value: 0 < value <= 10**9),
    ("explosion_factor", "be finite and > 1", lambda value: 1 < value < inf),
    ("weight_decay", "be finite and >= 0", lambda value: 0 <= value < inf),
    ("caption_dropout beta1 beta2", "lie in [0, 1)", lambda value: 0 <= value < 1),
    ("cooldown_share", "lie in (0, 1]", lambda value: 0 < value <= 1),
    (
        "alpha min_snr_gamma text_encoder_lr",
        "be None or finite and > 0",
        lambda value: value is None or 0 < value < inf,
    ),
    ("images_seen", "be None or from 1 to 10^12", lambda value: value is None or 0 < value <= 10**12),
    ("array_dropout", "be None or lie in [0, 1)", lambda value: value is None or 0 <= value < 1),
    ("ema_decay", "be None or lie in (0, 1)", lambda value: value is None or 0 < value < 1),
)
# JSON says `unet` for `full`: runs and studies were stored under that name, and it is in their hashes.
SPELLED_IN_JSON = {"full": "unet"}
READ_FROM_JSON = {"unet": "full"}
# Settings that runs were stored without: where they are not used they are in no hash, so that those keep theirs.
ADDED_LATER = ("dora", "text_encoder", "condition_encoder", "array_dropout", "text_encoder_lr", "timesteps")


def settings_hash(contents: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an arm, or anything else, written as canonical JSON."""
    if isinstance(contents, Arm):
        contents = contents.to_json()
    canonical = json.dumps(contents, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def respelled(settings: Mapping[str, Any], spelling: Mapping[str, str]) -> dict[str, Any]:
    """Settings with `targets`, if they hold it, in another spelling.

    Args:
        settings: some or all settings of an arm.
        spelling: `SPELLED_IN_JSON` to write them, so that they keep their hash; `READ_FROM_JSON` to read them.
    """
    targets = settings.get("targets", "")
    return {**settings, "targets": spelling[targets]} if targets in spelling else dict(settings)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Arm:
    """One setting of an ablation: what is trained, how far, and how fast.

    The defaults are those of the article "Generative Kanji" (rank 64, batch 1, 8 epochs, 1e-4,
    cosine) but for targets and alpha: see `kanjilab.training.presets.ARTICLE_ARM`.

    Args:
        targets: which layers get a LoRA: `cross-attention` (a U-Net's attn2), `attention`,
            `attention+feed-forward`, `all` (convolutions included); or `full`, which trains every
            weight of the denoiser, U-Net or transformer, and no LoRA; or `none`, which leaves it frozen.
        rank: r >= 1; not used by `full`.
        alpha: numerator of the scale; None means alpha = rank (scale 1).
        rslora: scale alpha / sqrt(r) in place of alpha / r (arXiv:2312.03732).
        dora: train the length of each output's weights apart from their direction, which the LoRA turns
            (arXiv:2402.09353); not of `full`, and not over 8-bit or 4-bit weights.
        text_encoder: `frozen`; `lora`, a LoRA of the same kind on the attention of the base's one text encoder, and
            with `attention+feed-forward` or `all` on its feed-forward (not beside `full`); or `full`, every weight of
            it. Not of SD 3, which has three.
        condition_encoder: likewise of the encoder of what prompts carry beside text, where the base has one.
        peak_lr: the highest learning rate.
        text_encoder_lr: the highest rate of what is trained in the text encoder, which takes less; None for `peak_lr`.
        schedule: one of `SCHEDULES`; see `kanjilab.training.schedules.lr_factor`.
        warmup_steps: optimizer steps of linear warm-up; of `periodic` the half period, and no warm-up.
        cycles: of `cosine-restarts`.
        cooldown_share: of `constant-cooldown`, the last share of the steps in (0, 1].
        batch: images a micro-batch.
        accumulation: micro-batches an optimizer step.
        epochs: passes over the training images, fractions allowed.
        images_seen: a budget in images in place of epochs.
        caption_dropout: probability that an image is shown with the empty caption.
        array_dropout: probability that one of the arrays that its prompt carries is zeros, for each by itself; None for
            all of them with the caption.
        min_snr_gamma: weight the loss by min(SNR, gamma)/SNR; None for no weighting.
        velocity_weight: weight the loss as if the base predicted velocity, so that high noise, where the
            prompt decides, counts more.
        timesteps: how they are drawn: `uniform`, each as likely as any other; or `importance`, the likelier the more
            they weigh in the loss, and weighing as much less, so that the expected gradient is the same and its
            noise smaller; see `kanjilab.training.data_order.NoiseLevels`.
        ema_decay: average the weights; None for no averaging.
        clip_norm: the arm's gradient is scaled down to this norm.
        beta1, beta2, epsilon, weight_decay: AdamW's.
        explosion_factor: the arm stops when its gradient norm exceeds this many running medians.
        shuffled_captions: give every image another image's caption: a control for the effect of captions.
        seed: of initial weights, data order, timesteps, noise, caption dropout and shuffling.
    Raises:
        ValueError: a value outside its range, with what was expected and what came.
    """

    targets: str = "attention"
    rank: int = 64
    alpha: float | None = None
    rslora: bool = False
    dora: bool = False
    text_encoder: str = "frozen"
    condition_encoder: str = "frozen"
    peak_lr: float = 1e-4
    text_encoder_lr: float | None = None
    schedule: str = "cosine"
    warmup_steps: int = 0
    cycles: int = 1
    cooldown_share: float = 0.2
    batch: int = 1
    accumulation: int = 1
    epochs: float = 8.0
    images_seen: int | None = None
    caption_dropout: float = 0.1
    array_dropout: float | None = None
    min_snr_gamma: float | None = None
    velocity_weight: bool = False
    timesteps: str = "uniform"
    ema_decay: float | None = None
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    explosion_factor: float = 100.0
    shuffled_captions: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_types()
        for names, expected, fits in RANGES:
            for name in names.split():
                value = getattr(self, name)
                _require(fits(value), f"{name} must {expected}, got {value!r}")
        periodic = self.schedule == "periodic"
        _require(not periodic or self.warmup_steps > 0, "periodic takes warmup_steps as half period, expected >= 1")
        _require(not (self.dora and self.targets == "full"), "dora is of LoRA arms, got targets 'full'")
        for name in ("text_encoder", "condition_encoder"):
            lora_beside_full = self.targets == "full" and self.parts[name] == "lora"
            _require(not lora_beside_full, f"{name} 'lora' is of LoRA arms, got targets 'full'")
        trains = any(way != "frozen" for way in self.parts.values())
        _require(trains, "an arm must train something, got targets 'none' and frozen encoders")
        self._make_floats()

    def _check_types(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            fits = isinstance(value, kind | int if isinstance(0.0, kind) else kind)
            fits = fits and isinstance(value, bool) == (kind is bool)  # to Python, True is a number
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            _require(fits, f"{name} must be of type {expected}, got {value!r}")

    def _make_floats(self) -> None:
        """8 and 8.0 are one setting, and so must have one hash."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (float, float | None) and isinstance(value, int):
                object.__setattr__(self, field.name, float(value))

    @property
    def parts(self) -> dict[str, str]:
        """How each part of the base is trained: `frozen`, `lora` or `full`."""
        denoiser = {"full": "full", UNTRAINED: "frozen"}.get(self.targets, "lora")
        return {"denoiser": denoiser, "text_encoder": self.text_encoder, "condition_encoder": self.condition_encoder}

    @property
    def scale(self) -> float:
        """What multiplies B·A: alpha / r, or alpha / sqrt(r) with rslora."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (sqrt(self.rank) if self.rslora else self.rank)

    @property
    def images_per_step(self) -> int:
        """Images an optimizer step."""
        return self.batch * self.accumulation

    @property
    def step_shape(self) -> tuple[Any, ...]:
        """What the time and memory of a step depend on; `targets` as in JSON, for measured costs are stored by it."""
        stored = self.to_json()
        sizes = (stored["targets"], self.rank, self.batch, self.accumulation, self.ema_decay is None)
        encoders = [stored[name] for name in ("text_encoder", "condition_encoder") if name in stored]
        return *sizes, self.dora, "train_text_encoder" in stored, *encoders

    def total_steps(self, dataset_size: int) -> int:
        """Optimizer steps that cover the budget, given the number of training images; the last may go past it."""
        images = self.images_seen or round(self.epochs * dataset_size)
        return max(1, ceil(images / self.images_per_step))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON, in the words that stored runs have: see `SPELLED_IN_JSON`."""
        contents = respelled(dataclasses.asdict(self), SPELLED_IN_JSON)
        if self.text_encoder == "lora":  # the only way there was
            contents |= {"train_text_encoder": True, "text_encoder": "frozen"}
        unused = {field.name: field.default for field in dataclasses.fields(self) if field.name in ADDED_LATER}
        return {name: value for name, value in contents.items() if name not in unused or value != unused[name]}

    @classmethod
    def from_json(cls, contents: dict[str, Any]) -> Self:
        """The inverse of `to_json`; an unknown name is an error that says which.

        Raises:
            ValueError: a key that is no setting, or a value outside its range.
        """
        contents = respelled(contents, READ_FROM_JSON)
        if contents.pop("train_text_encoder", False):
            contents.setdefault("text_encoder", "lora")  # what was said besides counts
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(contents) - known):
            raise ValueError(f"unknown settings {unknown}; expected some of {sorted(known)}")
        return cls(**contents)
