"""The pages of the repository's texts, their links, and the Python examples in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
PAGES += [*sorted((ROOT / "kanjilab" / "weights").glob("*/README.md")), ROOT / "notebooks" / "from_pocket_to_sd.md"]
PAGES += [ROOT / "examples" / "README.md"]
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def examples(text: str) -> list[str]:
    """The Python examples of a page, in order."""
    return EXAMPLE.findall(text)


def run_examples(sources: list[str], page: str) -> dict:
    """Runs a page's examples one after the other, each with the names of those before it; these names."""
    names: dict = {"__name__": "example"}
    for number, source in enumerate(sources):
        exec(compile(source, f"{page}, example {number}", "exec"), names)
    return names


def anchors(text: str) -> set[str]:
    """What GitHub lets links on a page's headings end in."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCED.sub("", text)))
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there; addresses of other sites are not tried."""
    broken = []
    for found in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        link = found[0] or found[1]
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            broken.append(link)
    return broken
