"""Study how text-to-image diffusion models learn the parts and meanings of kanji.

The names that a notebook needs are offered here, and each is imported when it is first asked for, so that
`import kanjilab` loads neither torch nor pandas. docs/api.md shows an example of each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kanjilab.cli.coin_folder import write_coinage as write_coinage
    from kanjilab.core.config import Arm as Arm
    from kanjilab.core.run_folder import RunFolder as RunFolder
    from kanjilab.data.build import build_dataset as build_dataset
    from kanjilab.data.image_folder import open_dataset as open_dataset
    from kanjilab.data.selection import Left16 as Left16
    from kanjilab.data.selection import Seed16 as Seed16
    from kanjilab.evaluation.judges.explanation import explain as explain
    from kanjilab.evaluation.judges.part_judge import load_judge as load_judge
    from kanjilab.evaluation.judges.radical_judge import RadicalJudge as RadicalJudge
    from kanjilab.evaluation.scoring import caption_prompts as caption_prompts
    from kanjilab.evaluation.scoring import score_prompts as score_prompts
    from kanjilab.experiments.coining import coin as coin
    from kanjilab.experiments.designs import make_study as make_study
    from kanjilab.experiments.report import StoredStudy as StoredStudy
    from kanjilab.experiments.run_study import ablate as ablate
    from kanjilab.experiments.study import Study as Study
    from kanjilab.experiments.study import Variant as Variant
    from kanjilab.export.conversion import to_comfyui as to_comfyui
    from kanjilab.export.conversion import to_diffusers as to_diffusers
    from kanjilab.models.loading import load_base as load_base
    from kanjilab.models.sampling import Sampling as Sampling
    from kanjilab.models.sampling import sample as sample
    from kanjilab.training.checkpoints import load_checkpoints as load_checkpoints
    from kanjilab.training.driver import run_training as run_training
    from kanjilab.training.encoded import encode_dataset as encode_dataset
    from kanjilab.training.history import history_strip as history_strip
    from kanjilab.training.history import sample_history as sample_history
    from kanjilab.training.loop import train as train
    from kanjilab.training.presets import DEMO_ARM as DEMO_ARM
    from kanjilab.viz.strip import Strip as Strip
    from kanjilab.viz.strip import save_strip as save_strip

__version__ = "0.1.0"

# The same names by module, for running code; a test holds the two lists together.
_MODULES = {
    "cli.coin_folder": "write_coinage",
    "core.config": "Arm",
    "core.run_folder": "RunFolder",
    "data.build": "build_dataset",
    "data.image_folder": "open_dataset",
    "data.selection": "Left16 Seed16",
    "evaluation.judges.explanation": "explain",
    "evaluation.judges.part_judge": "load_judge",
    "evaluation.judges.radical_judge": "RadicalJudge",
    "evaluation.scoring": "caption_prompts score_prompts",
    "experiments.coining": "coin",
    "experiments.designs": "make_study",
    "experiments.report": "StoredStudy",
    "experiments.run_study": "ablate",
    "experiments.study": "Study Variant",
    "export.conversion": "to_comfyui to_diffusers",
    "models.loading": "load_base",
    "models.sampling": "Sampling sample",
    "training.checkpoints": "load_checkpoints",
    "training.driver": "run_training",
    "training.encoded": "encode_dataset",
    "training.history": "history_strip sample_history",
    "training.loop": "train",
    "training.presets": "DEMO_ARM",
    "viz.strip": "Strip save_strip",
}
_MODULE_OF = {name: f"kanjilab.{module}" for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # so that this is called once a name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
