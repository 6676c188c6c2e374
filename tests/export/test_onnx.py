"""ONNX: another runtime draws what torch draws."""

import dataclasses
import importlib.util
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.skeleton import pack_skeletons, skeleton_of_strokes, unpack_skeletons
from kanjilab.experiments.writing import WRITING, writing_prompt
from kanjilab.export import onnx_folder
from kanjilab.export.onnx_folder import base_to_onnx, run_to_onnx
from kanjilab.export.onnx_weights import store_weights
from kanjilab.export.release import Handover, hand_over
from kanjilab.models.diffusion import with_condition_encoder
from kanjilab.models.loading import load_base
from kanjilab.models.sampling import Sampling, initial_noise, sample
from kanjilab.models.skeleton_encoder import SkeletonEncoder
from kanjilab.models.text_encoders import OneEncoder
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.loop import train
from tests.tiny import save_tiny_calligraphy, tiny_encoded

DPM_SOLVER_WARNS = pytest.mark.filterwarnings("ignore:__array__ implementation")


class OnnxFolder:
    """Draws from an exported folder as its card says, with onnxruntime and diffusers' scheduler."""

    def __init__(self, path, tokenizer):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.path, self.tokenizer = path, tokenizer
        self.facts = json.loads((path / "kanjilab.json").read_text())
        files = sorted(path.glob("*.onnx"))
        self.parts = {file.stem: onnxruntime.InferenceSession(file, options) for file in files}

    def outputs(self, part, **inputs):
        known = {one.name for one in self.parts[part].get_inputs()}
        arrays = {name: np.asarray(value) for name, value in inputs.items() if name in known}
        names = [one.name for one in self.parts[part].get_outputs()]
        return dict(zip(names, map(torch.from_numpy, self.parts[part].run(None, arrays)), strict=True))

    def call(self, part, **inputs):
        (output,) = self.outputs(part, **inputs).values()
        return output

    def states(self, captions):
        length = self.facts["caption_tokens"]
        tokens = self.tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="np")
        return self.call("text_encoder", input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)

    def draw(self, base, prompt, seed, sampling):
        """Latents after each step."""
        states, scheduler = self.states(["", prompt]), sampling.scheduler(base)
        scheduler.set_timesteps(sampling.steps)
        latents = initial_noise([seed], tuple(self.facts["latent_shape"]))
        for timestep in scheduler.timesteps:
            timesteps = np.full(2, float(timestep), np.float32)
            empty, asked = self.call("denoiser", latents=latents.repeat(2, 1, 1, 1), timestep=timesteps, states=states)
            latents = scheduler.step(empty + sampling.guidance * (asked - empty), timestep, latents).prev_sample
            yield latents

    def write(self, base, prompt, seed, sampling):
        """Latents after each step, of a prompt with skeletons and an index."""
        states = self.states(["", "", prompt.text])
        lines = {name: unpack_skeletons(prompt.arrays[name]).astype(np.float32) for name in ("skeleton", "typed")}
        arrays = {name: np.stack([0 * one, one, one]) for name, one in lines.items()}
        index = int(prompt.arrays["index"])
        made = self.outputs("condition_encoder", states=states, **arrays, index=np.array([0, index, index]))
        tokens, scheduler = made.pop("tokens"), sampling.scheduler(base)
        scheduler.set_timesteps(sampling.steps)
        latents = initial_noise([seed], tuple(self.facts["latent_shape"]))
        for timestep in scheduler.timesteps:
            noisy, timesteps = latents.repeat(3, 1, 1, 1), np.full(3, float(timestep), np.float32)
            empty, led, full = self.call("denoiser", latents=noisy, timestep=timesteps, states=tokens, **made)
            guided = empty + sampling.array_guidance * (led - empty) + sampling.guidance * (full - led)
            latents = scheduler.step(guided, timestep, latents).prev_sample
            yield latents


def torch_latents(base, prompt, seed, sampling, size_px):
    drawn = []
    sample(base, [prompt], [seed], sampling, size_px=size_px, on_latents=lambda latents: drawn.append(latents.clone()))
    return drawn


def rewritten(path, target, weights):
    """A copy of a folder of fp32, whose weights are stored otherwise."""
    shutil.copytree(path, target)
    for file in target.glob("*.onnx"):
        model = onnx.load(file)
        store_weights(model, weights)
        onnx.save(model, file)
    return target


def denoiser_calls(base, count=3):
    """Inputs of a denoiser, of a batch that is not the exported example's."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, *base.latent_shape(32), generator=generator)
    return latents, torch.linspace(1, 990, count), torch.randn(count, *base.text.shape, generator=generator)


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "fp32"
    return OnnxFolder(base_to_onnx(base, path, "fp32", size_px=32), base.text.tokenizer)


@pytest.mark.parametrize("count", [1, 3])
def test_each_part_computes_what_torch_computes(base, exported, count):
    found = exported
    latents, timesteps, states = denoiser_calls(base, count)
    with torch.no_grad():
        expected = base.denoiser(latents, timesteps, states).sample
        images = base.vae.decode(latents).sample
    assert_close(
        found.call("denoiser", latents=latents, timestep=timesteps, states=states), expected, atol=1e-4, rtol=0
    )
    assert_close(found.call("decoder", latents=latents), images, atol=1e-4, rtol=0)
    captions = ["queen", "", "a mountain that is far too long for eight tokens"][:count]
    assert_close(found.states(captions), base.encode_text(captions).tokens, atol=1e-4, rtol=0)


@DPM_SOLVER_WARNS
def test_a_guided_drawing_is_the_same(base, exported):
    sampling = Sampling("dpm-solver++", 15, 5.0)
    expected = torch_latents(base, "queen", 1, sampling, 32)
    found = list(exported.draw(base, "queen", 1, sampling))
    assert len(found) == 15
    for step, (own, theirs) in enumerate(zip(found, expected, strict=True)):
        assert_close(own, theirs, atol=1e-3, rtol=0, msg=f"step {step}")


@DPM_SOLVER_WARNS
def test_the_packaged_writer_draws_the_same(tmp_path):
    """The denoiser's and the decoder's weights are fp16 in the package, so nothing is lost but of the text encoder."""
    base, sampling = load_base("writer"), Sampling("dpm-solver++", 15, 5.0)
    writer = OnnxFolder(base_to_onnx(base, tmp_path / "writer", "fp16"), base.text.tokenizer)
    prompt = "left: water, right: blue"
    states = base.encode_text(["", prompt])
    noisy, timesteps = initial_noise([1, 2], (4, 16, 16)), torch.tensor([500.0, 20.0])
    one = writer.call("denoiser", latents=noisy, timestep=timesteps, states=states.tokens)
    assert_close(one, base.denoise(noisy, timesteps, states), atol=1e-4, rtol=0)
    drawn, expected = (
        list(writer.draw(base, prompt, 0, sampling))[-1],
        torch_latents(base, prompt, 0, sampling, 128)[-1],
    )
    assert_close(drawn, expected, atol=1e-2, rtol=0)
    images = writer.call("decoder", latents=drawn / writer.facts["scaling_factor"] + writer.facts["shift_factor"])
    pixels = ((images[0, 0] + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(pixels - base.decode(expected)[0]).max() <= 2
    assert (pixels < 64).mean() > 0.05


STROKES = [[(22, 44), (106, 42)], [(64, 16), (65, 114)]]
LED_BY = {
    "lines that are followed": dict(skeleton=skeleton_of_strokes(STROKES)),
    "a typed character with its index": dict(typed=skeleton_of_strokes(STROKES), index=7),
}


@pytest.fixture(scope="module")
def calligraphy(tmp_path_factory):
    """The packaged base, and the paths of what is exported of it."""
    base, folder = load_base("calligraphy"), tmp_path_factory.mktemp("calligraphy")
    fp32 = base_to_onnx(base, folder / "fp32", "fp32")
    return base, {"fp32": fp32, "fp16": rewritten(fp32, folder / "fp16", "fp16")}


@DPM_SOLVER_WARNS
@pytest.mark.parametrize(("weights", "mean", "largest"), [("fp32", 1e-5, 1e-4), ("fp16", 2e-3, 5e-2)])
def test_the_packaged_calligraphy_writes_the_same(calligraphy, weights, mean, largest):
    """All weights but the text encoder's are fp16 in the package; guidance makes its error some ten times as large."""
    base, paths = calligraphy
    found, sampling = OnnxFolder(paths[weights], base.text.tokenizer), dataclasses.replace(WRITING, steps=4)
    assert found.facts["sampling"] == WRITING.to_json()
    assert found.facts["condition_encoder"]["characters"] == base.condition_encoder.characters
    last = []
    for seed, led_by in enumerate(LED_BY.values()):
        prompt = writing_prompt(base, "cursive script, brush", **led_by)
        expected = torch_latents(base, prompt, seed, sampling, 128)
        every = list(found.write(base, prompt, seed, sampling))
        error = (torch.cat(every) - torch.cat(expected)).abs()
        assert error.mean() <= mean and error.max() <= largest
        last.append(expected[-1])
    blank = torch_latents(base, writing_prompt(base, "cursive script, brush"), 0, sampling, 128)[-1]
    assert all((latents - blank).abs().max() > 1 for latents in last), "the arrays change what is written"


@pytest.mark.parametrize("enters", ["hint", "tokens"])
def test_skeletons_enter_either_way(base, tmp_path, enters):
    led, rng = small_reader(base, enters), np.random.default_rng(0)
    found = OnnxFolder(base_to_onnx(led, tmp_path / "led", "fp32", size_px=32), base.text.tokenizer)
    skeleton, typed = rng.integers(0, 2, (2, 3, 32, 32)) > 0
    index, states = np.array([0, 2, 1]), led.encode_text(["queen", "", "water"])
    arrays = {name: torch.from_numpy(pack_skeletons(one)) for name, one in (("skeleton", skeleton), ("typed", typed))}
    with torch.no_grad():
        told = led.condition_encoder(states, arrays | {"index": torch.from_numpy(index)})
    lines = {"skeleton": np.float32(skeleton), "typed": np.float32(typed)}
    made = found.outputs("condition_encoder", states=states.tokens, **lines, index=index)
    assert_close(made["tokens"], told.tokens, atol=1e-4, rtol=0)
    assert ("hint" in made) == (enters == "hint") == (found.facts["condition_encoder"]["hint_shape"] is not None)
    latents, timesteps, _ = denoiser_calls(base)
    hint = {name: made[name] for name in made.keys() & {"hint"}}
    predicted = found.call("denoiser", latents=latents, timestep=timesteps, states=made["tokens"], **hint)
    expected = led.denoise(latents, timesteps, told)
    assert_close(predicted, expected, atol=1e-4, rtol=0)
    assert (expected - led.denoise(latents, timesteps, states)).abs().max() > 1e-3
    assert "`condition_encoder.onnx` gives `tokens`" in (found.path / "README.md").read_text()


def small_reader(base, enters):
    layer = base.first_layer
    shape = dict(width=base.text.shape[1], hint_px=4 * layer.stride[0], hint_channels=layer.out_channels)
    encoder = SkeletonEncoder(enters, "永国", **shape, size_px=32)
    torch.nn.init.normal_(encoder.skeleton.last.weight, generator=torch.Generator().manual_seed(0))
    return with_condition_encoder(base, encoder)


def test_what_a_hand_learned_is_exported_with_the_encoder_of_its_base(tmp_path):
    folder = save_tiny_calligraphy(tmp_path / "base")
    base = load_base(folder)
    arm = Arm(rank=4, alpha=2, peak_lr=0.02, images_seen=5)
    for _ in train(base, tiny_encoded(base), [arm], tmp_path / "run", checkpoints=1):
        pass
    run = RunFolder.open(tmp_path / "run")
    found = OnnxFolder(run_to_onnx(run, 5, 0, tmp_path / "onnx", "fp32"), base.text.tokenizer)
    (latents, timesteps, _), states = denoiser_calls(base), base.encode_text(["", "queen", "water"])
    lines = np.zeros((3, 32, 32), np.float32)
    made = found.outputs("condition_encoder", states=states.tokens, skeleton=lines, typed=lines, index=np.arange(3))
    with torch.no_grad(), load_checkpoints(base, run, [5]).attached(((0, 3),)):
        told = base.condition_encoder(states, {"index": torch.arange(3)})
        expected = base.denoise(latents, timesteps, told)
    predicted = found.call("denoiser", latents=latents, timestep=timesteps, states=made["tokens"], hint=made["hint"])
    assert_close(predicted, expected, atol=1e-3, rtol=0)
    assert (expected - base.denoise(latents, timesteps, told)).abs().max() > 0.02


def test_what_a_run_learned_is_in_the_weights(base, tmp_path):
    arm = Arm(rank=4, alpha=2, targets="all", peak_lr=0.02, images_seen=5)
    for _ in train(base, tiny_encoded(base), [arm], tmp_path / "run", checkpoints=1):
        pass
    run = RunFolder.open(tmp_path / "run")
    (path,) = hand_over(run, 5, 0, tmp_path / "onnx", Handover("onnx", weights="fp32"))
    found = OnnxFolder(path, base.text.tokenizer)
    latents, timesteps, states = denoiser_calls(base)
    with torch.no_grad():
        plain = base.denoiser(latents, timesteps, states).sample
        with load_checkpoints(base, run, [5]).attached(((0, 3),)):
            expected = base.denoiser(latents, timesteps, states).sample
    assert_close(
        found.call("denoiser", latents=latents, timestep=timesteps, states=states), expected, atol=1e-3, rtol=0
    )
    assert (expected - plain).abs().max() > 0.05
    assert found.facts["name"] == "run" and found.facts["facts"]["images_seen"] == "5"
    assert found.facts["size_px"] == run.size_px and "CC BY-SA" in (path / "README.md").read_text()


def test_the_description_holds_the_noise_schedule(base, exported):
    facts = exported.facts
    assert np.allclose(facts["schedule"]["alpha_bar"], base.alpha_bar.numpy(), atol=0, rtol=1e-6)
    assert facts["latent_shape"] == [4, 8, 8] and facts["caption_tokens"] == base.text.shape[0]
    assert facts["sampling"]["sampler"] == "dpm-solver++"


def test_sd1s_text_encoder_in_two_files(base, tmp_path, monkeypatch):
    """CLIP is called without a mask, and attends to what came before; over protobuf's limit weights are beside."""
    monkeypatch.setattr(onnx_folder, "LARGEST_FILE", 1000)
    config = CLIPTextConfig(
        vocab_size=99, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    clip = dataclasses.replace(base, text=OneEncoder(base.text.tokenizer, CLIPTextModel(config).eval()))
    found = OnnxFolder(base_to_onnx(clip, tmp_path / "clip", "fp32", size_px=32), base.text.tokenizer)
    captions = ["queen", "", "mountain"]
    assert_close(found.states(captions), clip.encode_text(captions).tokens, atol=1e-4, rtol=0)
    assert (found.path / "denoiser.onnx.data").stat().st_size > 100_000


# ---------------------------------------------------------------------------------- weights


def product_with(weight):
    """A model of one matrix, whose output for the identity is the matrix as it is computed with."""
    edge, width = weight.shape
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [edge, edge])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [edge, width])]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "one", inputs, outputs, [numpy_helper.from_array(weight, "weight")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def computed_with(model):
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.eye(session.get_inputs()[0].shape[0], dtype=np.float32)})[0]


def test_weights_are_rounded_by_the_step_of_their_form():
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    weight[3] = 0
    weight[:, 32:64] *= 100  # a group of its own, whose size is not the others' affair
    for form, bytes_each in (("fp16", 2), ("int8", 1 + 2 / 32)):
        model = product_with(weight)
        store_weights(model, form)
        assert model.ByteSize() == pytest.approx(weight.size * bytes_each, abs=500)
        found = computed_with(model)
        if form == "fp16":
            assert np.array_equal(found, weight.astype(np.float16).astype(np.float32))
        else:
            steps = np.abs(weight.reshape(-1, 32)).max(1, keepdims=True) / 127
            assert (np.abs(found - weight).reshape(-1, 32) <= 0.6 * steps + 1e-6).all()


def test_small_weights_stay_as_they_are():
    model = product_with(np.full((10, 10), 0.1, np.float32))
    store_weights(model, "int8")
    assert np.array_equal(computed_with(model), np.full((10, 10), 0.1, np.float32))


@pytest.mark.parametrize(("form", "tolerance"), [("fp16", 2e-3), ("int8", 5e-2)])
def test_a_denoiser_of_smaller_weights_is_near(base, exported, form, tolerance):
    model = onnx.load(exported.path / "denoiser.onnx")
    store_weights(model, form)
    names, tensors = ("latents", "timestep", "states"), denoiser_calls(base)
    inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    error = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    error -= exported.call("denoiser", **inputs).numpy()
    assert 1e-6 < np.abs(error).max() < tolerance


# ---------------------------------------------------------------------------------- what is refused


def test_what_cannot_be_written_is_refused(base, sd3_base, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="of a U-Net with one text encoder, not of Stable Diffusion 3"):
        base_to_onnx(sd3_base, tmp_path / "sd3")
    with pytest.raises(ValueError, match="weights must be one of fp32, fp16, int8, mixed, small, got 'fp8'"):
        base_to_onnx(base, tmp_path / "new", "fp8")
    with pytest.raises(ValueError, match="onnx has a card of its own"):
        Handover("onnx", card=True)
    with pytest.raises(FileExistsError, match="exists already"):
        base_to_onnx(base, tmp_path)
    monkeypatch.setattr(
        onnx_folder, "find_spec", lambda name: None if name == "onnx" else importlib.util.find_spec(name)
    )
    with pytest.raises(RuntimeError, match=r"not installed: pip install 'kanjilab\[onnx\]'"):
        base_to_onnx(base, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_base_with_another_encoder_is_refused(base, tmp_path):
    other = with_condition_encoder(base, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a condition encoder that reads no skeletons, of which ONNX has no part"):
        base_to_onnx(other, tmp_path / "new")
    with pytest.raises(ValueError, match="reads skeletons of 32 px: it draws no images of 64 px"):
        base_to_onnx(small_reader(base, "hint"), tmp_path / "new", size_px=64)


def test_a_run_with_an_encoder_of_its_own_is_refused(base, tmp_path):
    changed = with_condition_encoder(base, nn.Linear(2, 2))
    run = RunFolder.create(tmp_path / "run", {"base": base.name, "base_identity": changed.identity})
    with pytest.raises(ValueError, match="was trained on a changed .*of which ONNX has no part"):
        run_to_onnx(run, 0, 0, tmp_path / "new")
