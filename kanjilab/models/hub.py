"""Where a base's files come from: a folder, the Hub or its cache, a single file; safetensors only."""

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kanjilab.core.manifest import keep_sound
from kanjilab.core.outside_files import JSON_BYTES_MAX, checked_file, read_json_object
from kanjilab.core.storage import appearing_folder, cache_folder, sha256_file
from kanjilab.core.tensor_files import check_tensor_file, open_tensors

# A revision of None is the newest: no commit of these is known to us well enough to be named.
HUB_BASES: dict[str, tuple[str, str | None]] = {
    "sd14": ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b"),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", None),
    "sd35-medium": ("stabilityai/stable-diffusion-3.5-medium", None),
    "sd35-large": ("stabilityai/stable-diffusion-3.5-large", None),
}
HUB_FILES: dict[str, Any] = dict(
    allow_patterns=["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"],
    ignore_patterns=["*.fp16*", "*.fp8*", "*.bf16*", "*non_ema*", "safety_checker/*", "feature_extractor/*"],
)
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
CONVERSION = (
    "a pickle can run anything when it is opened. Convert it where you trust it: "
    "safetensors.torch.save_file(torch.load(file, weights_only=True), new_file), or for a whole pipeline "
    "DiffusionPipeline.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)"
)
ENCODER_PREFIXES = {  # of a text encoder's tensors in a single file
    "text_encoder": ("cond_stage_model.", "text_encoders.clip_l."),
    "text_encoder_2": ("text_encoders.clip_g.",),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
TEXTS = (".json", ".txt", ".model")  # configurations and vocabularies
SIZES = (  # in configurations: what decides how much is built before a weight is read
    ("transformer_layers_per_block num_layers num_hidden_layers", 0, 256),
    ("layers_per_block", 1, 256),
    ("num_train_timesteps", 1, 1_000_000),
    ("in_channels latent_channels block_out_channels hidden_size intermediate_size max_position_embeddings", 1, 65_536),
    ("model_max_length", 1, 65_536),
)

NUMBERS = {  # that are computed with: the smallest and the largest
    "scaling_factor": (1e-6, 1e6),
    "shift_factor": (-1e6, 1e6),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "shift": (1e-6, 1e6),
}
DIGEST = re.compile(r"[0-9a-f]{64}")
NEVER_READ = re.compile(r"pooler|position_ids")  # of a model, or made anew
UNUSED_PARTS: dict[str, Any] = dict(safety_checker=None, feature_extractor=None, image_encoder=None)


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silences progress bars and remarks on parts (a BERT text side) that are as intended."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = diffusers_logging, transformers_logging
    before = [(logging, logging.get_verbosity(), logging.is_progress_bar_enabled()) for logging in libraries]
    for logging in libraries:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, level, has_bar in before:
            logging.set_verbosity(level)
            if has_bar:
                logging.enable_progress_bar()


def model_folder(name: str) -> Path:
    """The folder, in diffusers' format, of a base that is not pocket; fetched from the Hub if need be.

    Args:
        name: a key of `HUB_BASES`, a Hub id, a folder, or a single `.safetensors` file.
    Raises:
        FileNotFoundError: nothing there, or not in the Hub's cache while offline.
        PermissionError: a gated repository whose terms are not accepted.
        ValueError: a pickle in place of safetensors.
    """
    if not name:
        raise ValueError("expected the name of a base, got an empty one")
    path = Path(name).expanduser()
    if path.suffix in PICKLES:
        raise ValueError(f"{name}: expected safetensors, got a {path.suffix} file; {CONVERSION}")
    if path.suffix == ".safetensors":
        return _single_file_folder(path)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if name not in HUB_BASES and (path.exists() or looks_like_path):
        folder = path
    else:
        repository, revision = HUB_BASES.get(name, (name, None))
        folder = hub_folder(name, repository, revision)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{name}: expected a folder with model_index.json, or a Hub id 'owner/name'")
    _refuse_pickles(name, folder)
    check_base_files(folder)
    return folder


def check_base_files(folder: Path) -> None:
    """Refuses what no reader should be given: weights that are none, half of them, what is no regular file, and sizes
    and numbers that no model has.

    Args:
        folder: in diffusers' format. Of each file of weights the header is read.
    Raises:
        ValueError: with the file, what was expected and what came.
    """
    for file in sorted(folder.glob("*/*")):
        if file.suffix == ".safetensors":
            check_tensor_file(file)
        elif file.suffix in TEXTS:
            checked_file(file, "a file of a model", JSON_BYTES_MAX)
        if file.name.endswith("config.json"):
            _check_sizes(file)


def _check_sizes(file: Path) -> None:
    config = read_json_object(file)
    if is_of_t5(file.parent.parent, file.parent.name):  # whose configuration names no length
        config.pop("model_max_length", None)
    for names, least, most in SIZES:
        for name in names.split():
            found = config.get(name, [])
            for size in found if isinstance(found, list) else [found]:
                if type(size) is not int or not least <= size <= most:
                    expected = f"a whole number from {least} to {most}"
                    raise ValueError(f"{file}: {name}: expected {expected}, got {size!r:.80}")
    for name, (least, most) in NUMBERS.items():
        found = config.get(name, most)
        if (name, found) != ("shift_factor", None) and not (type(found) in (int, float) and least <= found <= most):
            raise ValueError(f"{file}: {name}: expected a number from {least} to {most}, got {found!r:.80}")


def load_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """A model of transformers or diffusers, in float32 by default: all of its layers from the file.

    transformers fills layers that a file lacks with random numbers, and says so in a log that nobody reads; diffusers
    leaves them without any.

    Args:
        kind: its class.
        folder: with config.json and safetensors.
        options: of `from_pretrained`; with config and state_dict, these are read, and the folder is only named.
    Raises:
        ValueError: the file has other layers, or of other shapes.
    """
    options = {"dtype": torch.float32, "use_safetensors": True} | options
    try:
        source = None if "state_dict" in options else folder
        model, found = kind.from_pretrained(source, output_loading_info=True, **options)
    except (RuntimeError, ValueError) as error:  # of shapes, by transformers and by diffusers
        raise ValueError(f"{folder}: expected the weights of its config.json, got others ({error!s:.300})") from error
    if missing := sorted(name for name in found["missing_keys"] if not NEVER_READ.search(name)):
        raise ValueError(
            f"{folder}: expected the weights of {kind.__name__}, got none for {missing[0]} ({len(missing)})"
        )
    return model


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """A tokenizer of transformers.

    Args:
        kind: its class.
        folder: with its files.
    Raises:
        ValueError: they are another's, or damaged.
    """
    try:
        with quiet_diffusers():
            return kind.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare exceptions of whatever it trips over
        raise ValueError(f"{folder}: expected the files of a tokenizer, got others ({error!s:.200})") from error


def is_of_t5(folder: Path, part: str) -> bool:
    """Whether a part of a pipeline is a tokenizer of T5's kind, as SD 3's third one and rinna's are."""
    index = folder / "model_index.json"
    named = read_json_object(index).get(part) if index.is_file() else None
    return isinstance(named, list) and bool(named) and str(named[-1]).startswith("T5Tokenizer")


def part_class(folder: Path, part: str, library: Any) -> Any:
    """The class of a pipeline's part.

    Args:
        folder: of the pipeline.
        part: as `text_encoder`.
        library: transformers or diffusers.
    Raises:
        ValueError: model_index.json names none of that library's.
    """
    named = read_json_object(folder / "model_index.json").get(part)
    name = named[-1] if isinstance(named, list) and named else None
    if not isinstance(name, str) or not (kind := getattr(library, name, None)):
        raise ValueError(
            f"{folder / 'model_index.json'}: {part}: expected a class of {library.__name__}, got {name!r:.80}"
        )
    return kind


def family_of(name: str, folder: Path) -> str:
    """`unet` or `mmdit`, by what a pipeline's folder says that it holds.

    Raises:
        ValueError: neither a U-Net with one text encoder nor Stable Diffusion 3.
    """
    index = read_json_object(folder / "model_index.json")
    if "unet" in index and "text_encoder_2" not in index:
        return "unet"
    if (index.get("transformer") or [None])[-1] == "SD3Transformer2DModel":
        return "mmdit"
    kind = index.get("_class_name")
    raise ValueError(f"{name}: expected a pipeline with a U-Net and one text encoder, or SD 3's, got {kind}")


def hub_folder(name: str, repository: str, revision: str | None, files: Mapping[str, Any] = HUB_FILES) -> Path:
    """A snapshot of a repository: with progress bars where it is fetched, from the cache where it is there.

    Args:
        name: as the user gave it, for messages.
        repository: owner/name.
        revision: a commit; None for the newest.
        files: which of them, as options of `snapshot_download`; a pipeline's by default.
    Raises:
        FileNotFoundError: no such repository, or not in the cache while offline.
        PermissionError: a gated repository whose terms are not accepted.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repository}"
    try:
        return Path(snapshot_download(repository, revision=revision, **files))
    except GatedRepoError as error:
        raise PermissionError(
            f"{name}: {repository} is gated. Log in at {page} and accept its licence there; then make a token with "
            "read access at https://huggingface.co/settings/tokens, and run `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: there is no repository {page}, or it is private and this machine has no token for it"
        ) from error
    except LocalEntryNotFoundError as error:  # an incomplete snapshot included
        raise FileNotFoundError(
            f"{name}: the Hub cannot be reached, and its cache here does not hold the whole of {repository}. "
            f"Run `hf download {repository}` where there is a network, or give a folder of its files"
        ) from error


def _refuse_pickles(name: str, folder: Path) -> None:
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        if list(part.glob("*.safetensors")):
            continue
        if pickles := sorted(path.name for path in part.iterdir() if path.suffix in PICKLES):
            raise ValueError(f"{name}: expected safetensors in {part.name}/, got only {pickles}; {CONVERSION}")


def _single_file_folder(file: Path) -> Path:
    """A single-file checkpoint as a folder in diffusers' format, converted once into the user's cache."""
    check_tensor_file(file)
    target = cache_folder() / "single-files" / f"{file.stem}-{file_digest(file)[:16]}"

    def make() -> None:
        with appearing_folder(target) as temporary:
            _convert(file, temporary)

    keep_sound(target, make)
    return target


def _convert(file: Path, target: Path) -> None:
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    beside = file.with_suffix("")
    names, dtype = _contents(file)
    flow = any(".joint_blocks." in name for name in names)
    pipeline_class = StableDiffusion3Pipeline if flow else StableDiffusionPipeline
    options: dict[str, Any] = {} if flow else UNUSED_PARTS
    try:
        with quiet_diffusers():
            if (beside / "model_index.json").is_file():
                options = options | {"config": str(beside)} | _encoders_beside(beside, names, dtype)
            pipeline = pipeline_class.from_single_file(str(file), dtype=dtype, local_files_only=True, **options)
            pipeline.save_pretrained(target)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"{file}: a single file holds neither configurations nor tokenizers. Put a folder of the same model in "
            f"diffusers' format at {beside}, of which only what the file lacks is used, or fetch the model's "
            "configuration into the Hub's cache where there is a network"
        ) from error
    except SingleFileComponentError as error:
        raise ValueError(
            f"{file}: expected denoiser, autoencoder and text encoders; {str(error).splitlines()[0]} "
            f"Put a folder in diffusers' format that has the part at {beside}"
        ) from error


def _encoders_beside(beside: Path, names: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders that a single file lacks, as SD 3.5's often does, from the folder beside it."""
    import transformers

    index, found = read_json_object(beside / "model_index.json"), {}
    for part, prefixes in ENCODER_PREFIXES.items():
        if not any(name.startswith(prefixes) for name in names) and list((beside / part).glob("*.safetensors")):
            kind = getattr(transformers, index[part][1])
            found[part] = load_whole(kind, beside / part, dtype=dtype, local_files_only=True)
    return found


def _contents(file: Path) -> tuple[list[str], torch.dtype]:
    """The names in a file, and the type that most of its tensors have."""
    with open_tensors(file) as opened:
        names = list(opened.keys())
        kinds = Counter(opened.get_slice(name).get_dtype() for name in names)
    if not names:
        raise ValueError(f"{file}: expected denoiser, autoencoder and text encoders, got a file without tensors")
    most = kinds.most_common(1)[0][0]
    return names, {"F16": torch.float16, "BF16": torch.bfloat16}.get(most, torch.float32)


def file_digest(file: Path) -> str:
    """SHA-256 of a file, computed once: the Hub's cache names files by it, others are noted in the user's cache."""
    resolved = file.resolve()
    if resolved.parent.name == "blobs" and len(resolved.name) == 64:
        return resolved.name
    facts = resolved.stat()
    key = hashlib.sha256(json.dumps([str(resolved), facts.st_size, facts.st_mtime_ns]).encode()).hexdigest()
    note = cache_folder() / "digests" / key
    if not (note.is_file() and DIGEST.fullmatch(note.read_text(errors="replace"))):  # none, or what a crash left of it
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as temporary:
            temporary.write(sha256_file(resolved))
        Path(temporary.name).rename(note)
    return note.read_text()


def folder_digest(folder: Path, parts: list[str]) -> str:
    """Hash of the weight files and configurations of some parts of a pipeline, wherever the folder is."""
    digest = hashlib.sha256()
    for part in parts:
        for file in sorted((folder / part).glob("*.safetensors")):
            digest.update(f"{part}/{file.name}:{file_digest(file)}\n".encode())
        for name in ("config.json", "scheduler_config.json"):
            if (folder / part / name).is_file():
                config = read_json_object(folder / part / name)
                kept = {key: value for key, value in config.items() if not key.startswith("_")}
                digest.update(json.dumps([part, kept], sort_keys=True).encode())
    return digest.hexdigest()[:16]
