"""Workflows whose every link fits, by a table of ComfyUI's nodes that is written here once more; and their picture."""

import json

import pytest

from kanjilab.export.comfyui import (
    Drawing,
    draw_workflow,
    links,
    sd1_workflow,
    sd3_workflow,
    workflow_for,
    write_workflow,
)
from kanjilab.viz.charts import figure_png

NUMBER, WHOLE, TEXT = (int, float), (int,), (str,)
SAMPLERS = {"euler", "dpmpp_2m"}  # of many
SCHEDULERS = {"sgm_uniform", "karras"}
# Node: the types of its inputs, in Python's for values and in ComfyUI's for links; and of its outputs.
NODES = {
    "CheckpointLoaderSimple": (dict(ckpt_name=TEXT), ("MODEL", "CLIP", "VAE")),
    "TripleCLIPLoader": (dict(clip_name1=TEXT, clip_name2=TEXT, clip_name3=TEXT), ("CLIP",)),
    "LoraLoader": (
        dict(model="MODEL", clip="CLIP", lora_name=TEXT, strength_model=NUMBER, strength_clip=NUMBER),
        ("MODEL", "CLIP"),
    ),
    "LoraLoaderModelOnly": (dict(model="MODEL", lora_name=TEXT, strength_model=NUMBER), ("MODEL",)),
    "ModelSamplingSD3": (dict(model="MODEL", shift=NUMBER), ("MODEL",)),
    "CLIPTextEncode": (dict(text=TEXT, clip="CLIP"), ("CONDITIONING",)),
    "EmptyLatentImage": (dict(width=WHOLE, height=WHOLE, batch_size=WHOLE), ("LATENT",)),
    "EmptySD3LatentImage": (dict(width=WHOLE, height=WHOLE, batch_size=WHOLE), ("LATENT",)),
    "KSampler": (
        dict(
            model="MODEL",
            seed=WHOLE,
            steps=WHOLE,
            cfg=NUMBER,
            sampler_name=TEXT,
            scheduler=TEXT,
            positive="CONDITIONING",
            negative="CONDITIONING",
            latent_image="LATENT",
            denoise=NUMBER,
        ),
        ("LATENT",),
    ),
    "VAEDecode": (dict(samples="LATENT", vae="VAE"), ("IMAGE",)),
    "SaveImage": (dict(images="IMAGE", filename_prefix=TEXT), ()),
}
DRAWING = Drawing("mountains", "blurry", seed=7, steps=20, guidance=4.0, size_px=256, batch=2, strength=0.8)
WORKFLOWS = {
    "sd1": sd1_workflow("sd-v1-4.safetensors", "kanji.safetensors", DRAWING),
    "sd3": sd3_workflow("sd3.5_large.safetensors", "kanji.safetensors", DRAWING),
}


def faults(workflow):
    """What ComfyUI would refuse."""
    found = []
    for name, node in workflow.items():
        inputs, _ = NODES[node["class_type"]]
        if inputs.keys() != node["inputs"].keys():
            found.append(f"{name}: inputs {sorted(inputs.keys() ^ node['inputs'].keys())}")
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source, slot = value
                outputs = NODES[workflow[source]["class_type"]][1] if source in workflow else ()
                if slot >= len(outputs) or outputs[slot] != inputs.get(key):
                    found.append(f"{name}.{key}: no {inputs.get(key)} at {value}")
            elif not isinstance(value, inputs.get(key, ())):
                found.append(f"{name}.{key}: {value!r}")
    return found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_link_ends_at_an_output_of_its_type(name):
    workflow = WORKFLOWS[name]
    assert faults(workflow) == []
    reached, pending = set(), [key for key, node in workflow.items() if node["class_type"] == "SaveImage"]
    while pending:
        reached.add(node := pending.pop())
        pending += [source for source, _, target, _ in links(workflow) if target == node]
    assert reached == set(workflow), "a node whose result nobody uses"


@pytest.mark.parametrize(
    ("place", "value"), [(("8", "model"), ["9", 0]), (("9", "vae"), ["1", 1]), (("5", "clip"), ["12", 0])]
)
def test_the_check_sees_a_wrong_link(place, value):
    workflow = json.loads(json.dumps(WORKFLOWS["sd3"]))
    workflow[place[0]]["inputs"][place[1]] = value
    assert len(faults(workflow)) == 1


def one(workflow, kind):
    (node,) = [node["inputs"] for node in workflow.values() if node["class_type"] == kind]
    return node


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_is_drawn_is_what_was_asked_for(name):
    workflow = WORKFLOWS[name]
    sampler = one(workflow, "KSampler")
    assert (sampler["seed"], sampler["steps"], sampler["cfg"], sampler["denoise"]) == (7, 20, 4.0, 1.0)
    assert sampler["sampler_name"] in SAMPLERS and sampler["scheduler"] in SCHEDULERS
    assert workflow[sampler["positive"][0]]["inputs"]["text"] == "mountains"
    assert workflow[sampler["negative"][0]]["inputs"]["text"] == "blurry"
    latent = workflow[sampler["latent_image"][0]]["inputs"]
    assert latent == dict(width=256, height=256, batch_size=2)
    strengths = {key: value for node in workflow.values() for key, value in node["inputs"].items() if "stren" in key}
    assert strengths == {"strength_model": 0.8} | ({"strength_clip": 0.8} if name == "sd1" else {})


def test_sd3_takes_its_text_encoders_from_three_files_and_shifts_after_the_lora():
    workflow = WORKFLOWS["sd3"]
    loader = next(name for name, node in workflow.items() if node["class_type"] == "TripleCLIPLoader")
    clips = [node["inputs"]["clip"] for node in workflow.values() if node["class_type"] == "CLIPTextEncode"]
    assert clips == [[loader, 0]] * 2  # a checkpoint of SD 3.5 has none of its own
    shifted = workflow[one(workflow, "KSampler")["model"][0]]
    assert (shifted["class_type"], shifted["inputs"]["shift"]) == ("ModelSamplingSD3", 3.0)
    assert workflow[shifted["inputs"]["model"][0]]["class_type"] == "LoraLoaderModelOnly"


def test_a_base_has_the_workflow_of_its_family(tmp_path):
    assert (
        one(workflow_for("sd35-large", True, "x"), "CheckpointLoaderSimple")["ckpt_name"] == "sd3.5_large.safetensors"
    )
    other = workflow_for("/models/my base", False, "x")
    assert one(other, "CheckpointLoaderSimple")["ckpt_name"] == "my base.safetensors"
    assert "EmptyLatentImage" in {node["class_type"] for node in other.values()}
    assert json.loads(write_workflow(tmp_path / "w.json", other).read_text()) == other


def test_impossible_drawings_are_refused():
    with pytest.raises(ValueError, match="size_px must be a positive multiple of 16, got 100"):
        Drawing(size_px=100)
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        Drawing(batch=0)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_picture_shows_every_node_link_and_setting(name):
    workflow = json.loads(json.dumps(WORKFLOWS[name]))
    texts = [node["inputs"] for node in workflow.values() if node["class_type"] == "CLIPTextEncode"]
    texts[0]["text"], texts[1]["text"] = "$x$ 山 " + 40 * "y", ""
    figure = draw_workflow(workflow)
    (ax,) = figure.axes
    shown = [text.get_text() for text in ax.texts]
    for node in workflow.values():
        assert node["class_type"] in shown
    assert "steps: 20" in shown and "text: (empty)" in shown
    assert any(line.startswith("text: $x$ 山 yyy") and line.endswith("…") for line in shown)
    assert len(ax.lines) == len(list(links(workflow)))
    boxes = [patch.get_bbox() for patch in ax.patches if hasattr(patch, "get_boxstyle")]
    assert len(boxes) == len(workflow)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
    assert figure_png(figure).startswith(b"\x89PNG")
