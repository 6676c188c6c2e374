"""The same LoRA training by kanjilab, by diffusers' script and by kohya's, side by side on this machine.

    python benchmarks/peers.py --diffusers-script .../examples/text_to_image/train_text_to_image_lora.py \
        --kohya .../sd-scripts --kohya-python .../its-venv/bin/python \
        [--size full] [--precisions fp32 bf16] [--rounds 3] [--steps 12] [--json peers.json]

SD 1.4's architecture with random weights, images of 128 px on disk, rank 64, batch 1, constant rate, AdamW. Every
contender runs in a process of its own, for some steps, again and again in turns; the clock reads when an optimizer step
ends, through torch's own hook, so nobody's code is edited. Reported are s/step, images/s, seconds until the first step
is done (loading and encoding included), peak memory, and ratios taken round by round. A peer that is not given, or that
does not run here, is left out with what it said.

diffusers' script puts its LoRA on all attention, and is compared with kanjilab doing so. kohya's puts it on every
linear layer of the transformers and is compared with kanjilab's attention + feed-forward, which leaves out the 1 x 1
projections before and after. kanjilab and kohya (--cache_latents) encode images once, diffusers' script at every step.

With `--size sd3` all start from the miniature of Stable Diffusion 3, and the script is diffusers'
`examples/dreambooth/train_dreambooth_lora_sd3.py`, which can keep latents (--cache_latents) and does so here; captions
it encodes at every step. So small a model tells what a step costs beside its arithmetic, and nothing of a large one.
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}
SIZES = {
    "full": dict(unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), text=768, layers=12, heads=12, groups=32),
    "tiny": dict(unet=(16, 16, 32, 32), vae=(8, 8, 16, 16), text=24, layers=2, heads=2, groups=8),
}
IMAGES = 16
LIMIT_SECONDS = 3600


@dataclass(frozen=True)
class Job:
    """One contender in one round.

    Args:
        name: as it stands in the table.
        kind: `kanjilab`, `diffusers`, `diffusers-sd3` or `kohya`.
        script: of a peer.
        precision: `fp32` or `bf16`.
        arms: trained together, kanjilab's alone.
        targets: as kanjilab names them.
    """

    name: str
    kind: str
    script: str = ""
    precision: str = "fp32"
    arms: int = 1
    targets: str = "attention"


# ---------------------------------------------------------------------------------------------- what all start from


def save_base(folder: Path, size: str) -> None:
    """A pipeline folder with random weights: SD 1.4's architecture, a narrow one of its shape, or a miniature SD 3."""
    if size == "sd3":
        save_sd3(folder)
        return
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    widths: Any = SIZES[size]
    torch.manual_seed(0)
    symbols = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", *symbols, *(f"{symbol}</w>" for symbol in symbols), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=49_408 if size == "full" else len(tokens),
        hidden_size=widths["text"],
        intermediate_size=4 * widths["text"],
        num_hidden_layers=widths["layers"],
        num_attention_heads=widths["heads"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=widths["text"],
            block_out_channels=widths["unet"],
            norm_num_groups=widths["groups"],
        ),
        vae=AutoencoderKL(
            block_out_channels=widths["vae"],
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
            norm_num_groups=widths["groups"],
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def save_sd3(folder: Path) -> None:
    """The miniature SD 3, with CLIPs of 77 positions as diffusers' script takes them for granted."""
    from diffusers import StableDiffusion3Pipeline

    from kanjilab.models.tiny_sd3 import save_miniature_sd3

    pipeline = StableDiffusion3Pipeline.from_pretrained(save_miniature_sd3(folder.with_name("miniature")))
    for number in ("", "_2"):
        short, tokenizer = getattr(pipeline, f"text_encoder{number}"), getattr(pipeline, f"tokenizer{number}")
        short.config.max_position_embeddings = tokenizer.model_max_length = 77
        pipeline.register_modules(**{f"text_encoder{number}": type(short)(short.config)})
    pipeline.save_pretrained(folder)


def save_images(folder: Path) -> None:
    """Images with captions: an image folder for kanjilab and diffusers, text files beside images for kohya."""
    import numpy as np
    from PIL import Image

    (kohya := folder / "kohya" / "1_kanji").mkdir(parents=True)
    (plain := folder / "images").mkdir()
    rng, lines = np.random.default_rng(0), []
    for number in range(IMAGES):
        picture = Image.fromarray(rng.integers(0, 256, (128, 128, 3), dtype=np.uint8))
        caption = f"water;tree {number}"
        picture.save(plain / f"{number}.png")
        picture.save(kohya / f"{number}.png")
        (kohya / f"{number}.txt").write_text(caption)
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (plain / "metadata.jsonl").write_text("\n".join(lines))


def save_tokenizer(base: Path, folder: Path) -> None:
    """The base's tokenizer as kohya's scripts look for it: by the Hub's name, in the files of earlier transformers."""
    place = folder / "openai_clip-vit-large-patch14"
    place.mkdir(parents=True)
    model = json.loads((base / "tokenizer" / "tokenizer.json").read_text())["model"]
    (place / "vocab.json").write_text(json.dumps(model["vocab"]))
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (place / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


# ---------------------------------------------------------------------------------------------- a contender's process


def work(job: Job, folder: Path, steps: int, rank: int, began: float) -> None:
    """Trains, and ends this process once enough steps were clocked.

    Args:
        folder: holds base/ and data/.
        steps: to clock.
        rank: of the LoRA.
        began: time.time() when the process was started.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    clocked: list[float] = []

    def clock(optimizer: Any, args: Any, kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        clocked.append(time.time() - began)
        if len(clocked) == steps:
            result = {"clocked": clocked, "peak_gb": _peak_gigabytes()}
            (folder / "result.json").write_text(json.dumps(result))
            sys.stdout.flush()
            os._exit(0)  # what a script does after its last step is not compared

    register_optimizer_step_post_hook(clock)
    works = {"kanjilab": _work_kanjilab, "kohya": _work_kohya}
    works |= {"diffusers": _work_diffusers, "diffusers-sd3": _work_diffusers_sd3}
    works[job.kind](job, folder, steps, rank)


def _peak_gigabytes() -> float:
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _work_kanjilab(job: Job, folder: Path, steps: int, rank: int) -> None:
    from accelerate import Accelerator

    from kanjilab.core.config import Arm
    from kanjilab.data.image_folder import open_dataset
    from kanjilab.models.loading import load_base
    from kanjilab.training.encoded import encode_dataset
    from kanjilab.training.loop import train

    accelerator = Accelerator()
    base = load_base(folder / "base", job.precision, accelerator.device)
    data = encode_dataset(base, open_dataset(folder / "data" / "images"))
    arms = [
        Arm(targets=job.targets, rank=rank, schedule="constant", images_seen=10 * steps, caption_dropout=0.0, seed=seed)
        for seed in range(job.arms)
    ]
    for _ in train(base, data, arms, folder / "run", checkpoints=1, save_every_seconds=1e9, accelerator=accelerator):
        pass


def _work_diffusers(job: Job, folder: Path, steps: int, rank: int) -> None:
    _provide_torchvision(("datasets", "Dataset"), ("peft", "LoraConfig"))
    options = _options_of_diffusers(job, folder, steps, rank) | {"train_data_dir": folder / "data" / "images"}
    _run_script(Path(job.script), options)


def _work_diffusers_sd3(job: Job, folder: Path, steps: int, rank: int) -> None:
    _provide_torchvision(("datasets", "Dataset"), ("peft", "LoraConfig"), ("diffusers", "StableDiffusion3Pipeline"))
    options = _options_of_diffusers(job, folder, steps, rank) | {
        "dataset_name": folder / "data" / "images",
        "caption_column": "text",
        "instance_prompt": "water",  # wanted, and not used where there are captions
        "max_sequence_length": 77,
        "center_crop": True,
        "cache_latents": True,
    }
    _run_script(Path(job.script), options)


def _options_of_diffusers(job: Job, folder: Path, steps: int, rank: int) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": folder / "base",
        "output_dir": folder / "run",
        "resolution": 128,
        "train_batch_size": 1,
        "rank": rank,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_train_steps": 10 * steps,
        "checkpointing_steps": 10**9,
        "mixed_precision": "bf16" if job.precision == "bf16" else "no",
        "seed": 0,
    }


def _work_kohya(job: Job, folder: Path, steps: int, rank: int) -> None:
    options = {
        "pretrained_model_name_or_path": folder / "base",
        "train_data_dir": folder / "data" / "kohya",
        "output_dir": folder / "run",
        "resolution": "128,128",
        "train_batch_size": 1,
        "network_module": "networks.lora",
        "network_dim": rank,
        "network_alpha": rank,
        "network_train_unet_only": True,
        "cache_latents": True,
        "caption_extension": ".txt",
        "tokenizer_cache_dir": folder / "tokenizers",
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "optimizer_type": "AdamW",
        "max_train_steps": 10 * steps,
        "max_data_loader_n_workers": 0,
        "mixed_precision": "bf16" if job.precision == "bf16" else "no",
        "sdpa": True,
        "seed": 0,
    }
    script = Path(job.script) / "train_network.py"
    os.chdir(script.parent)
    _provide_torchvision()
    _run_script(script, options)


def _run_script(script: Path, options: dict[str, Any]) -> None:
    arguments = [
        word for name, value in options.items() for word in ([f"--{name}"] + [str(value)] * (value is not True))
    ]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def _provide_torchvision(*also: tuple[str, str]) -> None:
    """Where torchvision has no build for this torch, something stands in for it."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    # Each looks for torchvision when it is first used, and must not find what stands in for it.
    names = [
        ("transformers", "CLIPTextModel"),
        ("diffusers", "AutoencoderKL"),
        ("diffusers", "StableDiffusionPipeline"),
    ]
    for module, name in (*names, *also):
        getattr(importlib.import_module(module), name)
    sys.modules |= _stand_in_for_torchvision()


def _stand_in_for_torchvision() -> dict[str, types.ModuleType]:
    """The few transforms that diffusers' scripts use, where torchvision has no build for this torch."""
    import numpy as np
    import torch
    from PIL import Image

    def resize(size: int, interpolation: Any = None) -> Any:
        return lambda image: image.resize((size, size), Image.Resampling.BILINEAR)

    def crop(size: int) -> Any:
        return lambda image: image.crop((0, 0, size, size))

    def compose(steps: list[Any]) -> Any:
        def apply(image: Any) -> Any:
            for step in steps:
                image = step(image)
            return image

        return apply

    def to_tensor() -> Any:
        return lambda image: torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)

    def normalize(mean: list[float], std: list[float]) -> Any:
        return lambda tensor: (tensor - mean[0]) / std[0]

    transforms: Any = types.ModuleType("torchvision.transforms")
    transforms.Compose, transforms.ToTensor, transforms.Normalize = compose, to_tensor, normalize
    transforms.Resize, transforms.CenterCrop, transforms.RandomCrop = resize, crop, crop
    transforms.Lambda, transforms.RandomHorizontalFlip = lambda function: function, lambda p=0.5: lambda image: image
    transforms.InterpolationMode = types.SimpleNamespace(NEAREST=0, LANCZOS=1, BILINEAR=2, BICUBIC=3, BOX=4, HAMMING=5)
    transforms.functional = functional = types.ModuleType("torchvision.transforms.functional")
    functional.crop = crop  # type: ignore[attr-defined]  # imported, and not used where images are cropped at the center
    package: Any = types.ModuleType("torchvision")
    package.transforms = transforms
    return {module.__name__: module for module in (package, transforms, functional)}


# ---------------------------------------------------------------------------------------------- rounds


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """Who runs in each round."""
    jobs = []
    for precision in options.precisions:
        for arms in options.arms:
            jobs.append(Job(f"kanjilab, {arms} arm{'s' * (arms > 1)}", "kanjilab", "", precision, arms))
        if options.diffusers_script:
            kind = "diffusers-sd3" if options.size == "sd3" else "diffusers"
            jobs.append(Job("diffusers", kind, str(options.diffusers_script.resolve()), precision))
        if options.kohya:
            targets = "attention+feed-forward"
            jobs.append(Job("kanjilab, + feed-forward", "kanjilab", "", precision, 1, targets))
            jobs.append(Job("kohya", "kohya", str(options.kohya.resolve()), precision, 1, targets))
    return jobs


def run_job(job: Job, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One contender's process from start to end.

    Returns:
        clocked (seconds since its start, a step each) and peak_gb; or failed, its last words.
    """
    (folder / "result.json").unlink(missing_ok=True)
    for leftover in (folder / "run", folder / "cache"):
        subprocess.run(["rm", "-rf", str(leftover)], check=True)
    began = time.time()
    python = str(options.kohya_python) if job.kind == "kohya" else sys.executable
    command = [python, __file__, "--work", json.dumps(asdict(job)), "--folder", str(folder)]
    command += ["--steps", str(options.steps), "--rank", str(options.rank), "--began", repr(began)]
    # Its own caches, so that encoding counts in every round.
    environment = os.environ | OFFLINE | {"KANJILAB_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "cache")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"took over {LIMIT_SECONDS} seconds"}
    if not (folder / "result.json").exists():
        words = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": f"exit {done.returncode}: {words[-1] if words else 'no words'}"}
    return json.loads((folder / "result.json").read_text())


def seconds_per_step(result: dict[str, Any], warm_up: int) -> float:
    """Median seconds between the ends of two steps, the first few left out."""
    clocked = result["clocked"][warm_up:]
    return statistics.median(b - a for a, b in zip(clocked, clocked[1:], strict=False))


def measure(options: argparse.Namespace, folder: Path) -> dict[Job, list[dict[str, Any]]]:
    """All rounds; who fails once is left out from then on."""
    results: dict[Job, list[dict[str, Any]]] = {job: [] for job in jobs_of(options)}
    for number in range(options.rounds):
        order = list(results) if number % 2 == 0 else list(results)[::-1]  # nobody is always the first
        for job in order:
            if any("failed" in result for result in results[job]):
                continue
            result = run_job(job, folder, options)
            results[job].append(result)
            told = result.get("failed") or f"{seconds_per_step(result, options.warm_up):.3f} s/step"
            print(f"round {number + 1}: {job.name}, {job.precision}: {told}", flush=True)
    return results


# ---------------------------------------------------------------------------------------------- report


def spread(values: list[float], digits: int = 2) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def reference_of(job: Job, results: dict[Job, Any]) -> Job | None:
    """Who does the same work as one arm in kanjilab."""
    same = (j for j in results if j.kind == "kanjilab" and j.arms == 1)
    return next((j for j in same if (j.precision, j.targets) == (job.precision, job.targets)), None)


def table(results: dict[Job, list[dict[str, Any]]], warm_up: int) -> list[str]:
    """Markdown; a ratio is a step's time over that of one arm of kanjilab in the same round."""
    lines = [
        "| contender | precision | s/step | images/s | first step after, s | peak memory, GB | x kanjilab's one arm |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, rounds in results.items():
        if failed := next((result["failed"] for result in rounds if "failed" in result), None):
            lines.append(f"| {job.name} | {job.precision} | left out: {failed.replace('|', '/')} | | | | |")
            continue
        seconds = [seconds_per_step(result, warm_up) for result in rounds]
        first = statistics.median(result["clocked"][0] for result in rounds)
        peak = max(result["peak_gb"] for result in rounds)
        reference = reference_of(job, results)
        ratio = ""
        if reference and not any("failed" in result for result in results[reference]):
            pairs = zip(rounds, results[reference], strict=True)
            ratio = spread([seconds_per_step(a, warm_up) / seconds_per_step(b, warm_up) for a, b in pairs])
        rate = job.arms / statistics.median(seconds)
        lines.append(
            f"| {job.name} | {job.precision} | {spread(seconds, 3)} | {rate:.2f} | {first:.0f} | {peak:.1f} | {ratio} |"
        )
    return lines


def heading(options: argparse.Namespace) -> str:
    """The machine, the versions and the work."""
    import diffusers
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    text = f"{device}, {torch.get_num_threads()} threads; torch {torch.__version__}, diffusers {diffusers.__version__}"
    for name, path in (("diffusers' script", options.diffusers_script), ("kohya's scripts", options.kohya)):
        text += f"; {name}: " + (commit_of(path) if path else "not given")
    return (
        f"{text}. {options.size} size, rank {options.rank}, batch 1, 128 px, {options.rounds} rounds of {options.steps}"
    )


def commit_of(path: Path) -> str:
    """The commit of the checkout that a path lies in, or that it lies in none."""
    folder = path if path.is_dir() else path.parent
    told = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return f"commit {told.stdout.strip()[:12]}" if told.returncode == 0 else "of no checkout"


def main() -> None:
    """Measures in turns, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--diffusers-script", type=Path, help="train_text_to_image_lora.py, of SD 3 train_dreambooth_lora_sd3.py"
    )
    parser.add_argument("--kohya", type=Path, help="a checkout of sd-scripts")
    parser.add_argument("--kohya-python", type=Path, default=sys.executable, help="of an environment made for it")
    parser.add_argument("--size", choices=[*SIZES, "sd3"], default="tiny")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--arms", nargs="+", type=int, default=[1, 8], help="kanjilab's, trained together")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=2, help="steps left out of the times")
    parser.add_argument("--json", type=Path, help="all times, to be read by programs")
    parser.add_argument("--folder", type=Path, help="for weights and images, kept; a temporary one by default")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Job(**json.loads(options.work)), options.folder, options.steps, options.rank, options.began)
        return
    if options.steps < options.warm_up + 2:
        parser.error(f"expected at least {options.warm_up + 2} steps, got {options.steps}")
    with tempfile.TemporaryDirectory() as temporary:
        compare(options, options.folder or Path(temporary))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Prepares what all start from, measures, and reports."""
    folder = folder.resolve()
    if not (folder / "base").exists():
        save_base(folder / "base", options.size)
    if not (folder / "data").exists():
        save_images(folder / "data")
    if options.kohya and not (folder / "tokenizers").exists():
        save_tokenizer(folder / "base", folder / "tokenizers")
    results = measure(options, folder)
    print("\n".join([heading(options), "", *table(results, options.warm_up)]))
    if options.json:
        rows = [{"job": asdict(job), "rounds": rounds} for job, rounds in results.items()]
        options.json.write_text(json.dumps({"heading": heading(options), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
