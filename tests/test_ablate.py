"""The lab on a tiny base: packs by hand, nothing done twice, and the same table however it came about."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from kanjilab import ablate as lab_module
from kanjilab import demo as demo_module
from kanjilab.ablate import (
    Study,
    Variant,
    ablate,
    contrasts,
    cut_into_packs,
    missing,
    open_lab,
    outcomes,
    own_share,
    plan,
    rates,
    stored_moments,
    write_report,
)
from kanjilab.adapters import make_trainable
from kanjilab.dataset import open_dataset
from kanjilab.runs import RunFolder, find_runs
from kanjilab.sample import Sampling, sample
from kanjilab.settings import Arm, settings_hash
from kanjilab.train import draw_example
from tests.tiny import save_tiny_pipeline

measure_steps, seconds_per_image = lab_module.measure_steps, lab_module._seconds_per_image
RADICALS = {"water": "水", "tree": "木", "person": "人", "fire": "火"}
ARM = Arm(targets="attention", rank=2, batch=2, images_seen=8, peak_lr=0.01)


class DarknessJudge:
    """Reads water in the darker images and fire in the others, and abstains where they are white."""

    def __init__(self, threshold=127):
        self.threshold, self.read_images = threshold, 0

    def read(self, images):
        self.read_images += len(images)
        light = images.mean(axis=(1, 2))
        radical = np.where(light < self.threshold, "水", "火")
        return pd.DataFrame({"radical": radical, "probability": light / 255, "abstain": light > 250})


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "base")


def write_images(folder, captions, held_out):
    """An image folder: captions of two words, the first of which gives the radical."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["file_name,text,radical_character,split"]
    for split, texts in (("train", captions), ("held_out", held_out)):
        for text in texts:
            name = f"{split}-{text.replace(' ', '-')}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(folder / name)
            lines.append(f"{name},{text},{RADICALS[text.split()[0]]},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    captions = [f"{word} {second}" for word in RADICALS for second in ("castle", "queen")]
    folder = tmp_path_factory.mktemp("data") / "images"
    return write_images(folder, captions, [f"{word} mountain" for word in RADICALS])


@pytest.fixture(scope="module")
def study(base_folder, images):
    return Study(
        name="tiny",
        claim="a higher rank draws better",
        arm=ARM,
        variants=(
            Variant("rank 2", dict(rank=2)),
            Variant("rank 3", dict(rank=3)),
            Variant("the same", dict(alpha=2.0), axes=dict(rank=2)),  # alpha None is the rank
        ),
        seeds=(5, 6),
        data={"folder": str(images)},
        base=str(base_folder),
        precision="fp32",
        prompts_per_radical=1,
        noise_seeds=(0, 1),
        sampling=Sampling("ddim", steps=1, guidance=1),
        loss_images=6,
    )


def quick_measure(base, data, arms, steps=2):
    """In place of `measure_steps`, where the cost does not matter."""
    return 0.1 * len(arms), 1.0


def make_small(patch):
    """Small pictures; and nothing is measured, which takes longer here than training."""
    patch.setattr(lab_module, "measure_steps", quick_measure)
    patch.setattr(lab_module, "_seconds_per_image", lambda lab, arm: 0.1)
    patch.setattr(lab_module, "open_dataset", partial(open_dataset, size_px=32))
    patch.setattr(lab_module, "sample", partial(sample, size_px=32))


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(lab_module, "measure_steps", measure_steps)
    monkeypatch.setattr(lab_module, "_seconds_per_image", seconds_per_image)


def run(study, folder, **options):
    said = []
    report = ablate(study, folder, judge=options.pop("judge", DarknessJudge()), say=said.append, **options)
    return report, "\n".join(said)


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """The study done in one go: its folder, report, and what was said."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    return folder, *run(study, folder, keep_adapters=True)


def table_of(folder, judge="radicals"):
    return pd.read_parquet(folder / f"table-{judge}.parquet")


def assert_same_tables(first, second):
    """All but the seconds, which are the clock's; bit for bit."""
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"), check_exact=True)


class Forbidden(AssertionError):
    """Something was done that must not be."""


def forbid(monkeypatch, *names):
    def refuse(*arguments, **options):
        raise Forbidden

    for name in names:
        monkeypatch.setattr(lab_module, name, refuse)


# ---------------------------------------------------------------------------------- what is asked


def test_a_study_expands_to_every_variant_in_every_block(study):
    cells = [(variant.label, seed) for variant, seed in study.cells()]
    assert cells == [(label, seed) for seed in (5, 6) for label in ("rank 2", "rank 3", "the same")]
    arms = [study.arm_of(variant, seed) for variant, seed in study.cells()]
    assert arms[1] == dataclasses.replace(ARM, rank=3, seed=5)
    assert arms[5] == dataclasses.replace(ARM, alpha=2.0, seed=6)
    assert study.contrasts == (("rank 3", "rank 2"), ("the same", "rank 2"))


def test_json_both_ways_and_a_hash_of_all_contents(study):
    contents = json.loads(json.dumps(study.to_json()))
    assert Study.from_json(contents) == study
    assert Study.from_json(contents).hash == study.hash
    assert dataclasses.replace(study, seeds=(5, 7)).hash != study.hash
    assert dataclasses.replace(study, sampling=Sampling(steps=2)).hash != study.hash


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(variants=()), "one or more different variants"),
        (dict(variants=(Variant("a"), Variant("a"))), "different variants"),
        (dict(seeds=(1, 1)), "different seeds"),
        (dict(seeds=()), "different seeds"),
        (dict(noise_seeds=()), "different noise"),
        (dict(phase="trial"), "phase must be one of"),
        (dict(checkpoints=0), "checkpoints must be >= 1"),
        (dict(prompts_per_radical=0), "prompts_per_radical must be >= 1"),
        (dict(contrasts=(("rank 2", "rank 9"),)), "'rank 9'"),
        (dict(variants=(Variant("a", dict(rank=0)),)), "rank must be a whole number"),
        (dict(variants=(Variant("a", dict(rnak=4)),)), "unknown settings"),
        (dict(variants=(Variant("a", dict(seed=4)),)), "the seed is the block's"),
        (dict(data={"name": "left17"}), "rule name must be one of"),
        (dict(variants=(Variant("a", data={"name": "left16", "ratio": 2}),)), "does not take"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_done(study, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(study, **{"contrasts": ()} | changes)


def test_variants_that_are_one_setting_share_a_training(study, tmp_path):
    lab = open_lab(study, tmp_path)
    rank_2, rank_3, same = study.variants
    assert lab.key(same, 5) != lab.key(rank_2, 5)  # alpha 2 is written otherwise than alpha = rank
    twice = dataclasses.replace(study, variants=(rank_2, Variant("again", {}), rank_3), contrasts=())
    lab = open_lab(twice, tmp_path)
    assert lab.key(twice.variants[1], 5) == lab.key(rank_2, 5)
    assert len(lab.trainings()) == 4


def test_keys_tell_settings_data_and_precision_apart(study, images, tmp_path):
    lab = open_lab(study, tmp_path)
    variant = study.variants[0]
    assert lab.key(variant, 5) != lab.key(variant, 6)
    assert lab.key(variant, 5) != open_lab(dataclasses.replace(study, precision="bf16"), tmp_path).key(variant, 5)
    fewer = write_images(tmp_path / "fewer", [f"{word} castle" for word in RADICALS], ["water mountain"])
    other = open_lab(dataclasses.replace(study, data={"folder": str(fewer)}), tmp_path)
    assert other.key(variant, 5) != lab.key(variant, 5)
    # What is drawn from an arm is no part of what it is.
    drawn = open_lab(dataclasses.replace(study, noise_seeds=(7,), checkpoints=2), tmp_path)
    assert drawn.key(variant, 5) == lab.key(variant, 5)
    assert drawn.drawing != lab.drawing


def test_prompts_are_those_that_all_datasets_share(study, images, tmp_path):
    fewer = write_images(
        tmp_path / "fewer", ["water castle", "tree castle", "fire mountain"], ["water mountain", "tree mountain"]
    )
    variants = (study.variants[0], Variant("fewer", data={"folder": str(fewer)}))
    lab = open_lab(dataclasses.replace(study, variants=variants, contrasts=(), prompts_per_radical=9), tmp_path)
    assert set(lab.prompts["train"].captions) == {"water castle", "tree castle"}
    assert set(lab.prompts["held_out"].captions) == {"water mountain", "tree mountain"}
    assert len(lab.held_out) == 2
    assert len(lab.data(variants[0])) == 8
    assert len(lab.data(variants[1])) == 3
    apart = write_images(tmp_path / "apart", ["water queen queen"], ["fire fire"])
    variants = (study.variants[0], Variant("apart", data={"folder": str(apart)}))
    with pytest.raises(ValueError, match="no caption"):
        open_lab(dataclasses.replace(study, variants=variants, contrasts=()), tmp_path)


# ---------------------------------------------------------------------------------- packs


class Data:
    """Stands for an encoded dataset."""

    def __init__(self, identity, size=100):
        self.identity, self.size = identity, size

    def __len__(self):
        return self.size


ONE, OTHER = Data("one"), Data("other")


@pytest.mark.parametrize(
    ("arms", "most", "packs"),
    [
        # As many as fit, in order.
        ([(dict(seed=k), ONE) for k in range(5)], 2, ["01", "23", "4"]),
        ([(dict(seed=k), ONE) for k in range(5)], 8, ["01234"]),
        # Never two datasets, two batches, or two choices of layers.
        ([({}, ONE), ({}, OTHER), (dict(seed=1), ONE)], 8, ["02", "1"]),
        ([(dict(batch=1), ONE), (dict(batch=4), ONE), (dict(batch=1, seed=1), ONE)], 8, ["02", "1"]),
        ([(dict(accumulation=2), ONE), ({}, ONE)], 8, ["0", "1"]),
        ([(dict(targets="all"), ONE), (dict(targets="attention"), ONE)], 8, ["0", "1"]),
        # Every weight: one at a time.
        ([(dict(targets="unet", seed=k), ONE) for k in range(3)], 8, ["0", "1", "2"]),
        # Equal lengths together, then equal ranks.
        ([(dict(images_seen=n, seed=n), ONE) for n in (100, 400, 101, 401)], 2, ["02", "13"]),
        ([(dict(rank=r, seed=r), ONE) for r in (64, 1, 65, 2)], 2, ["13", "02"]),
    ],
)
def test_packs_at_hand_worked_studies(arms, most, packs):
    trainings = {str(k): (Arm(**changes), data) for k, (changes, data) in enumerate(arms)}
    assert ["".join(pack) for pack in cut_into_packs(trainings, lambda arm, data: most)] == packs


def test_the_widest_arm_decides_how_many_fit():
    trainings = {f"{rank}{k}": (Arm(rank=rank, seed=k), ONE) for rank in (1, 8) for k in range(3)}
    packs = cut_into_packs(trainings, lambda arm, data: {1: 4, 8: 2}[arm.rank])
    assert packs == [("10", "11", "12"), ("80", "81"), ("82",)]


def test_a_plan_is_made_once_and_has_the_claims_arms_first(study, tmp_path, monkeypatch):
    longer = Variant("longer", dict(images_seen=16))
    four = dataclasses.replace(study, variants=(*study.variants, longer), contrasts=(("longer", "rank 3"),))
    lab = open_lab(four, tmp_path)
    packs = plan(lab, most_arms=3)
    by_key = {lab.key(variant, seed): variant.label for variant, seed in four.cells()}
    labels = [[by_key[key] for key in pack.keys] for pack in packs]
    assert labels == [["rank 3", "rank 3", "longer"], ["longer"], ["rank 2", "the same", "rank 2"], ["the same"]]
    assert all(pack.seconds > 0 and pack.gigabytes > 0 for pack in packs)
    forbid(monkeypatch, "measure_steps")
    assert plan(lab, most_arms=3) == packs
    with pytest.raises(Forbidden):
        plan(lab, most_arms=2)


def test_little_memory_makes_small_packs(study, tmp_path, measured):
    one = dataclasses.replace(study, variants=study.variants[:1], contrasts=(("rank 2", "rank 2"),))
    lab = open_lab(one, tmp_path)
    assert [len(pack.keys) for pack in plan(lab, memory_gb=1e-6)] == [1, 1]
    assert [len(pack.keys) for pack in plan(lab, memory_gb=1e6)] == [2]


def test_memory_is_measured_at_its_peak():
    lab_module._peak_gigabytes(torch.device("cpu"), reset=True)
    before = lab_module._peak_gigabytes(torch.device("cpu"))
    block = torch.ones(100_000_000 // 4)
    assert lab_module._peak_gigabytes(torch.device("cpu")) - before == pytest.approx(0.1, abs=0.03)
    del block
    assert lab_module._peak_gigabytes(torch.device("cpu")) - before == pytest.approx(0.1, abs=0.03)
    assert lab_module._peak_gigabytes(torch.device("cpu"), reset=True) > 0
    assert lab_module._peak_gigabytes(torch.device("cpu")) - before < 0.05
    assert 0.1 < lab_module._free_gigabytes(torch.device("cpu")) < 10_000


def test_a_pack_is_measured_by_its_own_steps(study, tmp_path, monkeypatch):
    lab = open_lab(study, tmp_path)
    arms = [study.arm_of(study.variants[0], seed) for seed in (5, 6)]
    seconds, gigabytes = measure_steps(lab.base, lab.data(study.variants[0]), arms)
    assert 0 < seconds < 5 and 0.1 < gigabytes < 20
    monkeypatch.setattr(lab_module, "measure_steps", lambda base, data, arms, steps=2: (0.5 * len(arms), 2.0))
    monkeypatch.setattr(lab_module, "_seconds_per_image", lambda lab, arm: 0.25)
    (first, second) = plan(lab)
    # Four arms of four steps at 2 s, and 8 prompts x 2 noises of each at a quarter of a second; then two arms.
    assert (first.seconds, first.gigabytes) == (4 * 2.0 + 4 * 16 * 0.25, 2.0)
    assert second.seconds == 4 * 1.0 + 2 * 16 * 0.25


# ---------------------------------------------------------------------------------- a study from end to end


def test_the_table_has_a_row_for_every_image(finished, study):
    folder, report, _ = finished
    table = table_of(folder)
    assert len(table) == 3 * 2 * 8 * 2  # variants, blocks, prompts of both splits, noises
    assert list(table.columns[:9]) == "study variant rank arm run seed checkpoint final images_seen".split()
    assert list(table.columns[9:13]) == ["split", "prompt", "noise_seed", "expected"]
    assert list(table.columns[-5:]) == ["hit", "diversity", "held_out_loss", "stopped", "seconds"]
    counts = table.groupby(["variant", "seed", "split"]).size()
    assert set(counts) == {8}
    assert set(table.loc[table["split"] == "held_out", "prompt"]) == {f"{word} mountain" for word in RADICALS}
    assert (table["images_seen"] == 8).all() and table["final"].all() and table["stopped"].isna().all()
    assert table["expected"].tolist() == [RADICALS[prompt.split()[0]] for prompt in table["prompt"]]
    assert set(table["noise_seed"]) == {0, 1}
    assert table.groupby("variant")["rank"].first().to_dict() == {"rank 2": 2, "rank 3": 3, "the same": 2}


def test_each_arms_images_are_those_of_its_last_checkpoint(finished, study):
    folder, _, _ = finished
    lab = open_lab(study, folder)
    moments = stored_moments(lab)
    assert {len(found) for found in moments.values()} == {1}
    for variant, seed in study.cells():
        (moment,) = moments[lab.key(variant, seed)]
        trained = RunFolder.open(folder / moment.folder)
        assert moment.run == trained.settings["hash"]
        index = trained.settings["arms"].index(study.arm_of(variant, seed).to_json())
        path = trained.checkpoint_path(4) / f"arm_{index}" / "adapter_model.safetensors"
        trainable = make_trainable(lab.base.denoiser, [study.arm_of(variant, seed)])
        trainable.load_state(0, load_file(path))
        drawn = sample(lab.base, lab.captions, (0, 1), study.sampling, trainable=trainable, size_px=32)[0]
        stored, facts = trained.read_samples(moment.samples)
        assert (drawn == stored).all()
        assert [asked["prompt"] for asked in facts["prompts"]] == lab.captions


def test_hits_are_the_judges_readings(finished):
    folder, _, _ = finished
    table = table_of(folder)
    expected = (table["radical"] == table["expected"]) & ~table["abstain"]
    assert table["hit"].tolist() == expected.tolist()
    assert 0 < table["hit"].mean() < 1


def test_held_out_loss_is_the_plain_error_at_shared_noise(finished, study):
    folder, report, _ = finished
    lab = open_lab(study, folder)
    variant, data = study.variants[1], lab.held_out
    (moment,) = stored_moments(lab)[lab.key(variant, 6)]
    trained = RunFolder.open(folder / moment.folder)
    index = trained.settings["arms"].index(study.arm_of(variant, 6).to_json())
    trainable = make_trainable(lab.base.denoiser, [study.arm_of(variant, 6)])
    trainable.load_state(0, load_file(trained.checkpoint_path(4) / f"arm_{index}" / "adapter_model.safetensors"))
    scheduler = DDPMScheduler.from_config(lab.base.scheduler_config)
    errors = []
    for number in range(6):
        draw = draw_example(0, number, 4, data.mean.shape[1:], lab.base.timesteps)
        latents = data.mean[draw.row] + np.exp(0.5 * data.log_variance[draw.row]) * draw.posterior_noise
        latents, noise = torch.from_numpy(latents)[None], torch.from_numpy(draw.noise)[None]
        timestep = torch.tensor([draw.timestep])
        text = data.text(data.caption[[draw.row]], lab.base.device)
        with torch.no_grad(), trainable.attached() as segments:
            segments.pairs = ((0, 1),)
            predicted = lab.base.denoise(scheduler.add_noise(latents, noise, timestep), timestep, text)
        errors.append((predicted - noise).square().mean().item())
    assert moment.held_out_loss == pytest.approx(np.mean(errors), rel=1e-5)
    losses = {(arm["variant"], arm["seed"]): arm["held_out_loss"] for arm in report["arms"]}
    assert losses["rank 3", 6] == moment.held_out_loss
    (found,) = [loss for loss in report["losses"] if loss["first"] == "rank 3"]
    expected = np.mean([losses["rank 3", seed] - losses["rank 2", seed] for seed in (5, 6)])
    assert found["difference"][0] == pytest.approx(expected)


def test_the_report_says_what_the_table_holds(finished, study):
    folder, report, _ = finished
    table = table_of(folder)
    assert json.loads((folder / "report-radicals.json").read_text()) == json.loads(json.dumps(report))
    assert Study.from_json(report["study"]) == Study.from_json(json.loads((folder / "study.json").read_text())) == study
    assert report["prompts"] == {"held_out": 4, "train": 4}
    for rate in report["rates"]:
        rows = (table["variant"] == rate["variant"]) & (table["split"] == rate["split"])
        assert rate["value"] == pytest.approx(table.loc[rows, "hit"].mean())
        assert rate["low"] <= rate["value"] <= rate["high"]
    assert len(report["sentences"]["held_out"]) == 2
    assert report["sentences"]["held_out"][0].startswith("in base, rank 3 against rank 2: ")
    figure = json.loads((folder / "figure-radicals.json").read_text())
    assert figure["facts"]["study"] == study.hash
    assert set(figure["facts"]["runs"]) == {found.settings["hash"] for found in find_runs(folder)}


def test_only_the_contrasts_beside_the_claim_are_corrected_together(study):
    """Three variants, of which two beat the first in every one of eight blocks."""
    three = dataclasses.replace(study, seeds=tuple(range(8)))
    rng = np.random.default_rng(0)
    rows = [
        dict(variant=variant.label, seed=seed, split="train", prompt=f"{p}", final=True, hit=rng.random() < better)
        for variant, better in zip(three.variants, (0.1, 0.9, 0.9), strict=True)
        for seed in range(8)
        for p in range(20)
    ]
    first, second = contrasts(three, pd.DataFrame(rows), "train")
    assert (first.p, first.p_corrected) == (2 / 256, 2 / 256)
    assert (second.p, second.p_corrected) == (2 / 256, 2 / 256)
    # With four more contrasts Holm would have to say 8/256; flipped together, the clear one keeps its 2/256.
    labels = [variant.label for variant in study.variants]
    pairs = (*three.contrasts, ("the same", "rank 3"), ("rank 3", "the same"), *((label, label) for label in labels))
    found = contrasts(dataclasses.replace(three, contrasts=pairs), pd.DataFrame(rows), "train")
    assert [contrast.p_corrected for contrast in found[:2]] == [2 / 256, 2 / 256]
    assert found[2].p < 1 and found[2].p_corrected >= found[2].p
    assert [contrast.p_corrected for contrast in found[4:]] == [1, 1, 1]


def test_outcomes_are_blocks_by_prompts(study):
    rows = pd.DataFrame(
        [("a", 6, "q", 0, True), ("a", 5, "q", 0, False), ("a", 5, "p", 0, True), ("a", 6, "p", 0, True)]
        + [("a", 6, "q", 1, False), ("a", 5, "q", 1, False), ("a", 5, "p", 1, True), ("a", 6, "p", 1, False)],
        columns=["variant", "seed", "prompt", "noise_seed", "hit"],
    ).assign(split="train", final=True)
    assert outcomes(rows, "a", "train").tolist() == [[1, 0], [0.5, 0.5]]
    assert outcomes(rows.assign(other=3), "a", "train", "other").tolist() == [[3, 3], [3, 3]]


def test_what_is_stored_is_not_done_again(finished, study, monkeypatch):
    folder, report, _ = finished
    forbid(monkeypatch, "run_training", "sample", "measure_steps", "make_trainable")
    judge = DarknessJudge()
    again, said = run(study, folder, judge=judge)
    assert again == report
    assert judge.read_images == 0  # its readings are stored too
    assert "stored" in said and "about 0.0 min to go" in said


def test_further_blocks_train_only_their_own_arms(finished, study, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "more")
    trained = []

    def counting(base, data, arms, *rest, **options):
        trained.extend(arm.seed for arm in arms)
        return original(base, data, arms, *rest, **options)

    original = lab_module.run_training
    monkeypatch.setattr(lab_module, "run_training", counting)
    more = dataclasses.replace(study, seeds=(5, 6, 7))
    run(more, folder)
    assert trained == [7, 7, 7]
    assert len(table_of(folder)) == 3 * 3 * 8 * 2


def test_adapters_are_kept_only_where_asked_for(finished, study, tmp_path):
    assert {tuple(found.checkpoints()) for found in find_runs(finished[0])} == {(0, 4)}
    run(study, tmp_path)
    assert {tuple(found.checkpoints()) for found in find_runs(tmp_path)} == {()}
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


def test_packs_of_two_folders_merge_by_copying(finished, study, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    report, said = run(study, here, only=[0])
    assert report is None and "2 of 6 arms are not there yet" in said
    assert run(study, there, only=[1])[0] is None
    for pack in (there / "packs").iterdir():
        shutil.copytree(pack, here / "packs" / pack.name)
    forbid(monkeypatch, "run_training", "sample")
    run(study, here)
    assert_same_tables(table_of(here), table_of(finished[0]))


def test_another_judge_reads_without_sampling(finished, study, monkeypatch, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    forbid(monkeypatch, "run_training", "sample", "make_trainable")
    judge = DarknessJudge(threshold=0)  # sees fire everywhere
    report = write_report(open_lab(study, folder), judge, "fire")
    assert judge.read_images == 3 * 2 * 8 * 2
    table = table_of(folder, "fire")
    assert set(table["radical"]) == {"火"}
    columns = ["variant", "seed", "prompt", "noise_seed", "held_out_loss"]
    pd.testing.assert_frame_equal(table[columns], table_of(folder)[columns])
    assert report["judge"] == "fire"
    assert (folder / "figure-fire.png").exists() and (folder / "figure-radicals.png").exists()
    # Whoever reads other things says what a hit is.
    alike = write_report(open_lab(study, folder), judge, "any", hits=lambda readings, expected: np.ones(len(readings)))
    assert all(rate["value"] == 1 for rate in alike["rates"])
    by_light = write_report(open_lab(study, folder), DarknessJudge(), "light", outcome="probability")
    assert by_light["rates"][0]["value"] == pytest.approx(
        table_of(folder, "light").query("variant == 'rank 2' and split == 'held_out'")["probability"].mean()
    )


def test_a_report_of_an_unfinished_study_is_refused(study, tmp_path):
    with pytest.raises(ValueError, match="6 of 6 arms are not there yet"):
        write_report(open_lab(study, tmp_path), DarknessJudge())


def test_a_dry_run_trains_nothing(study, tmp_path, monkeypatch):
    forbid(monkeypatch, "run_training")
    report, said = run(study, tmp_path, dry_run=True)
    assert report is None
    assert said.startswith("tiny: 6 arms in 2 packs, about ")
    assert "pack 0: 4 x (attention, rank 2/3, batch 2): about" in said
    assert missing(open_lab(study, tmp_path)) == 6


@pytest.mark.parametrize("number", [-1, 2])
def test_numbers_of_no_pack_are_refused(study, tmp_path, number):
    with pytest.raises(ValueError, match="from 0 to 1, got"):
        run(study, tmp_path, only=[number])


def test_a_diverging_arm_stands_in_the_table(study, tmp_path):
    wild = Variant("wild", dict(peak_lr=1e18, clip_norm=1e6))
    pair = dataclasses.replace(study, variants=(study.variants[0], wild), contrasts=(), checkpoints=2)
    report, _ = run(pair, tmp_path)
    table = table_of(tmp_path)
    ends = table[table["final"]].groupby("variant").agg({"stopped": "first", "images_seen": "max", "hit": "size"})
    assert "not both finite" in ends.loc["wild", "stopped"]
    assert ends.loc["wild", "images_seen"] < 8 == ends.loc["rank 2", "images_seen"]
    assert ends["hit"].tolist() == [32, 32]
    stopped = {(rate["variant"], rate["final"]): rate["stopped"] for rate in report["rates"]}
    assert stopped["wild", True] == 2 and stopped["rank 2", True] == 0


def test_several_moments_of_arms_of_several_lengths(study, tmp_path):
    longer = Variant("longer", dict(images_seen=24))
    pair = dataclasses.replace(study, variants=(study.variants[0], longer), contrasts=(), checkpoints=2)
    run(pair, tmp_path)
    table = table_of(tmp_path)
    seen = table.groupby(["variant", "checkpoint"])["images_seen"].unique().explode()
    assert seen.to_dict() == {("longer", 1): 8, ("longer", 2): 24, ("rank 2", 1): 2, ("rank 2", 2): 8}
    assert (table["final"] == (table["checkpoint"] == 2)).all()
    shown = rates(pair, table)
    assert len(shown) == 2 * 2 * 2
    # At their common step the two have come as far as each other.
    at_eight = [table[(table["variant"] == name) & (table["images_seen"] == 8)] for name in ("longer", "rank 2")]
    assert len(at_eight[0]) == len(at_eight[1]) == 32


def test_every_weight_is_a_pack_of_its_own(study, tmp_path):
    whole = Variant("every weight", dict(targets="unet", peak_lr=1e-3))
    pair = dataclasses.replace(study, variants=(study.variants[0], whole), contrasts=())
    _, said = run(pair, tmp_path)
    assert said.count("1 x (every weight, batch 2)") == 2
    assert sorted(len(found.settings["arms"]) for found in find_runs(tmp_path)) == [1, 1, 2]
    assert len(table_of(tmp_path)) == 2 * 2 * 16


def test_a_stop_file_ends_a_pack_and_the_next_call_goes_on(study, finished, tmp_path, monkeypatch):
    def stopping(*arguments, **options):
        for report in original(*arguments, **options):
            if report.step == 2:
                RunFolder.open(arguments[3]).request_stop()
            yield report

    original = demo_module.train
    with monkeypatch.context() as patch:
        patch.setattr(demo_module, "train", stopping)
        with pytest.raises(InterruptedError, match="stopped before its end"):
            run(study, tmp_path)
    run(study, tmp_path)
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


def test_what_was_drawn_before_an_interruption_is_not_drawn_again(study, finished, tmp_path, monkeypatch):
    drawn = []

    def third_time_unlucky(*arguments, **options):
        drawn.append(options["trainable"].arms)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = lab_module.sample
    monkeypatch.setattr(lab_module, "sample", third_time_unlucky)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path)
    run(study, tmp_path)
    assert len(drawn) == 6 + 1  # every arm once, and once more the one that was interrupted
    assert_same_tables(table_of(tmp_path), table_of(finished[0]))


# ---------------------------------------------------------------------------------- killed, and in several processes


def test_a_share_hides_the_launcher_and_gives_it_back(monkeypatch):
    told = dict(RANK="1", WORLD_SIZE="3", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with own_share() as share:
        assert (share.index, share.processes, share.on_this_machine) == (1, 3, 2)
        assert not told.keys() & os.environ.keys()
    assert {name: os.environ[name] for name in told} == told
    for name in told:
        monkeypatch.delenv(name)
    with own_share() as share:
        assert (share.index, share.processes, share.on_this_machine) == (0, 1, 1)


@pytest.fixture(scope="module")
def processes():
    """Processes that start from a server which has imported everything: torch does not survive a plain fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kanjilab.ablate", "tests.tiny", "tests.test_ablate"])
    return context


def followed_by_pause(method, pause):
    def slow(*arguments):
        method(*arguments)
        time.sleep(pause)

    return slow


def ablate_elsewhere(study, folder, environment, pause):
    """In another process; with a pause after each file is written, so that there is time to kill it there."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    make_small(pytest.MonkeyPatch())
    lab_module.SAVE_EVERY_SECONDS = 0.0
    for name in ("write_samples", "write_checkpoint"):
        setattr(RunFolder, name, followed_by_pause(getattr(RunFolder, name), pause))
    ablate(study, folder, judge=DarknessJudge(), most_arms=3)


def start(processes, study, folder, environment=None, pause=0.0):
    process = processes.Process(target=ablate_elsewhere, args=(study, folder, environment or {}, pause))
    process.start()
    return process


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def in_threes(study, tmp_path_factory):
    """The study in packs of three arms, done in one go by one process."""
    folder = tmp_path_factory.mktemp("studies") / "threes"
    run(study, folder, most_arms=3)
    return folder


@pytest.mark.parametrize("when", ["training", "drawing"])
def test_a_killed_study_goes_on_to_the_same_table(processes, study, in_threes, tmp_path, when):
    def come_to(number):
        if when == "training":  # step 1, then step 3
            return bool(list(tmp_path.glob(f"packs/*/checkpoints/step_00000{2 * number - 1}")))
        return len(list(tmp_path.glob("packs/*/samples/[!.]*.safetensors"))) >= number

    for kills in (1, 2):
        process = start(processes, study, tmp_path, pause=0.1)
        wait_for(partial(come_to, kills))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "table-radicals.parquet").exists()
    last = start(processes, study, tmp_path)
    last.join()
    assert last.exitcode == 0
    assert_same_tables(table_of(tmp_path), table_of(in_threes))
    runs = [{settings_hash(found.settings["arms"]) for found in find_runs(folder)} for folder in (tmp_path, in_threes)]
    assert runs[0] == runs[1]  # nothing was trained in other company than before


def test_two_processes_make_the_table_of_one(processes, study, in_threes, tmp_path):
    common = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    started = [start(processes, study, tmp_path, common | dict(RANK=rank, LOCAL_RANK=rank)) for rank in ("0", "1")]
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert_same_tables(table_of(tmp_path), table_of(in_threes))
    seen = [json.loads((folder / "report-radicals.json").read_text())["contrasts"] for folder in (tmp_path, in_threes)]
    assert seen[0] == seen[1]
