"""Panels for JupyterLab and Voilà: thin shells over stored runs, each with the call that reproduces what it shows."""

from importlib import import_module
from typing import Any

# Which file holds each panel; it is imported when first asked for, so that one panel does not wait for the others.
PANELS = {
    "AblationPanel": "ablation",
    "DatasetBrowser": "dataset_browser",
    "Playground": "playground",
    "StripComparator": "comparator",
    "TrainingPanel": "training",
}
__all__ = list(PANELS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in PANELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PANELS[name]}"), name)
