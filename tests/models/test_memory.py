"""Estimates of memory against hand counts, and refusals that name what fits."""

import dataclasses

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from kanjilab.core.config import Arm
from kanjilab.models import cpu_layers, memory
from kanjilab.models.cpu_layers import PackedConv2d, PackedLinear, PackedPointwise, packed_kind
from kanjilab.models.memory import (
    KNOWN,
    Setting,
    architecture,
    memory_needed,
    meta_denoiser,
    require_memory,
    smaller_settings,
)
from kanjilab.models.trainable import Trainable

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
BIG = Setting((Arm(rank=768, batch=6),))


def numbers(module):
    return sum(value.numel() for value in module.parameters())


def test_full_size_denoisers_have_their_published_sizes():
    assert numbers(meta_denoiser(KNOWN["sd14"])) == 859_520_964
    assert round(numbers(meta_denoiser(KNOWN["sd35-medium"])) / 1e9, 1) == 2.2
    assert round(numbers(meta_denoiser(KNOWN["sd35-large"])) / 1e9, 1) == 8.1


def test_a_lora_of_rank_768_on_sd35_large_by_hand():
    stack = Trainable(meta_denoiser(KNOWN["sd35-large"]), [Arm(rank=768)])
    # 38 blocks of eight square matrices of 38 · 64 numbers; the last block's text has no output.
    assert len(stack.layers) == 38 * 8 - 1 == 303
    assert stack.rows.values.shape == (1, 303 * 768 * (2432 + 2432))
    assert stack.rows.values.numel() == 1_131_872_256
    medium = Trainable(meta_denoiser(KNOWN["sd35-medium"]), [Arm(rank=64)])
    assert len(medium.layers) == 24 * 8 - 1 + 13 * 4  # thirteen blocks attend to the image twice


def test_text_encoders_are_counted_right():
    clip = dict(vocab_size=49408, max_position_embeddings=77)
    large = clip | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    giant = clip | dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
    t5 = dict(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        assert numbers(CLIPTextModel(CLIPTextConfig(**large))) == memory.CLIP_L
        projected = CLIPTextModelWithProjection(CLIPTextConfig(**large, projection_dim=768))
        assert numbers(projected) == memory.CLIP_L_PROJECTED
        projected = CLIPTextModelWithProjection(CLIPTextConfig(**giant, projection_dim=1280))
        assert numbers(projected) == memory.CLIP_G
        assert numbers(T5EncoderModel(T5Config(**t5, feed_forward_proj="gated-gelu"))) == memory.T5_XXL


def test_parts_of_sd35_large_by_hand():
    needed = memory_needed(KNOWN["sd35-large"], dataclasses.replace(BIG, gradient_checkpointing=True))
    denoiser = meta_denoiser(KNOWN["sd35-large"])
    positions = 192 * 192 * 2432  # a buffer beside the weights
    assert needed.denoiser == 2 * (numbers(denoiser) + positions)
    # Values, gradients and two moments in fp32, leaves and passing gradients in bf16.
    assert needed.trained == 1_131_872_256 * (4 + 4 + 8 + 2 + 2)
    assert needed.text_encoders == 2 * memory.T5_XXL
    assert needed.autoencoder == 4 * 83_819_683
    # Each of 38 blocks keeps its inputs: six images' 64 image and 154 text positions, and one vector, in bf16.
    inputs = 38 * 6 * (64 + 154) * 2432 * 2 + 6 * 2432 * 2
    assert inputs < needed.activations < 4 * inputs
    assert needed.training == needed.denoiser + needed.trained + needed.activations + needed.autoencoder
    assert needed.encoding == needed.denoiser + needed.autoencoder + needed.text_encoders
    assert needed.peak == needed.training
    assert memory_needed(KNOWN["sd35-large"], BIG).activations > 5 * needed.activations


def test_what_each_setting_costs(folder, sd3_folder):
    for name in (folder, sd3_folder):
        of = architecture(name)
        small = Setting((Arm(rank=2),), "fp32")
        needed = memory_needed(of, small, 32)

        def changed(of=of, small=small, **values):
            return memory_needed(of, dataclasses.replace(small, **values), 32)

        count = Trainable(meta_denoiser(of), small.arms).rows.values.numel()
        assert needed.trained == 20 * count
        assert changed(arms=(Arm(rank=2, ema_decay=0.9),)).trained == 24 * count
        assert changed(arms=(Arm(rank=2), Arm(rank=1))).trained == 2 * 20 * count  # padded to the larger rank
        doras = Trainable(meta_denoiser(of), [Arm(rank=2, dora=True)])
        outputs = sum(layer.out_features for layer in doras.layers.values())
        assert changed(arms=(Arm(rank=2, dora=True),)).trained == 20 * (count + outputs)
        assert changed(arms=(Arm(targets="full"),)).trained == 24 * numbers(meta_denoiser(of))
        assert changed(precision="bf16").denoiser * 2 == needed.denoiser
        assert (
            changed(precision="4bit").denoiser < changed(precision="8bit").denoiser < changed(precision="bf16").denoiser
        )
        assert changed(arms=(Arm(rank=2, batch=8),)).activations == pytest.approx(8 * needed.activations, rel=0.1)
        assert changed(gradient_checkpointing=True).activations < needed.activations


@pytest.mark.parametrize("name", ["folder", "sd3_folder"])
@pytest.mark.parametrize(("targets", "dora"), [("attention", False), ("all", False), ("all", True)])
def test_activations_are_those_of_a_real_step(request, name, targets, dora):
    """The bytes that torch keeps for the backward pass of the model itself, on the CPU."""
    from kanjilab.models.loading import load_base
    from tests.tiny import tiny_encoded

    base = load_base(request.getfixturevalue(name))
    data, arms = tiny_encoded(base), (Arm(targets=targets, rank=2, batch=4, dora=dora),)
    trainable = Trainable(base.denoiser, arms)
    known = {value.untyped_storage().data_ptr() for value in (*base.denoiser.parameters(), *base.denoiser.buffers())}
    known |= {value.untyped_storage().data_ptr() for value in trainable.leaves}
    kept = {}

    def keep(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    latents = torch.from_numpy(data.mean[:4])
    text = data.text(data.caption[:4], CPU)
    with trainable.attached(((0, 4),)), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        base.denoise(latents, base.model_timestep(torch.arange(4)), text)
    measured = sum(size for size, _ in kept.values())
    estimate = memory_needed(architecture(base.name), Setting(arms, "fp32"), 32).activations
    assert estimate == pytest.approx(measured, rel=0.25)


def test_a_refusal_names_the_nearest_setting_that_fits():
    assert require_memory("sd35-large", BIG, CUDA, available=80 * 10**9).peak < 80e9
    with pytest.raises(ValueError) as refusal:
        require_memory("sd35-large", BIG, CUDA, available=40 * 10**9)
    text = str(refusal.value)
    assert text.startswith("sd35-large: this training needs ")
    assert "40.0 GB are free on cuda. With gradient checkpointing it needs 39.6 GB" in text
    with pytest.raises(ValueError, match="No setting of this base fits"):
        require_memory("sd35-large", BIG, CPU, available=10**9)


def test_settings_become_smaller_step_by_step():
    setting = Setting((Arm(rank=4, batch=6), Arm(rank=4, alpha=2.0)), "fp32")
    told = [what for what, _ in smaller_settings(setting, CUDA)]
    assert told[0] == "gradient checkpointing"
    assert told[1] == "gradient checkpointing, precision bf16"
    assert told[3] == "gradient checkpointing, precision bf16, batch 1 with accumulation 6"
    assert told[5] == "gradient checkpointing, precision 4bit, batch 1 with accumulation 6"
    assert told[6].endswith("one arm at a time")
    assert [what.rsplit(", ")[-1] for what in told[7:]] == ["a LoRA of rank 2", "a LoRA of rank 1"]
    for _, smaller in smaller_settings(setting, CUDA):
        assert smaller.arms[0].images_per_step == 6  # another memory, the same training
    assert not any("bit" in what for what, _ in smaller_settings(Setting(setting.arms), CPU))
    with_dora = (setting.arms[0], dataclasses.replace(setting.arms[1], dora=True))
    assert not any("bit" in what for what, _ in smaller_settings(Setting(with_dora), CUDA))
    whole = [what for what, _ in smaller_settings(Setting((Arm(targets="full"),)), CUDA)]
    assert whole[1].endswith("a LoRA of rank 128 on attention in place of the whole denoiser")


def test_free_memory_is_what_the_system_says():
    assert 10**8 < memory.free_bytes(CPU) < 10**14


def test_free_memory_is_no_more_than_control_groups_leave(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.write_text("9:name=systemd:/\n0::/slice/unit\n")
    monkeypatch.setattr(memory, "OWN_GROUP", own)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    unlimited = memory.free_bytes(CPU)
    for name, limit, used, cache in (("slice", "5000", 4500, 100), ("slice/unit", "max", 4000, 900)):
        group = tmp_path / "groups" / name
        group.mkdir(parents=True)
        for file, content in dict(max=limit, current=used, stat=f"anon 7\ninactive_file {cache}").items():
            (group / f"memory.{file}").write_text(f"{content}\n")
    assert unlimited > 10**8 and memory.free_bytes(CPU) == 5000 - 4500 + 100
    (tmp_path / "groups/slice/unit/memory.max").write_text("4950\n")
    assert memory.free_bytes(CPU) == 600
    (tmp_path / "groups/slice/unit/memory.max").write_text("3000\n")
    assert memory.free_bytes(CPU) == 0


def test_packed_layers_are_counted_where_they_are_held(monkeypatch):
    monkeypatch.setattr(cpu_layers, "computes_bf16", lambda: True)
    setting = Setting((Arm(rank=4),), "bf16")
    plain, packed = (memory_needed(KNOWN["sd14"], setting, device=torch.device(name)) for name in ("cuda", "cpu"))
    wide = [layer for layer in meta_denoiser(KNOWN["sd14"]).modules() if packed_kind(layer)]
    expected = 4 * sum(layer.weight.numel() for layer in wide)
    kinds = [packed_kind(layer) for layer in wide]
    assert [kinds.count(kind) for kind in (PackedLinear, PackedPointwise, PackedConv2d)] == [93, 22, 50]
    assert packed.denoiser - plain.denoiser == expected
    fp32 = Setting((Arm(rank=4),), "fp32")
    assert memory_needed(KNOWN["sd14"], fp32, device=torch.device("cpu")) == memory_needed(KNOWN["sd14"], fp32)
    monkeypatch.setattr(cpu_layers, "computes_bf16", lambda: False)
    assert memory_needed(KNOWN["sd14"], setting, device=torch.device("cpu")) == memory_needed(KNOWN["sd14"], fp32)
