"""Exported files: diffusers and PEFT load them and draw the same pictures."""

import copy
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunError, RunFolder
from kanjilab.export.conversion import (
    LORA_FORMS,
    model_card,
    read_arm,
    to_comfyui,
    to_diffusers,
    to_kohya,
    to_peft,
    to_pipeline,
    write_card,
)
from kanjilab.export.hub_upload import push_to_hub
from kanjilab.export.lora_formats import read_lora
from kanjilab.export.release import Handover, hand_over
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, initial_noise, sample
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.loop import train
from tests.lora_stack import stack_of
from tests.tiny import tiny_encoded

ARMS = {
    "attention": Arm(rank=3, alpha=6, peak_lr=0.05, images_seen=5),
    "all": Arm(rank=4, alpha=2, rslora=True, targets="all", peak_lr=0.02, images_seen=5),
    "DoRA": Arm(rank=3, alpha=6, targets="all", dora=True, peak_lr=0.02, images_seen=5),
}


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Arms that are trained hard enough that their pictures are not the base's."""
    path = tmp_path_factory.mktemp("runs") / "run"
    for _ in train(base, tiny_encoded(base), list(ARMS.values()), path, checkpoints=1):
        pass
    return RunFolder.open(path)


@pytest.mark.parametrize("arm", [0, 1, 2], ids=list(ARMS))
def test_diffusers_loads_the_file_and_draws_the_same(folder, base, run, tmp_path, monkeypatch, arm):
    file = to_diffusers(run, 5, arm, tmp_path / "export")
    assert file == tmp_path / "export" / "pytorch_lora_weights.safetensors"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    options = dict(height=32, width=32, num_inference_steps=4, guidance_scale=3.0, output_type="latent")
    noise = initial_noise([1], (4, 8, 8))
    without = pipeline("queen", latents=noise, **options).images
    pipeline.load_lora_weights(file.parent)
    found = pipeline("queen", latents=noise, **options).images
    decoded, decode = [], base.decode
    monkeypatch.setattr(base, "decode", lambda latents: decoded.append(latents) or decode(latents))
    trainable = load_checkpoints(base, run, [5], arm)
    images = sample(base, ["queen"], [1], Sampling(steps=4), trainable=trainable, size_px=32)
    assert_close(found, decoded[0], atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 0.05
    with torch.no_grad():
        grays = pipeline.vae.decode(found / pipeline.vae.config.scaling_factor).sample[:, 0]
    grays = ((grays / 2 + 0.5).clamp(0, 1) * 255).round().byte().numpy()
    assert np.abs(grays.astype(int) - images[0, 0].astype(int)).max() <= 1


@pytest.mark.parametrize("arm", [0, 1, 2], ids=list(ARMS))
def test_peft_loads_the_checkpoint_folder(base, run, arm):
    model = PeftModel.from_pretrained(copy.deepcopy(base.denoiser), run.checkpoint_path(5) / f"arm_{arm}")
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 24, generator=generator)
    timesteps = torch.tensor([10, 800])
    trainable = load_checkpoints(base, run, [5], arm)
    with torch.no_grad():
        plain = base.denoiser(noisy, timesteps, text).sample
        expected = model(noisy, timesteps, text).sample
        with trainable.attached(((0, 2),)):
            found = base.denoiser(noisy, timesteps, text).sample
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 0.05


def test_the_scale_is_folded_into_b(run, tmp_path):
    for arm, settings in enumerate(ARMS.values()):
        stored = load_file(run.checkpoint_path(5) / f"arm_{arm}" / "adapter_model.safetensors")
        exported = load_file(to_diffusers(run, 5, arm, tmp_path))
        assert len(exported) == len(stored)
        assert settings.scale == [2, 1, 2][arm]
        for name, value in exported.items():
            factor = settings.scale if "lora_B" in name else 1
            assert torch.equal(value, factor * stored[name.replace("unet.", "base_model.model.", 1)]), name


def test_the_header_says_what_it_is(run, tmp_path):
    with safe_open(to_diffusers(run, 5, 1, tmp_path), "pt") as file:
        header = file.metadata()
    assert header["base_identity"] == run.settings["base_identity"]
    assert (header["base"], header["data"]) == (run.settings["base"], run.settings["data"])
    assert (header["rank"], header["targets"], header["step"], header["images_seen"]) == ("4", "all", "5", "5")
    assert Arm.from_json(json.loads(header["settings"])) == ARMS["all"]
    assert "CC BY-SA 4.0" in header["licence"]


def test_what_cannot_be_written_is_refused(base, run, tmp_path):
    with pytest.raises(ValueError, match="has arms 0 to 2, got 3"):
        to_diffusers(run, 5, 3, tmp_path)
    with pytest.raises(RunError, match=r"no complete checkpoint of step 3, only \[0, 5\]"):
        to_diffusers(run, 3, 0, tmp_path)
    for _ in train(base, tiny_encoded(base), [Arm(targets="full", images_seen=1)], tmp_path / "whole", checkpoints=1):
        pass
    with pytest.raises(ValueError, match="arm 0 of .*whole trained the whole denoiser: it has no LoRA"):
        to_diffusers(RunFolder.open(tmp_path / "whole"), 1, 0, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_ruined_arm_is_refused(base, tmp_path):
    arm = dataclasses.replace(ARMS["attention"], peak_lr=1e30)
    step = list(train(base, tiny_encoded(base), [arm], tmp_path / "run", checkpoints=1))[-1].step
    run = RunFolder.open(tmp_path / "run")
    folder = run.checkpoint_path(step)
    files = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.stem != "manifest"
    }
    tensors = load_file(folder / "arm_0" / "adapter_model.safetensors")
    files["arm_0/adapter_model.safetensors"] = {name: value * torch.nan for name, value in tensors.items()}
    with run.lock():
        run.write_checkpoint(step + 1, files)
    with pytest.raises(ValueError, match=f"arm 0 of .* at step {step + 1}: .*lora_.* is not finite"):
        to_diffusers(run, step + 1, 0, tmp_path)


# ---------------------------------------------------------------------------------- further forms


@pytest.mark.parametrize("arm", [0, 1, 2], ids=list(ARMS))
@pytest.mark.parametrize("form", LORA_FORMS)
def test_every_form_comes_back_as_it_was_trained(base, run, tmp_path, form, arm):
    file = LORA_FORMS[form](run, 5, arm, tmp_path / form)
    trained, found = read_arm(run, 5, arm), read_lora(file, {"unet": base.denoiser})
    assert found.layers.keys() == trained.layers.keys()
    for name, low in trained.layers.items():
        again = found.layers[name]
        expected = low.scale * low.up @ low.down.flatten(1)
        assert_close(again.scale * again.up @ again.down.flatten(1), expected, msg=name)
        assert_close(again.magnitude, low.magnitude, atol=0, rtol=0, msg=name)
    assert found.metadata["data"] == run.settings["data"]


@pytest.mark.parametrize("arm", [1, 2], ids=["all", "DoRA"])
def test_a_file_that_was_read_draws_what_the_run_draws(base, run, tmp_path, arm):
    sampling = Sampling(steps=2)
    stack = stack_of(base.denoiser, read_lora(to_kohya(run, 5, arm, tmp_path), {"unet": base.denoiser}))
    images = sample(base, ["queen"], [1], sampling, trainable=stack, size_px=32)
    expected = sample(base, ["queen"], [1], sampling, trainable=load_checkpoints(base, run, [5], arm), size_px=32)
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("arm", [0, 1], ids=["attention", "all"])
def test_diffusers_draws_the_same_from_kohyas_names(folder, run, tmp_path, arm):
    """As it does from its own; only names that it knows, convolutions of SD 1.x among them."""
    file = to_comfyui(run, 5, arm, tmp_path)
    assert file.name == f"run-arm-{arm}-step-000005.safetensors"
    drawn = []
    for source in (to_diffusers(run, 5, arm, tmp_path / "own"), file):
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(source.parent, weight_name=source.name)
        options = dict(height=32, width=32, num_inference_steps=2, output_type="latent")
        drawn.append(pipeline("queen", latents=initial_noise([1], (4, 8, 8)), **options).images)
    assert_close(drawn[1], drawn[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arm", [1, 2], ids=["all", "DoRA"])
def test_peft_loads_the_exported_folder(base, run, tmp_path, arm):
    file = to_peft(run, 5, arm, tmp_path / "peft")
    stored = run.checkpoint_path(5) / f"arm_{arm}"
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (file.parent, stored)]
    assert configs[0] == configs[1]
    models = [PeftModel.from_pretrained(copy.deepcopy(base.denoiser), path) for path in (file.parent, stored)]
    for (name, found), expected in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(found, expected), name


# ---------------------------------------------------------------------------------- SD 3


@pytest.fixture(scope="module")
def sd3_run(sd3_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "sd3"
    arms = [Arm(rank=3, alpha=6, peak_lr=0.05, images_seen=5), Arm(rank=2, targets="all", peak_lr=0.02, images_seen=5)]
    arms += [Arm(rank=3, targets=targets, dora=True, peak_lr=0.05, images_seen=5) for targets in ("attention", "all")]
    for _ in train(sd3_base, tiny_encoded(sd3_base), arms, path, checkpoints=1):
        pass
    return RunFolder.open(path)


@pytest.mark.parametrize("arm", [0, 1, 2, 3], ids=["attention", "all", "attention, DoRA", "all, DoRA"])
def test_diffusers_loads_sd3_and_draws_the_same(sd3_folder, sd3_base, sd3_run, tmp_path, monkeypatch, arm):
    file = to_diffusers(sd3_run, 5, arm, tmp_path)
    if arm < 2:  # of a LoRA, the form that ComfyUI loads is diffusers' own here
        assert load_file(file).keys() == load_file(to_comfyui(sd3_run, 5, arm, tmp_path / "comfyui")).keys()
    with pytest.raises(ValueError, match="kohya's names for SD 3"):
        to_kohya(sd3_run, 5, arm, tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise([1], sd3_base.latent_shape(32))
    options = dict(height=32, width=32, num_inference_steps=3, guidance_scale=3.0, output_type="latent")
    # The pipeline's own three encoders, at the length that the base was told, have tests of their own.
    states = sd3_base.encode_text(["", "queen"])
    options |= dict(prompt_embeds=states.tokens[1:], negative_prompt_embeds=states.tokens[:1])
    options |= dict(pooled_prompt_embeds=states.pooled[1:], negative_pooled_prompt_embeds=states.pooled[:1])
    without = pipeline(latents=noise, **options).images
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    found = pipeline(latents=noise, **options).images
    decoded, decode = [], sd3_base.decode
    monkeypatch.setattr(sd3_base, "decode", lambda latents: decoded.append(latents) or decode(latents))
    trainable = load_checkpoints(sd3_base, sd3_run, [5], arm)
    sample(sd3_base, ["queen"], [1], Sampling("flow-euler", steps=3), trainable=trainable, size_px=32)
    assert_close(found, decoded[0], atol=1e-4, rtol=1e-4)
    assert (found - without).abs().max() > 0.05


def test_a_dora_of_sd3_has_the_names_that_comfyui_loads(sd3_base, sd3_run, tmp_path):
    file = to_comfyui(sd3_run, 5, 2, tmp_path)
    own = load_file(to_diffusers(sd3_run, 5, 2, tmp_path / "own"))
    assert load_file(file).keys() == {name.replace("lora_magnitude_vector", "dora_scale") for name in own}
    found, trained = read_lora(file, {"transformer": sd3_base.denoiser}).layers, read_arm(sd3_run, 5, 2).layers
    for name, low in trained.items():
        assert torch.equal(found[name].magnitude, low.magnitude), name
    with pytest.raises(ValueError, match="ComfyUI would give the rows of transformer.*linear each other's lengths"):
        to_comfyui(sd3_run, 5, 3, tmp_path)


# ---------------------------------------------------------------------------------- whole pipelines


def drawn_by(base, trainable=None):
    return sample(base, ["queen"], [1], Sampling(base.samplers[0], steps=2), trainable=trainable, size_px=32)[0, 0, 0]


@pytest.mark.parametrize("arm", [0, 1, 2], ids=list(ARMS))
def test_a_merged_pipeline_draws_what_the_adapter_drew(base, run, tmp_path, arm):
    path = to_pipeline(run, 5, arm, tmp_path / "merged")
    merged = load_base(path)
    changed = {
        name.removesuffix(".weight")
        for name, value in base.denoiser.state_dict().items()
        if not torch.equal(value, merged.denoiser.state_dict()[name])
    }
    assert changed == {name.removeprefix("unet.") for name in read_arm(run, 5, arm).layers}
    found, expected = drawn_by(merged), drawn_by(base, load_checkpoints(base, run, [5], arm))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert np.abs(found.astype(int) - drawn_by(base).astype(int)).max() > 5
    assert json.loads((path / "kanjilab.json").read_text())["rank"] == str(ARMS[list(ARMS)[arm]].rank)


def test_a_fully_trained_pipeline_of_sd3(sd3_base, tmp_path):
    arm = Arm(targets="full", images_seen=3, peak_lr=1e-2)
    for _ in train(sd3_base, tiny_encoded(sd3_base), [arm], tmp_path / "whole", checkpoints=1):
        pass
    run = RunFolder.open(tmp_path / "whole")
    whole = load_base(to_pipeline(run, 3, 0, tmp_path / "pipeline"))
    found, expected = drawn_by(whole), drawn_by(sd3_base, load_checkpoints(sd3_base, run, [3]))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert np.abs(found.astype(int) - drawn_by(sd3_base).astype(int)).max() > 5


@pytest.mark.parametrize("targets", ["none", "attention", "full"])
def test_a_pipeline_with_a_text_encoder_that_was_trained_whole(base, tmp_path, targets):
    arm = Arm(targets=targets, rank=2, text_encoder="full", text_encoder_lr=1e-2, images_seen=3, peak_lr=1e-2)
    data = dataclasses.replace(tiny_encoded(base), tokens=base.encode_text(tiny_encoded(base).captions).tokens.numpy())
    for _ in train(base, data, [arm], tmp_path / "run", checkpoints=1):
        pass
    run = RunFolder.open(tmp_path / "run")
    merged = load_base(to_pipeline(run, 3, 0, tmp_path / "merged"))
    for part, moves in (("text_encoder", True), ("denoiser", targets != "none")):
        before, after = (getattr(one, part).state_dict() for one in (base, merged))
        assert any(not torch.equal(value, after[name]) for name, value in before.items()) == moves, part
    found, expected = drawn_by(merged), drawn_by(base, load_checkpoints(base, run, [3]))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert np.abs(found.astype(int) - drawn_by(base).astype(int)).max() > 1
    card = model_card(run, 3, 0, file="")
    whole = {"attention": "a LoRA of rank 2 and ", "full": "every weight of the denoiser and "}.get(targets, "")
    assert f"prompts: {whole}every weight of the text encoder, trained" in card
    assert ("- lora" in card, "- full-finetune" in card) == (targets == "attention", targets != "attention")


def test_a_pipeline_is_written_whole_or_not_at_all(folder, base, run, sd3_folder, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists already"):
        to_pipeline(run, 5, 0, tmp_path / "there")
    other = copy_without(folder, tmp_path / "other", "down_blocks.1")
    with pytest.raises(ValueError, match=r"has no weight down_blocks.1.*: it is another base"):
        to_pipeline(run, 5, 0, tmp_path / "merged", base=other)
    with pytest.raises(FileNotFoundError, match="unet: expected weights as safetensors, got none"):
        to_pipeline(run, 5, 0, tmp_path / "merged", base=sd3_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "there"]


def copy_without(folder, target, prefix):
    """A pipeline folder whose denoiser lacks some weights."""
    shutil.copytree(folder, target)
    file = target / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if not name.startswith(prefix)}, file)
    return target


# ---------------------------------------------------------------------------------- card and Hub


def front_matter(card):
    """The card's YAML, of which only flat names, texts and lists are used."""
    lines = card.split("---\n")[1].splitlines()
    pairs = dict(line.split(": ", 1) for line in lines if ": " in line)
    return pairs | {"tags": [line[2:] for line in lines if line.startswith("- ")]}


def test_the_card_names_base_settings_and_licence(run, tmp_path):
    strip = tmp_path / "some.png"
    strip.write_bytes(b"picture")
    text = write_card(tmp_path, run, 5, 1, file="x.safetensors", strip=strip).read_text()
    facts = front_matter(text)
    assert (facts["license"], facts["library_name"]) == ("cc-by-sa-4.0", "diffusers")
    assert {"text-to-image", "lora"} < set(facts["tags"])
    assert "base_model" not in facts  # a folder of this machine is nobody else's model
    assert (tmp_path / "strip.png").read_bytes() == b"picture"
    assert "![Prompts in rows, checkpoints in columns](strip.png)" in text
    for row in (
        "| rank | `4` |",
        "| rslora | `True` |",
        "| images seen | `5` |",
        f"| data (hash) | `{run.settings['data']}` |",
    ):
        assert row in text
    assert "weight_name='x.safetensors'" in text and "CC BY-SA 4.0" in text


def with_settings(run, tmp_path, **changes):
    """The same run as another folder whose settings differ."""
    target = tmp_path / changes.pop("name", "other")
    shutil.copytree(run.path, target)
    (target / "settings.json").write_text(json.dumps(run.settings | changes))
    return RunFolder.open(target)


@pytest.mark.parametrize("form", LORA_FORMS)
def test_the_cards_code_loads_what_was_trained(folder, base, run, tmp_path, form):
    written = LORA_FORMS[form](run, 5, 0, tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", model_card(run, 5, 0, file=written.name), re.DOTALL)
    *calls, drawing = (
        code.replace(run.settings["base"], str(folder)).replace("<this folder>", str(tmp_path)).splitlines()
    )
    names: dict = {}
    exec("\n".join(calls), names)
    assert drawing.startswith('pipeline("queen"')
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 8, 24, generator=generator)
    timesteps, trainable = torch.tensor([10, 800]), load_checkpoints(base, run, [5], 0)
    with torch.no_grad():
        plain, found = (unet(noisy, timesteps, text).sample for unet in (base.denoiser, names["pipeline"].unet))
        with trainable.attached(((0, 2),)):
            expected = base.denoiser(noisy, timesteps, text).sample
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().max() > 0.05


def test_layers_that_kohyas_scripts_pass_over_are_told(run, tmp_path, caplog):
    to_kohya(run, 5, 0, tmp_path)
    assert not caplog.messages
    to_kohya(run, 5, 1, tmp_path)
    (said,) = caplog.messages
    assert "pass over 4 layers of it (conv_in, conv_out, time_embedding.linear_1, time_embedding.linear_2)" in said


def test_the_card_of_a_dora_says_who_draws_it(run):
    card = model_card(run, 5, 2, file="x.safetensors")
    assert "a DoRA of rank 3" in card and "| dora | `True` |" in card and "ComfyUI/pull/15458" in card
    assert "15458" not in model_card(run, 5, 2, file="")  # a whole pipeline has no such trouble
    assert "DoRA" not in model_card(run, 5, 1, file="x.safetensors")


def test_a_known_base_is_named_as_the_hub_does(run, tmp_path):
    card = model_card(with_settings(run, tmp_path, base="sd14"), 5, 0, file="x")
    assert front_matter(card)["base_model"] == '"CompVis/stable-diffusion-v1-4"'
    assert "from_pretrained('CompVis/stable-diffusion-v1-4')" in card


def test_names_from_outside_stay_text(run, tmp_path):
    evil = with_settings(run, tmp_path, name="<img src=x onerror=y> [a](b)", base="`|<script>`\nlicense: mit")
    card = model_card(evil, 5, 0, file="")
    assert "\n# \\<img src=x onerror=y\\> \\[a\\]\\(b\\)\n" in card
    assert front_matter(card)["license"] == "cc-by-sa-4.0"
    assert "\nlicense: mit" not in card.split("---\n")[2]
    for line in card.splitlines():
        if "<script>" in line:
            assert line.count("`") == 2 and "`'¦<script>' license: mit`" in line


class Hub:
    """A stand-in that notes what it is asked."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], options["folder_path"], options["allow_patterns"]))


def test_a_folder_is_put_onto_the_hub(run, tmp_path):
    hub, out = Hub(), tmp_path / "out"
    file = to_comfyui(run, 5, 0, out)
    with pytest.raises(ValueError, match="expected README.md and .safetensors, got"):
        push_to_hub(out, "me/kanji", [file], api=hub)
    ours = [file, write_card(out, run, 5, 0, file=file.name)]
    with pytest.raises(ValueError, match="expected owner/name, got 'kanji'"):
        push_to_hub(out, "kanji", ours, api=hub)
    assert hub.calls == []
    (out / "secret.env").touch()  # a user's own, which stays here
    assert push_to_hub(out, "me/kanji", ours, api=hub) == "https://huggingface.co/me/kanji"
    assert hub.calls == [
        ("create", "me/kanji", {"private": True, "exist_ok": True}),
        ("upload", "me/kanji", str(out), [file.name, "README.md"]),
    ]
    (out / "optimizer.bin").touch()
    with pytest.raises(ValueError, match="no pickle is published, got optimizer.bin"):
        push_to_hub(out, "me/kanji", [*ours, out / "optimizer.bin"], api=hub)


def test_a_card_replaces_no_other_readme(run, tmp_path):
    out = tmp_path / "out"
    hand_over(run, 5, 0, out, Handover(card=True))
    hand_over(run, 5, 0, out, Handover(card=True))  # its own it does
    (out / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a card of kanjilab"):
        hand_over(run, 5, 0, out, Handover(card=True))
    assert (out / "README.md").read_text() == "mine"


def test_a_card_says_that_the_text_encoder_has_a_lora(run, tmp_path):
    arms = [Arm(text_encoder="lora", rank=2).to_json(), *run.settings["arms"][1:]]
    card = model_card(with_settings(run, tmp_path, arms=arms), 5, 0, file="x")
    assert "| text_encoder | `lora` |" in card
