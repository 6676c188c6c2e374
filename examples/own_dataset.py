"""Train on an image folder of your own and draw its captions: python examples/own_dataset.py FOLDER RUN [IMAGES]"""

import sys
from dataclasses import replace
from pathlib import Path

import kanjilab as kl


def main(folder: str, run_folder: str, images_seen: str = "3600") -> None:
    """The strip has the first captions in rows and moments of the training in columns; called again, it goes on."""
    dataset = kl.open_dataset(folder)  # whatever is wrong with it is listed, file by file
    base = kl.load_base("pocket2", "bf16")
    data = kl.encode_dataset(base, dataset.split("train"))
    arm = replace(kl.DEMO_ARM, images_seen=int(images_seen))
    run = kl.run_training(base, data, [arm], Path(run_folder), checkpoints=3)
    captions = list(dict.fromkeys(dataset.table["text"]))[:4]
    images, facts = kl.sample_history(base, run, captions, [0, 1], kl.Sampling("dpm-solver++", 15, 5.0))
    print(kl.save_strip(kl.history_strip(images, facts), run.path / "strip.png"))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) in (3, 4) else sys.exit(__doc__)
