"""What K arms train over one frozen base, part by part: its denoiser, its text encoder, its condition encoder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kanjilab.core.config import Arm
from kanjilab.models.adapters import TEXT, Layer, LoraPart, compute_dtype, target_layers, text_layers
from kanjilab.models.conditioning import Conditioning, Prompts
from kanjilab.models.full import WholePart
from kanjilab.models.parameters import ArmSlices, FlatParameters, Slot, swapped_entries
from kanjilab.models.text_encoders import OneEncoder, TextEncoders

PREFIXES = {"denoiser": "", "text_encoder": TEXT, "condition_encoder": "condition_encoder."}


class TrainedPart(Protocol):
    """One part of a base as K arms train it: low-rank adapters (`LoraPart`) or every weight (`WholePart`).

    Attributes:
        shapes: of one arm's tensors, by name.
        exact: names of those that the model computes with in float32.
    """

    shapes: dict[str, tuple[int, ...]]
    exact: set[str]

    def initialise(self, rows: FlatParameters) -> None:
        """Sets the numbers that training begins with."""
        ...

    def attach(self, rows: FlatParameters) -> list[Slot]:
        """What takes the place of what in the module, while attached; may put other leaves into `rows.leaves`."""
        ...

    def state(self, k: int, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of one arm's tensors as checkpoints hold them; empty where the arm does not train the part.

        Args:
            views: name -> (K, *shape), the numbers of all arms.
        """
        ...

    def load_state(self, k: int, tensors: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; other names among the tensors are left alone."""
        ...

    def config(self, k: int) -> dict[str, Any]:
        """What is stored beside one arm's tensors."""
        ...

    def squared_update(self, views: Mapping[str, Tensor]) -> Tensor:
        """(K,) squared distance of each arm's weights from the base's."""
        ...


class Trainable:
    """The trained numbers of K arms over one frozen base.

    All numbers of an arm are one row of a (K, P) tensor, and the model computes with views of it. So clipping,
    averaging, checking and the optimizer work on rows, whatever is trained.

    Args:
        denoiser: frozen here, as are the encoders; what they hold is replaced only within `attached`.
        arms: which parts they train, and how: see `Arm.parts`.
        text_encoder: the base's, where it has one that stays loaded.
        condition_encoder: the base's, where it has one.
    Raises:
        ValueError: no arm; several arms that train the whole denoiser, or such a one beside LoRA arms; an arm that
            trains an encoder that the base lacks; or as for `LoraPart`.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        arms: Sequence[Arm],
        text_encoder: nn.Module | None = None,
        condition_encoder: nn.Module | None = None,
    ):
        if not arms:
            raise ValueError("expected at least one arm, got none")
        self.arms, self.denoiser = tuple(arms), denoiser.requires_grad_(False)
        self.modules = {"denoiser": denoiser, "text_encoder": text_encoder, "condition_encoder": condition_encoder}
        self.slices = {name: ArmSlices() for name in self.modules}
        self.size_px: int | None = None  # of the images that were trained on, where that is known
        self.adapted = {name: self._adapted(name) for name in self.modules}
        self.whole = {name: self._whole(name) for name in self.modules}
        self.parts: list[TrainedPart] = [part for part in (*self.adapted.values(), *self.whole.values()) if part]
        shapes = {name: shape for part in self.parts for name, shape in part.shapes.items()}
        exact = {name for part in self.parts for name in part.exact}
        dtype = torch.float32 if exact == shapes.keys() else compute_dtype(denoiser)
        device = next(denoiser.parameters()).device
        self.rows = FlatParameters(shapes, len(arms), device, dtype, exact)
        if device.type != "meta":  # there, only shapes are asked for
            for part in self.parts:
                part.initialise(self.rows)
        self.slots = {
            name: [slot for part in (self.adapted[name], self.whole[name]) if part for slot in part.attach(self.rows)]
            for name in self.modules
        }
        self.leaves = list(self.rows.leaves.values())

    def arms_that(self, how: str, part: str) -> list[int]:
        """Which arms train a part in this way: `frozen`, `lora` or `full`."""
        return [k for k, arm in enumerate(self.arms) if arm.parts[part] == how]

    @property
    def layers(self) -> dict[str, Layer]:
        """The layers that some arm adapts, by name."""
        return {name: layer for part in self.adapted.values() if part for name, layer in part.layers.items()}

    @property
    def trains_encoders(self) -> bool:
        """Whether some arm reads prompts in a way of its own."""
        return any(self.adapted[name] or self.whole[name] for name in ("text_encoder", "condition_encoder"))

    def _adapted(self, name: str) -> LoraPart | None:
        if not self.arms_that("lora", name):
            return None
        module = self._required(name)
        find = text_layers if name == "text_encoder" else target_layers
        every = name == "condition_encoder"  # the targets are the denoiser's; here all layers are adapted
        layers = [
            find(module, "all" if every else arm.targets) if arm.parts[name] == "lora" else {} for arm in self.arms
        ]
        return LoraPart(module, PREFIXES[name], layers, self.arms, self.slices[name])

    def _whole(self, name: str) -> WholePart | None:
        which = self.arms_that("full", name)
        if not which:
            return None
        if name == "denoiser" and len(which) < len(self.arms):
            raise ValueError("arms with targets 'full' cannot be trained beside LoRA arms")
        if name == "denoiser" and len(which) > 1:
            raise ValueError(f"full fine-tuning of the denoiser trains one arm at a time, got {len(which)}")
        return WholePart(self._required(name), PREFIXES[name], [arm.parts[name] == "full" for arm in self.arms])

    def _required(self, name: str) -> nn.Module:
        if (module := self.modules[name]) is None:
            why = {
                "text_encoder": "a text encoder can be trained where it is the base's only one and stays loaded, as in "
                "SD 1.x and pocket; SD 3 loads each of three for a while and keeps what it says",
                "condition_encoder": "this base has no condition encoder (see `with_condition_encoder`)",
            }
            raise ValueError(f"{why[name]}: expected {name} 'frozen', got {self.arms[0].parts[name]!r}")
        return module

    @contextmanager
    def attached(self, pairs: Sequence[tuple[int, int]] = ()) -> Iterator[None]:
        """Within it the denoiser computes with what is trained, and `condition` may be called.

        Args:
            pairs: (arm, count) for each stretch of the denoiser's batch, in order.
        """
        with torch.no_grad():
            self.rows.refresh()
        with self.slices["denoiser"].set_to(pairs), swapped_entries(self.slots["denoiser"]):
            yield

    def condition(
        self, text: TextEncoders, prompts: Prompts, states: Conditioning, pairs: Sequence[tuple[int, int]]
    ) -> Conditioning:
        """What each arm's encoders make of its prompts; within `attached`.

        Args:
            text: the base's text encoders.
            prompts: N, those of each arm side by side.
            states: of their captions, as the base's own text encoders read them.
            pairs: (arm, count) for each stretch of the prompts, in order.
        """
        for rows, encoder in self.encoder_calls("text_encoder", pairs, ("lora", "full")):
            assert isinstance(text, OneEncoder)
            found = text.encode([prompts.captions[row] for row in rows], encoder)
            states = states._replace(tokens=states.tokens.index_copy(0, torch.tensor(rows, device=found.device), found))
        if self.modules["condition_encoder"] is None:
            return states
        order, found = [], []
        for rows, encoder in self.encoder_calls("condition_encoder", pairs, ("frozen", "lora", "full")):
            index = torch.tensor(rows, device=states.tokens.device)
            found.append(encoder(states.select(index), prompts.select(rows).arrays))
            order += rows
        return Conditioning.cat(found).select(torch.tensor(order, device=states.tokens.device).argsort())

    def encoder_calls(
        self, name: str, pairs: Sequence[tuple[int, int]], ways: Sequence[str]
    ) -> Iterator[tuple[list[int], Callable[..., Any]]]:
        """Rows of a batch that go through an encoder together, and the encoder with what they have trained in it.

        Args:
            name: of the encoder.
            pairs: (arm, count) for each stretch of the batch, in order.
            ways: those of training it whose rows are wanted.
        """
        owners = [k for k, count in pairs for _ in range(count)]
        module, whole = self.modules[name], self.whole[name]
        for way in ways:
            arms = self.arms_that(way, name)
            for group in [[k] for k in arms] if way == "full" else [arms]:
                if rows := [row for row, k in enumerate(owners) if k in group]:
                    assert module is not None
                    slots = self.slots[name] if way == "lora" or len(self.arms) == 1 else []
                    stretches = [(k, count) for k, count in pairs if k in group]
                    with self.slices[name].set_to(stretches), swapped_entries(slots):
                        yield rows, whole.caller(group[0]) if way == "full" and whole else module

    def state(self, k: int, rows: Tensor | None = None) -> dict[str, Tensor]:
        """A copy of one arm's tensors: adapters in PEFT's names and shapes, whole parts in their own names.

        Args:
            rows: (K, P) values to read in place of the current ones (averaged weights, say).
        """
        views = self.rows.views(self.rows.values if rows is None else rows)
        return {name: value for part in self.parts for name, value in part.state(k, views).items()}

    def load_state(self, k: int, tensors: Mapping[str, Tensor]) -> None:
        """Sets one arm from what `state` gave.

        Raises:
            ValueError: a missing, unknown or misshapen tensor, by name.
        """
        expected = {name: value.shape for name, value in self.state(k).items()}
        found = {name: value.shape for name, value in tensors.items()}
        if expected != found:
            first, *others = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            raise ValueError(
                f"{1 + len(others)} tensors do not fit what this arm trains; {first}: "
                f"expected {expected.get(first)}, got {found.get(first)}"
            )
        views = self.rows.views(self.rows.values)
        for part in self.parts:
            part.load_state(k, tensors, views)

    def config(self, k: int) -> dict[str, Any]:
        """What is stored beside one arm's tensors: PEFT's `adapter_config.json`, and which parts are whole."""
        config: dict[str, Any] = {}
        for part in self.adapted.values():
            if part is not None:
                own = part.config(k)
                config = own | {"target_modules": sorted([*config.get("target_modules", []), *own["target_modules"]])}
        for name, part in self.whole.items():
            if part is not None and part.trains[k]:
                # Stored runs call the whole denoiser by the name of Stable Diffusion's.
                config |= {"trained": "unet"} | part.config(k) if name == "denoiser" else {name: "full"}
        return config

    def update_norm(self) -> Tensor:
        """(K,) distance of each arm's weights from the base's, over all layers."""
        views = self.rows.views(self.rows.values)
        return torch.stack([part.squared_update(views) for part in self.parts]).sum(dim=0).sqrt()
