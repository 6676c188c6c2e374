"""What a LoRA file says beside its tensors: alphas, and what PEFT was asked to do when it was trained."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanjilab.core.outside_files import json_object, read_json_object

PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
DIFFUSERS_METADATA = "lora_adapter_metadata"
PATTERN = re.compile(r"[\w.*\\^$|-]{1,200}")  # of a layer's name; what can take for ever has brackets or braces
PATTERN_STARS = 2
# Ways to begin that leave the base's weights as they are.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Keys of a configuration that are read here, and those that do not change what a trained adapter draws.
READ = {"lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "peft_type", "init_lora_weights", "bias"}
WITHOUT_EFFECT = {
    *("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "inference_mode", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("task_type", "megatron_core", "qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying"),
}


@dataclass(frozen=True)
class Alpha:
    """How a file scales a layer beside its tensors; without an alpha the scale is 1, as all loaders take it."""

    value: float | None = None
    rslora: bool = False

    def scale(self, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) with rslora."""
        return 1.0 if self.value is None else self.value / (math.sqrt(rank) if self.rslora else rank)


class FileAlphas:
    """Alphas from PEFT's adapter_config.json beside the file, or from the header that diffusers writes.

    Raises of the constructor:
        ValueError: what is there is no configuration, or asks for what is not read here.
    """

    def __init__(self, file: Path, metadata: Mapping[str, str]):
        beside = file.with_name(PEFT_CONFIG)
        self.source = file
        self.config: dict[str, Any] = {}
        if file.name == PEFT_FILE and os.path.lexists(beside):
            self.config = read_json_object(beside)
            _refuse_unread(beside, self.config)
        self.packed = json_object(file, metadata.get(DIFFUSERS_METADATA, "{}"))

    def _value(self, part: str, name: str) -> Any:
        return self.config.get(name, self.packed.get(f"{part}.{name}"))

    def dora(self, part: str) -> bool:
        """Whether a DoRA is announced, every layer of which needs its magnitude."""
        return bool(self._value(part, "use_dora"))

    def of(self, part: str, layer: str) -> Alpha:
        """PEFT's rule: the first pattern that the layer's name ends with, else the common alpha."""
        patterns = self._value(part, "alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{self.source}: alpha_pattern: expected names and alphas, got {patterns!r:.80}")
        for pattern in patterns:
            if not PATTERN.fullmatch(pattern) or pattern.count("*") > PATTERN_STARS:
                raise ValueError(f"{self.source}: alpha_pattern: expected names of layers, got {pattern!r:.80}")
        match = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
        value = next(match, self._value(part, "lora_alpha"))
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{self.source}: lora_alpha: expected a number, got {value!r:.80}")
        return Alpha(value, bool(self._value(part, "use_rslora")))


def _refuse_unread(source: Path, config: Mapping[str, Any]) -> None:
    """Refuses what would make an adapter draw otherwise than its tensors say."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise ValueError(f"{source}: expected a LoRA, got peft_type {kind!r}")
    if (start := config.get("init_lora_weights")) not in PLAIN_STARTS:
        raise ValueError(
            f"{source}: init_lora_weights {start!r} changes the base's own weights when it is loaded, which is not "
            "done here. Convert it with PEFT: save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
        )
    if (bias := config.get("bias", "none")) != "none":
        raise ValueError(f"{source}: expected bias 'none', got {bias!r}: trained biases are not read")
    if unread := sorted(key for key, value in config.items() if value and key not in READ | WITHOUT_EFFECT):
        asked = ", ".join(f"{key} {config[key]!r:.40}" for key in unread)
        raise ValueError(f"{source}: a plain LoRA is read, and this asks for {asked}: merge it with PEFT first")
