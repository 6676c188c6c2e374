"""What a training costs on this machine: seconds and bytes, measured on a few steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from kanjilab.core.config import Arm


@dataclass(frozen=True)
class Cost:
    """What a training takes.

    Attributes:
        steps: of the longest arm.
        images: of all arms.
        seconds_per_step: of all arms together, measured; None where nothing was measured.
        peak_gb: gigabytes that were held meanwhile.
    """

    steps: int
    images: int
    seconds_per_step: float | None = None
    peak_gb: float | None = None

    @classmethod
    def of(cls, arms: Sequence[Arm], training_images: int) -> "Cost":
        """The part that needs no measuring."""
        steps = [arm.total_steps(training_images) for arm in arms]
        images = sum(count * arm.images_per_step for count, arm in zip(steps, arms, strict=True))
        return cls(max(steps), images)

    def __str__(self) -> str:
        text = f"{self.steps:,} steps, {self.images:,} images"
        if self.seconds_per_step is not None:
            hours = self.steps * self.seconds_per_step / 3600
            duration = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
            text += f"; {duration} at the measured {self.seconds_per_step:.3g} s a step"
        if self.peak_gb is not None:
            text += f"; {self.peak_gb:.1f} GB held"
        return text
