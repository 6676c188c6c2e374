"""Panels for JupyterLab and Voilà: thin shells over stored runs, each with the code that reproduces what it shows.

Show one by naming it last in a cell: `StripComparator("runs")`, `Playground("runs")`, `CoinPage("robot")`,
`BrushPanel()`, `DatasetBrowser(folder)`, `TrainingPanel(folder)` or `AblationPanel(folder)`.
"""

from importlib import import_module
from typing import Any

# The module of each panel, imported on first use, so that one panel does not wait for the imports of the others.
PANELS = {
    "AblationPanel": "ablation",
    "BrushPanel": "brush",
    "CoinPage": "coin_page",
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
