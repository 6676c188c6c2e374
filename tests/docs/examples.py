"""Python examples of a Markdown page, and how they are run."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_examples(page: Path, text: str | None = None) -> dict:
    """Runs a page's examples one after the other, each with the names of those before it; these names."""
    names: dict = {"__name__": "example"}
    for number, example in enumerate(EXAMPLE.findall(page.read_text(encoding="utf-8") if text is None else text)):
        exec(compile(example, f"{page.name}, example {number}", "exec"), names)
    return names
