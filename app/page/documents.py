"""The pages of docs/ as HTML: links between them work, pictures come along, other files lead to the repository."""

import html
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

ORDER = ("findings", "method", "page", "coin", "panels", "own-data", "large-bases", "extending", "architecture", "api")
WEBP_QUALITY = 80


def heading_id(text: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def titles_of(docs: Path) -> dict[str, str]:
    """The title of each page by its name, in the order in which they are listed."""
    names = sorted((path.stem for path in docs.glob("*.md")), key=lambda name: (_place(name), name))
    return {name: re.search(r"^# (.+)$", (docs / f"{name}.md").read_text(), re.M)[1] for name in names}  # type: ignore[index]


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


class Documents:
    """Renders pages of a repository.

    Args:
        root: of the repository.
        site: where pictures and files that pages show or link to are copied.
        repository: address of the repository in the web; "" for none, where links to its files become plain text.
    """

    def __init__(self, root: Path, site: Path, repository: str = ""):
        self.root, self.site, self.repository = root, site, repository.rstrip("/")
        self.markdown = MarkdownIt("js-default", {"html": False, "linkify": False})

    def render(self, path: Path) -> str:
        """The HTML of a page; headings have GitHub's anchors, and tables scroll by themselves.

        Args:
            path: a Markdown file in docs/.
        """
        tokens = self.markdown.parse(path.read_text())
        for before, token in zip([None, *tokens], tokens, strict=False):
            if before is not None and before.type == "heading_open":
                before.attrSet("id", heading_id(_plain(token)))
            self._mend(token, path)
        text = self.markdown.renderer.render(tokens, self.markdown.options, {})
        scrolling = '<div class="scroll" role="region" aria-label="Table" tabindex="0"><table>'
        return text.replace("<table>", scrolling).replace("</table>", "</table></div>")

    def first_sentence(self, name: str) -> str:
        """What a page of docs/ begins with, as text; "" where it begins with no paragraph."""
        tokens = self.markdown.parse((self.root / "docs" / f"{name}.md").read_text())
        begins = tokens[3].type == "paragraph_open"  # after a heading's three
        return re.split(r"(?<=\.)\s", _plain(tokens[4]))[0].removesuffix(":") if begins else ""

    def _mend(self, token: Token, page: Path) -> None:
        """Gives links and pictures of a line the addresses that they have on the site."""
        open_links: list[Token] = []
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", self._copied(page, str(child.attrs["src"])))
                child.attrSet("loading", "lazy")
            elif child.type == "link_open":
                address = self._address(page, str(child.attrs["href"]))
                open_links.append(child)
                child.attrs = {} if address is None else {"href": address}
                child.tag = "span" if address is None else "a"
            elif child.type == "link_close":
                child.tag = open_links.pop().tag

    def _address(self, page: Path, href: str) -> str | None:
        """Where a link leads; None where the site has nothing there."""
        parts = urlsplit(href)
        if parts.scheme or not parts.path:
            return href
        target = (page.parent / parts.path).resolve()
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        if target.parent == self.root / "docs" and target.suffix == ".md":
            return f"{target.stem}.html{fragment}"
        if target.suffix in (".png", ".gif", ".webp"):
            return self._copied(page, href)
        if target.suffix == ".json" and target.is_relative_to(self.root / "figures"):
            return self._kept(target)
        name = target.relative_to(self.root).as_posix()
        return f"{self.repository}/blob/main/{name}{fragment}" if self.repository else None

    def _copied(self, page: Path, source: str) -> str:
        """Copies a picture, smaller; its address from a page in docs/."""
        path = (page.parent / source).resolve()
        target = self.site / "docs" / "images" / f"{path.stem}.webp"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            with Image.open(path) as picture:
                picture.save(target, quality=WEBP_QUALITY, method=4, save_all=getattr(picture, "is_animated", False))
        return f"images/{target.name}"

    def _kept(self, path: Path) -> str:
        """Copies a report; its address from a page in docs/."""
        name = "-".join(path.relative_to(self.root / "figures").parts)
        target = self.site / "reports" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        return f"../reports/{name}"


def _plain(token: Token) -> str:
    return "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))


def document_pages(documents: Documents, write: Callable[[str, str, str], None]) -> None:
    """Writes all pages of docs/, and a list of them.

    Args:
        documents: the renderer.
        write: called with the name of a file in docs/, a title, and its HTML.
    """
    titles = titles_of(documents.root / "docs")
    for name, title in titles.items():
        text = documents.render(documents.root / "docs" / f"{name}.md")
        write(f"{name}.html", title, f"{_contents(titles, name)}\n<article>\n{text}</article>")
    links = "\n".join(
        f'<dt><a href="{name}.html">{html.escape(title)}</a></dt><dd>{html.escape(documents.first_sentence(name))}</dd>'
        for name, title in titles.items()
    )
    write(
        "index.html", "Documents", f'<div></div>\n<article><h1>Documents</h1>\n<dl class="list">{links}</dl></article>'
    )


def _contents(titles: dict[str, str], here: str) -> str:
    """Links to all pages, the present one marked."""
    marks = {name: ' aria-current="page"' if name == here else "" for name in titles}
    items = (
        f'<li><a href="{name}.html"{marks[name]}>{html.escape(title.split(":")[0])}</a></li>'
        for name, title in titles.items()
    )
    return f'<nav class="pages" aria-label="Documents"><ul>{"".join(items)}</ul></nav>'
