"""LoRA on the text encoder too: against PEFT, beside arms without it, drawn, written, merged and read again."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from kanjilab.core.config import Arm
from kanjilab.core.run_folder import RunFolder
from kanjilab.data.image_folder import open_dataset
from kanjilab.export.conversion import LORA_FORMS, read_arm, to_comfyui, to_diffusers, to_peft, to_pipeline
from kanjilab.export.lora_formats import Lora, LowRank, comfyui_tensors, read_lora
from kanjilab.models.adapters import TEXT, text_layers
from kanjilab.models.conditioning import Prompts
from kanjilab.models.diffusion import LatentDiffusion
from kanjilab.models.loading import load_base
from kanjilab.models.memory import KNOWN, Setting, architecture, memory_needed, meta_text_encoder
from kanjilab.models.sampling import Sampling, initial_noise, sample
from kanjilab.models.tiny_sd3 import _grow, letters_tokenizer
from kanjilab.models.trainable import Trainable
from kanjilab.training.checkpoints import load_checkpoints
from kanjilab.training.data_order import draw_example
from kanjilab.training.encoded import encode_dataset
from kanjilab.training.loop import train
from kanjilab.training.trainer import Trainer
from tests.lora_stack import stack_of
from tests.tiny import save_tiny_pipeline, tiny_encoded
from tests.tiny_study import four_radicals

# PEFT asks transformers for something that it will not have much longer.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
# A large epsilon, for Adam's first steps divide rounding errors by the gradient's own size.
TRAINED = dict(peak_lr=0.05, images_seen=5, epsilon=1e-4)
READS = TRAINED | dict(text_encoder="lora")
ARMS = {
    "attention": Arm(rank=3, alpha=6, **READS),
    "all": Arm(rank=4, alpha=2, rslora=True, targets="all", **READS),
    "DoRA": Arm(rank=3, targets="attention+feed-forward", dora=True, **READS),
}
DENOISER = Arm(rank=3, alpha=6, **TRAINED)  # trains no text encoder
EACH = pytest.mark.parametrize("arm", range(len(ARMS)), ids=list(ARMS))


@pytest.fixture(scope="module", params=["BERT", "CLIP"])
def folder(request, tmp_path_factory):
    """A tiny pipeline whose text encoder's weights are so large that captions matter."""
    plain = save_tiny_pipeline(tmp_path_factory.mktemp("text") / "plain")
    pipeline = StableDiffusionPipeline.from_pretrained(plain, safety_checker=None, requires_safety_checker=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if request.param == "CLIP":
            pipeline.tokenizer = letters_tokenizer("<|endoftext|>")
            size = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
            ends = dict(bos_token_id=pipeline.tokenizer.bos_token_id, eos_token_id=pipeline.tokenizer.eos_token_id)
            words = dict(vocab_size=len(pipeline.tokenizer), max_position_embeddings=16)
            pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**size, **ends, **words))
            pipeline.register_modules(text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)
        _grow(pipeline.text_encoder, pipeline.unet)
    pipeline.save_pretrained(path := plain.with_name("base"))
    return path


@pytest.fixture(scope="module")
def data(base: LatentDiffusion):
    """Latents are random, captions' states the base's own."""
    encoded = tiny_encoded(base)
    return dataclasses.replace(encoded, tokens=base.encode_text(encoded.captions).tokens.half().numpy())


@pytest.fixture(scope="module")
def run(base, data, tmp_path_factory):
    return trained(base, data, [*ARMS.values(), DENOISER], tmp_path_factory.mktemp("runs") / "run")


def trained(base, data, arms, path):
    for _ in train(base, data, arms, path, checkpoints=1):
        pass
    return RunFolder.open(path)


def adapter(run, arm=0, step=5):
    return load_file(run.checkpoint_path(step) / f"arm_{arm}" / "adapter_model.safetensors")


def parts_of(base):
    return {"unet": base.denoiser, "text_encoder": base.text_encoder}


# ---------------------------------------------------------------------------------- training


@EACH
def test_a_step_is_pefts_through_both_models(base, data, arm):
    """Loss and gradients of every A, B and m, by models of PEFT and the encoded captions' own tokens."""
    setting = dataclasses.replace(list(ARMS.values())[arm], batch=3, caption_dropout=0.5)
    trainer = Trainer(base, data, [setting], Accelerator(cpu=True))
    rng = np.random.default_rng(0)
    state = {
        name: value if "magnitude" in name else torch.from_numpy(rng.normal(0, 0.2, value.shape).astype(np.float32))
        for name, value in trainer.trainable.state(0).items()
    }
    trainer.trainable.load_state(0, state)
    before = trainer.trainable.rows.values.clone()
    losses, norms, _ = trainer.advance()

    denoiser, reader, parameters = peft_models(base, setting, state)
    total = torch.zeros(())
    for draw in (draw_example(setting.seed, index, len(data), data.mean.shape[1:], 1000) for index in range(3)):
        caption = "" if draw.dropout < 0.5 else data.captions[data.caption[draw.row]]
        tokens = base.text.tokenizer(
            [caption], padding="max_length", max_length=base.text.shape[0], truncation=True, return_tensors="pt"
        )
        hides = getattr(base.text_encoder.config, "use_attention_mask", False)
        text = reader(tokens.input_ids, attention_mask=tokens.attention_mask if hides else None)[0]
        latents = data.latents(np.array([draw.row]), draw.posterior_noise[None])
        noise, timestep = torch.from_numpy(draw.noise[None]), torch.tensor([draw.timestep])
        noisy, target = base.add_noise(latents, noise, timestep)
        total = total + (denoiser(noisy, timestep, text).sample - target).square().mean() / 3
    total.backward()
    assert losses == pytest.approx([total.item()], rel=1e-5)
    norm = torch.stack([value.grad.norm() for value in parameters.values()]).norm().item()
    assert norms == pytest.approx([norm], rel=1e-4)
    clipped = min(1.0, setting.clip_norm / norm)
    views = trainer.trainable.rows.views(trainer.trainable.rows.gradients)
    for name, value in parameters.items():
        found = views[name.removesuffix(".weight")][0]
        assert_close(found.flatten(), (value.grad * clipped).flatten(), atol=1e-6, rtol=1e-3, msg=name)
    assert any(name.startswith("text_encoder.") for name in parameters)
    assert not torch.equal(before, trainer.trainable.rows.values)


def peft_models(base, arm, state):
    """PEFT's denoiser and text encoder with an adapter's values; and what they train, by our names."""
    models, parameters = [], {}
    for prefix, model in (("", base.denoiser), ("text_encoder.", base.text_encoder)):
        mine = {
            name.removeprefix("base_model.model." + prefix): value
            for name, value in state.items()
            if name.startswith("base_model.model.text_encoder.") == bool(prefix)
        }
        config = LoraConfig(
            r=arm.rank,
            lora_alpha=arm.alpha or arm.rank,
            use_rslora=arm.rslora,
            use_dora=arm.dora,
            target_modules=sorted({name.split(".lora_")[0] for name in mine}),
        )
        wrapped = get_peft_model(copy.deepcopy(model), config)
        named = dict(wrapped.named_parameters())
        for name, value in mine.items():
            found = named["base_model.model." + name.removesuffix(".weight") + ".default.weight"]
            with torch.no_grad():
                found.copy_(value)
            parameters[prefix + name] = found
        models.append(wrapped)
    return *models, parameters


def test_which_layers_are_trained(base, request):
    attention, every = (text_layers(base.text_encoder, targets).keys() for targets in ("attention", "all"))
    if "BERT" in request.node.name:
        layer = "encoder.layer.0."
        assert attention == {layer + f"attention.self.{n}" for n in ("query", "key", "value")} | {
            layer + "attention.output.dense"
        }
        assert every - attention == {layer + "intermediate.dense", layer + "output.dense"}
    else:
        layers = [f"encoder.layers.{number}." for number in (0, 1)]
        assert attention == {f"{at}self_attn.{n}_proj" for at in layers for n in ("q", "k", "v", "out")}
        assert every - attention == {f"{at}mlp.{n}" for at in layers for n in ("fc1", "fc2")}
    assert text_layers(base.text_encoder, "cross-attention").keys() == attention
    assert text_layers(base.text_encoder, "attention+feed-forward").keys() == every


def test_arms_are_trained_together_as_alone(base, data, run, tmp_path):
    """Those that read in their own way, and the one that is told what was encoded before."""
    for k, arm in enumerate([*ARMS.values(), DENOISER]):
        alone = adapter(trained(base, data, [arm], tmp_path / f"alone_{k}"))
        together = adapter(run, k)
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            assert_close(together[name], value, atol=1e-4, rtol=1e-4, msg=name)
        moved = {name: float((value - adapter(run, k, 0)[name]).abs().max()) for name, value in alone.items()}
        assert min(moved.values()) > 1e-4
        assert any("text_encoder" in name for name in moved) == (arm is not DENOISER)


def test_the_base_keeps_its_bits(base, data, run):
    assert load_base(base.name).identity == base.identity
    assert base.encode_text(["water"]).tokens.equal(load_base(base.name).encode_text(["water"]).tokens)


def test_with_gradient_checkpointing_it_is_the_same_training(folder, data, run, tmp_path):
    """Whose forward pass runs once more in the backward pass, after the text encoder's own."""
    arms = [*ARMS.values(), DENOISER]
    again = trained(load_base(folder, gradient_checkpointing=True), data, arms, tmp_path / "thrifty")
    for k in range(len(arms)):
        for name, value in adapter(run, k).items():
            assert_close(adapter(again, k)[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_in_bf16_the_text_encoder_stays_in_fp32(folder, data, run, tmp_path):
    half = load_base(folder, "bf16")
    trainable = Trainable(half.denoiser, [ARMS["attention"]], half.text_encoder)
    kinds = {name.startswith("text_encoder."): leaf.dtype for name, leaf in trainable.rows.leaves.items()}
    assert kinds == {True: torch.float32, False: half.denoiser.dtype}
    found, start = adapter(trained(half, data, [ARMS["attention"]], tmp_path / "half")), adapter(run, step=0)
    moved = {name: (value - start[name]).flatten() for name, value in adapter(run).items() if "text_encoder" in name}
    for name, expected in moved.items():
        way = (found[name] - start[name]).flatten()
        assert torch.cosine_similarity(way, expected, dim=0) > 0.9, name


def test_where_there_is_no_encoder_to_train_it_is_refused(sd3_base, base):
    with pytest.raises(
        ValueError, match="SD 3 loads each of three for a while.*expected text_encoder 'frozen', got 'lora'"
    ):
        Trainer(sd3_base, tiny_encoded(sd3_base), [ARMS["attention"]], Accelerator(cpu=True))
    with pytest.raises(ValueError, match="a text encoder can be trained where it is the base's only one"):
        Trainable(base.denoiser, [ARMS["attention"]])
    with pytest.raises(ValueError, match="text_encoder 'lora' is of LoRA arms, got targets 'full'"):
        Arm(targets="full", text_encoder="lora")


def test_encoded_captions_are_those_of_the_data(base, tmp_path):
    images = open_dataset(four_radicals(tmp_path / "images")).split("train")
    encoded = encode_dataset(base, images, tmp_path / "cache")
    assert [encoded.captions[row] for row in encoded.caption] == images.table["text"].tolist()
    assert encoded.captions[0] == "" and len(encoded.captions) == len(encoded.tokens)


# ---------------------------------------------------------------------------------- drawing and files


def drawn(base, trainable=None, prompts=("queen", "water")):
    sampling = Sampling(steps=3, guidance=3.0)
    return sample(base, list(prompts), [1], sampling, trainable=trainable, size_px=32).astype(int)


def test_each_arm_is_drawn_as_it_reads(base, run):
    """Arms side by side as each by itself, and not as if the text encoder were the base's."""
    trainables = [load_checkpoints(base, run, [5], k) for k in range(4)]
    alone = [drawn(base, trainable)[0] for trainable in trainables]
    both = Trainable(base.denoiser, [ARMS["attention"], DENOISER], base.text_encoder)
    both.load_state(0, adapter(run, 0))
    both.load_state(1, adapter(run, 3))
    assert np.abs(drawn(base, both) - np.stack([alone[0], alone[3]])).max() <= 1
    for k in range(3):
        without = {name: value for name, value in adapter(run, k).items() if "text_encoder." not in name}
        deaf = Trainable(
            base.denoiser, [dataclasses.replace(list(ARMS.values())[k], text_encoder="frozen")], base.text_encoder
        )
        deaf.load_state(0, without)
        assert np.abs(drawn(base, deaf)[0] - alone[k]).max() > 1


@EACH
def test_a_merged_pipeline_draws_what_the_adapters_drew(base, run, tmp_path, arm):
    merged = load_base(to_pipeline(run, 5, arm, tmp_path / "merged"))
    changed = {
        f"{part}.{name.removesuffix('.weight')}"
        for part, model in parts_of(merged).items()
        for name, value in model.state_dict().items()
        if not torch.equal(value, parts_of(base)[part].state_dict()[name])
    }
    assert changed == set(read_arm(run, 5, arm).layers)
    assert np.abs(drawn(merged) - drawn(base, load_checkpoints(base, run, [5], arm))).max() <= 1


CLIP_ALONE = pytest.mark.parametrize("folder", ["CLIP"], indirect=True)
OTHERS_READ = [form for form in LORA_FORMS if form != "peft"]


@EACH
@CLIP_ALONE
@pytest.mark.parametrize("form", OTHERS_READ)
def test_every_form_comes_back_and_draws_the_same(base, run, tmp_path, form, arm):
    found = read_lora(LORA_FORMS[form](run, 5, arm, tmp_path), parts_of(base))
    assert found.layers.keys() == read_arm(run, 5, arm).layers.keys()
    stack = stack_of(base.denoiser, found, base.text_encoder)
    assert np.abs(drawn(base, stack) - drawn(base, load_checkpoints(base, run, [5], arm))).max() <= 1
    with pytest.raises(ValueError, match=r"layers of the text encoder .* give it as parts\['text_encoder'\]"):
        read_lora(LORA_FORMS[form](run, 5, arm, tmp_path), {"unet": base.denoiser})
    with pytest.raises(ValueError, match="expected layers of unet alone, got text_encoder"):
        stack_of(base.denoiser, found)


@pytest.mark.parametrize("folder", ["BERT"], indirect=True)
@pytest.mark.parametrize("form", OTHERS_READ)
def test_what_no_other_program_would_load_is_refused(run, tmp_path, form):
    with pytest.raises(ValueError, match="text_encoder.encoder.layer.0.* is BERT's.* the form 'peft', or a whole pip"):
        LORA_FORMS[form](run, 5, 0, tmp_path)
    assert not list(tmp_path.iterdir())


@EACH
def test_a_checkpoint_is_read_as_it_lies(base, run, arm):
    folder = run.checkpoint_path(5) / f"arm_{arm}"
    assert_same_layers(read_lora(folder, parts_of(base)), read_arm(run, 5, arm))
    with pytest.raises(ValueError, match=r"layers of the text encoder .* give it as parts\['text_encoder'\]"):
        read_lora(folder, {"unet": base.denoiser})


def assert_same_layers(found, expected):
    assert found.layers.keys() == expected.layers.keys()
    for name, low in expected.layers.items():
        again = found.layers[name]
        assert_close(again.folded().up @ again.down.flatten(1), low.folded().up @ low.down.flatten(1), msg=name)
        assert_close(again.magnitude, low.magnitude, atol=0, rtol=0, msg=name)


@EACH
def test_peft_loads_a_folder_for_each_model(base, run, tmp_path, arm):
    path = to_peft(run, 5, arm, tmp_path / "peft").parent
    assert_same_layers(read_lora(path, parts_of(base)), read_arm(run, 5, arm))
    assert to_peft(run, 5, 3, path).is_file()  # an arm without, into the same folder
    assert read_lora(path, parts_of(base)).layers.keys() == read_arm(run, 5, 3).layers.keys()
    to_peft(run, 5, arm, path)
    reader = PeftModel.from_pretrained(copy.deepcopy(base.text_encoder), path / "text_encoder")
    denoiser = PeftModel.from_pretrained(copy.deepcopy(base.denoiser), path)
    own = base.text.encoder
    try:
        base.text.encoder = reader
        text = base.text.encode(["queen", "water"])
    finally:
        base.text.encoder = own
    noisy, timesteps = initial_noise([1, 2], (4, 8, 8)), torch.tensor([10, 800])
    trainable = load_checkpoints(base, run, [5], arm)
    with torch.no_grad(), trainable.attached(((0, 2),)):
        prompts = Prompts(["queen", "water"], {})
        states = trainable.condition(base.text, prompts, base.encode_text(prompts.captions), [(0, 2)])
        found = base.denoise(noisy, timesteps, states)
    assert_close(states.tokens, text.detach(), atol=1e-5, rtol=1e-5)
    assert_close(found, denoiser(noisy, timesteps, text).sample.detach(), atol=1e-5, rtol=1e-5)


@CLIP_ALONE
@pytest.mark.parametrize(
    ("form", "arm"), [(to_diffusers, 0), (to_diffusers, 1), (to_diffusers, 2), (to_comfyui, 0), (to_comfyui, 1)]
)
def test_diffusers_loads_the_file_and_draws_the_same(folder, base, run, tmp_path, monkeypatch, form, arm):
    file = form(run, 5, arm, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    options = dict(height=32, width=32, num_inference_steps=3, guidance_scale=3.0, output_type="latent")
    found = pipeline("queen", latents=initial_noise([1], (4, 8, 8)), **options).images
    decoded, decode = [], base.decode
    monkeypatch.setattr(base, "decode", lambda latents: decoded.append(latents) or decode(latents))
    drawn(base, load_checkpoints(base, run, [5], arm), ["queen"])
    assert_close(found, decoded[0], atol=1e-4, rtol=1e-4)


def test_a_text_encoder_of_sd14_has_the_names_that_comfyui_knows():
    """By its rule: in `text_model`, of each of twelve layers four of attention and two after it."""
    layers = text_layers(meta_text_encoder(KNOWN["sd14"], [ARMS["all"]]), "all")
    assert meta_text_encoder(KNOWN["sd14"], [DENOISER]) is None
    lora = Lora({TEXT + name: LowRank(torch.ones(1, 2), torch.ones(2, 1)) for name in layers}, {})
    parts = [f"self_attn_{n}_proj" for n in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    assert {name.partition(".")[0] for name in comfyui_tensors(lora)} == {
        f"lora_te_text_model_encoder_layers_{number}_{part}" for number in range(12) for part in parts
    }


# ---------------------------------------------------------------------------------- memory


def test_memory_is_counted_for_both_models(folder, base, data):
    of, arms = architecture(folder), (dataclasses.replace(ARMS["all"], batch=4),)
    needed = memory_needed(of, Setting(arms, "fp32"), 32)
    trainable = Trainable(base.denoiser, arms, base.text_encoder)
    assert needed.trained == 20 * trainable.rows.values.numel()
    kept = {}
    models = (base.denoiser, base.text_encoder)
    frozen = [value for model in models for value in (*model.parameters(), *model.buffers())]
    known = {value.untyped_storage().data_ptr() for value in (*frozen, *trainable.leaves)}

    def keep(value):
        if (at := value.untyped_storage().data_ptr()) not in known:
            kept[at] = (value.untyped_storage().nbytes(), value)
        return value

    captions = [data.captions[row] for row in data.caption[:4]]
    with trainable.attached(((0, 4),)), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        states = data.text(data.caption[:4], base.device)
        text = trainable.condition(base.text, Prompts(captions, {}), states, [(0, 4)])
        base.denoise(torch.from_numpy(data.mean[:4]), torch.arange(4), text)
    assert needed.activations == pytest.approx(sum(size for size, _ in kept.values()), rel=0.25)
    plain = dataclasses.replace(arms[0], text_encoder="frozen")
    assert memory_needed(of, Setting((plain,), "fp32"), 32).activations < needed.activations


def test_sd14_as_a_whole():
    """What CLIP-L adds to rank 4 on attention: 12 layers of four 768 x 768 matrices."""
    with_it, without = (
        memory_needed(KNOWN["sd14"], Setting((Arm(rank=4, text_encoder=way),), "fp32")) for way in ("lora", "frozen")
    )
    assert with_it.trained - without.trained == 20 * 12 * 4 * 4 * (768 + 768)
