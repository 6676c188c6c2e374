"""Did a training explode, and what to try: rate, gradient norm, size of the update and samples, step by step.

A run's log tells all of it. A *spike* is a gradient norm far above its running median; a *rising phase* is a stretch in
which the rate grows again after it had fallen, as `periodic` does by design: the likely cause of the "phases of
exploding gradients" that were reported of SimpleTuner's cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.viz.charts import DOTS_PER_INCH, FAINT, INK, PALETTE, SOFT, arm_values, font_families

WINDOW = 25  # records before one, whose median it is measured against
FEWEST = 5  # of them, before anything is called a spike
SPIKE = 4.0  # medians
GROWTH = 1.5  # of the loss above its best level, or of the update within a tenth of the training
MOST_SAMPLES = 10


@dataclass(frozen=True)
class Diagnosis:
    """What one arm's log shows.

    Attributes:
        arm: its settings.
        steps: (N,) int, of the records.
        rate, gradient_norm, update_norm, loss: (N,) float, NaN where nothing was logged.
        median: (N,) float, the gradient norm's running median before each record.
        spikes: (S,) int, rows of the records whose gradient norm is a spike.
        rising: first and last step of each rising phase.
        stopped: why the arm stopped early, or None.
    """

    arm: Arm
    steps: np.ndarray
    rate: np.ndarray
    gradient_norm: np.ndarray
    update_norm: np.ndarray
    loss: np.ndarray
    median: np.ndarray
    spikes: np.ndarray
    rising: tuple[tuple[int, int], ...]
    stopped: str | None

    @property
    def spikes_while_rising(self) -> int:
        """How many spikes are in a rising phase."""
        return sum(any(first <= step <= last for first, last in self.rising) for step in self.steps[self.spikes])


def running_median(values: np.ndarray) -> np.ndarray:
    """Median of the finite values among the `WINDOW` before each one.

    Args:
        values: (N,) float.
    Returns:
        (N,) float; NaN where fewer than five are known.
    """
    earlier = pd.Series(np.where(np.isfinite(values), values, np.nan)).shift(1)
    return earlier.rolling(WINDOW, min_periods=FEWEST).median().to_numpy()


def find_spikes(values: np.ndarray, factor: float = SPIKE) -> np.ndarray:
    """Where a value is far above the running median, or no number at all.

    Args:
        values: (N,) float.
        factor: in medians.
    Returns:
        (S,) int, ascending.
    """
    median = running_median(values)
    return np.flatnonzero(np.isfinite(median) & (~np.isfinite(values) | (values > factor * median)))


def rising_phases(steps: np.ndarray, rate: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Stretches in which the rate grows after it had fallen; a warm-up is none of them.

    Args:
        steps, rate: (N,) each.
    Returns:
        First and last step of each.
    """
    known = np.isfinite(rate)
    steps, rate = steps[known], rate[known]
    change = np.diff(rate)
    growing = (change > 0) & (np.cumsum(change < 0) > 0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], growing, [False]]).astype(int)))
    return tuple((int(steps[first]), int(steps[last])) for first, last in zip(edges[::2], edges[1::2], strict=True))


def diagnose(run: RunFolder, arm: int = 0) -> Diagnosis:
    """Reads one arm's log.

    Args:
        arm: which arm of the run.
    Raises:
        ValueError: the run has no such arm, or has logged nothing yet.
    """
    settings, log = run.arm(arm), run.read_log()
    if log.empty:
        raise ValueError(f"{run.path} has logged nothing yet")
    return diagnose_log(log, settings, arm)


def diagnose_log(log: pd.DataFrame, settings: Arm, arm: int = 0) -> Diagnosis:
    """The same of a log as `RunFolder.read_log` gives it.

    Args:
        log: with the columns step, lr, gradient_norm, update_norm, loss and stopped.
        settings: of the arm.
        arm: its place in the lists.
    """
    steps = log["step"].to_numpy(int)
    columns = {name: arm_values(log, name)[:, arm] for name in ("lr", "gradient_norm", "update_norm", "loss")}
    reason = log["stopped"].iloc[-1][arm]
    if reason is None:  # an arm at its end, while others go on, leaves blanks: no spikes
        kept = np.isfinite(columns["gradient_norm"])
    else:
        kept = slice(int(np.flatnonzero([entry[arm] is not None for entry in log["stopped"]])[0]) + 1)
    steps, columns = steps[kept], {name: values[kept] for name, values in columns.items()}
    norms = columns["gradient_norm"]
    return Diagnosis(
        arm=settings,
        steps=steps,
        rate=columns["lr"],
        gradient_norm=norms,
        update_norm=columns["update_norm"],
        loss=columns["loss"],
        median=running_median(norms),
        spikes=find_spikes(norms),
        rising=rising_phases(steps, columns["lr"]),
        stopped=reason,
    )


def explain(found: Diagnosis) -> tuple[list[str], list[str]]:
    """What happened, and what to try: sentences."""
    happened = [f"It stopped early: {found.stopped}."] if found.stopped else []
    for about in (_about_spikes, _about_clipping, _about_update, _about_loss):
        happened += about(found)
    if not happened:
        return ["Nothing here looks like an explosion."], []
    return happened, _advice(found)


def _about_spikes(found: Diagnosis) -> list[str]:
    count = len(found.spikes)
    if not count:
        return []
    times, first = f"{count} time{'s' if count > 1 else ''}", found.steps[found.spikes[0]]
    lines = [f"The gradient norm was over {SPIKE:g} times its running median {times}, first at step {first:,}."]
    if found.rising:
        lines.append(
            f"The rate rose again in {len(found.rising)} phases, from step {found.rising[0][0]:,} on; "
            f"{found.spikes_while_rising} of the spikes are in them."
        )
    return lines


def _about_clipping(found: Diagnosis) -> list[str]:
    share = float(np.mean(found.gradient_norm > found.arm.clip_norm))
    if share <= 0.5 or not len(found.spikes):
        return []
    return [f"Clipping at {found.arm.clip_norm:g} was at work in {share:.0%} of the logged steps: it hides the size."]


def _about_update(found: Diagnosis) -> list[str]:
    sizes, tenth = found.update_norm, max(1, len(found.steps) // 10)
    late = np.arange(len(sizes) // 4, len(sizes) - tenth)  # at first every update multiplies
    if not len(late):
        return []
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = sizes[late + tenth] / sizes[late]
    worst = int(np.argmax(np.where(np.isfinite(growth), growth, 0)))
    if not growth[worst] > GROWTH:
        return []
    start, end = found.steps[late[worst]], found.steps[late[worst] + tenth]
    return [f"The update grew {growth[worst]:.1f}-fold between steps {start:,} and {end:,}."]


def _about_loss(found: Diagnosis) -> list[str]:
    tenth = max(3, len(found.loss) // 10)
    levels = pd.Series(found.loss).rolling(tenth).median().to_numpy()
    if not np.isfinite(levels).any() or not levels[-1] > GROWTH * np.nanmin(levels):
        return []
    best = found.steps[int(np.nanargmin(levels))]
    return [f"The loss ended at {levels[-1]:.3g}, over its best level of {np.nanmin(levels):.3g} near step {best:,}."]


def _advice(found: Diagnosis) -> list[str]:
    arm, lines = found.arm, []
    while_rising = found.spikes_while_rising
    if while_rising and 2 * while_rising >= len(found.spikes):
        cause = f" (half a period is warmup_steps = {arm.warmup_steps:,})" if arm.schedule == "periodic" else ""
        lines.append(f"Take a schedule that does not rise again: schedule=cosine in place of {arm.schedule}{cause}.")
    lines.append(f"Lower the rate: peak_lr={arm.peak_lr / 3:.2g} in place of {arm.peak_lr:.2g}.")
    if not arm.warmup_steps:
        lines.append(f"Warm up: warmup_steps={max(1, int(found.steps[-1]) // 20):,}.")
    if arm.targets != "full" and arm.rank >= 128 and not arm.rslora and arm.scale >= 1:
        lines.append(f"Scale a high rank down: alpha={arm.rank // 4} at rank {arm.rank}.")
    if len(found.spikes):
        early = found.steps[found.spikes[0]]
        lines.append(f"Go back to a checkpoint before step {early:,}: its strip shows what was learned until then.")
    return lines


def stored_samples(run: RunFolder, arm: int = 0) -> tuple[list[int], np.ndarray] | None:
    """The first prompt's first picture at every checkpoint, where a strip of this arm was drawn before.

    Args:
        arm: which arm of the run.
    Returns:
        Steps, and (C, H, W) or (C, H, W, 3) uint8; or None.
    """
    names = [name for name in run.samples() if name.startswith("history_")]
    found = [(images, facts) for _, images, facts in run.sound_samples(names)]
    of_arm = [(facts["steps"], images[:, 0, 0]) for images, facts in found if facts.get("arm") == arm]
    return max(of_arm, key=lambda drawn: len(drawn[0]), default=None)  # some hold the last checkpoint alone


def draw_diagnosis(found: Diagnosis, samples: tuple[Sequence[int], np.ndarray] | None = None) -> Figure:
    """Samples, rate, gradient norm and size of the update over the same steps; spikes and rising phases marked.

    Args:
        found: of `diagnose`.
        samples: steps, and (C, H, W) or (C, H, W, 3) uint8, as from `stored_samples`.
    Returns:
        A figure.
    """
    figure = Figure(figsize=(7.2, 6.4 if samples else 5.4), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = ([0.9] if samples else []) + [1, 1.5, 1]
    axes = list(figure.subplots(len(ratios), 1, gridspec_kw={"height_ratios": ratios}))
    if samples:
        _draw_samples(axes.pop(0), found, *samples)
    rate, norm, size = axes
    for ax in axes:
        ax.sharex(rate)
        for number, (first, last) in enumerate(found.rising):
            label = "" if number else "rate rises again"
            ax.axvspan(first, last, color=PALETTE[5], alpha=0.18, linewidth=0, label=label)
    rate.plot(found.steps, found.rate, color=INK, linewidth=1.4)
    _draw_norm(norm, found)
    size.plot(found.steps, found.update_norm, color=INK, linewidth=1.4)
    for ax, label in zip(axes, ("rate", "gradient norm", "update ‖ΔW‖"), strict=True):
        ax.set_ylabel(label, color=INK, fontsize=9, fontfamily=list(font_families()))
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(SOFT)
        ax.grid(axis="y", color=FAINT, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(colors=SOFT, labelsize=8)
    figure.align_ylabels(axes)
    norm.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    norm.yaxis.set_minor_formatter(NullFormatter())
    size.set_xlabel("step", color=INK)
    size.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for ax in axes[:-1]:
        ax.tick_params(labelbottom=False)
    return figure


def _draw_norm(ax: Axes, found: Diagnosis) -> None:
    shown = np.isfinite(found.gradient_norm) & (found.gradient_norm > 0)
    ax.set_yscale("log")
    ax.plot(found.steps[shown], found.gradient_norm[shown], color=SOFT, linewidth=0.9)
    ax.plot(found.steps, found.median, color=PALETTE[2], linewidth=1.4, label="running median")
    ax.axhline(found.arm.clip_norm, color=SOFT, linewidth=0.8, linestyle=(0, (4, 2)), label="clipped above")
    top = np.nanmax(np.where(shown, found.gradient_norm, np.nan)) if shown.any() else 1.0
    heights = np.where(np.isfinite(found.gradient_norm), found.gradient_norm, top)[found.spikes]
    if len(found.spikes):
        ax.plot(found.steps[found.spikes], heights, "v", color=PALETTE[1], markersize=6, label="spike")
    ax.legend(loc="best", fontsize=7.5, frameon=False, ncols=2, prop={"family": list(font_families()), "size": 7.5})


def _draw_samples(ax: Axes, found: Diagnosis, steps: Sequence[int], images: np.ndarray) -> None:
    """Side by side in the order of steps, each with its step: early checkpoints are too close for a true axis."""
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_SAMPLES)).round().astype(int))
    ax.axis("off")
    for place, index in enumerate(chosen):
        ax.imshow(images[index], extent=(place + 0.03, place + 0.97, 0.03, 0.97), cmap="gray", vmin=0, vmax=255)
        spiked = any(steps[index - 1] < step <= steps[index] for step in found.steps[found.spikes]) if index else False
        color = PALETTE[1] if spiked else SOFT
        ax.text(place + 0.5, 1.08, f"{steps[index]:,}", ha="center", fontsize=7.5, color=color)
    ax.set(xlim=(0, MOST_SAMPLES), ylim=(0, 1.35), aspect="equal")
