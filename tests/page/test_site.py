"""The pages that need no model: every link leads somewhere, nothing leads to another machine unasked."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from app.page import build as page
from app.page.build import Site, write_pages
from kanjilab.viz.strip import Strip, draw_cell, save_strip, strip_cells


class Addresses(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("link", "script", "img"):
            self.loaded += [given[name] for name in ("href", "src") if given.get(name)]
        if "id" in given:
            self.anchors.add(given["id"])
        assert not [name for name in given if name.startswith("on") or name == "style"], "refused by the page's policy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    site = Site(tmp_path_factory.mktemp("site"))
    write_pages(site)
    for name in ("index", "write"):  # which need models
        site.write(f"{name}.html", "First", "<h1>First</h1>")
    return site.folder


@pytest.fixture(scope="module")
def pages(folder) -> dict[Path, Addresses]:
    return {path: Addresses(path.read_text()) for path in folder.rglob("*.html")}


def test_every_document_is_there(pages, folder):
    docs = {path.stem for path in (page.ROOT / "docs").glob("*.md")}
    assert docs < {path.stem for path in pages if path.parent == folder / "docs"}
    assert len((folder / "docs" / "findings.html").read_text()) > 20_000


def test_links_and_pictures_are_on_the_site(pages):
    for path, found in pages.items():
        for address in found.links + found.loaded:
            parts = urlsplit(address)
            if parts.scheme:
                assert address in found.links and parts.scheme == "https", f"{path.name} would load {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name} leads to {address}"
            if parts.fragment:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name} leads to {address}"


def test_the_policy_names_no_other_host(pages):
    for path in pages:
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', path.read_text())
        assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy
        assert "'unsafe-inline'" not in policy and "'unsafe-eval'" not in policy


def test_files_of_the_repository_are_links_where_its_address_is_known(tmp_path):
    documents = page.Documents(page.ROOT, tmp_path, "https://example.org/someone/kanjilab/")
    text = documents.render(page.ROOT / "docs" / "coin.md")
    assert 'href="https://example.org/someone/kanjilab/blob/main/notebooks/91_build_writer.ipynb"' in text


def test_markup_in_a_document_is_text(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "x.md").write_text("# <b>x</b>\n\n<script>alert(1)</script> [y](javascript:alert(1)) `<i>`\n")
    text = page.Documents(tmp_path, tmp_path / "site").render(tmp_path / "docs" / "x.md")
    assert "<script" not in text and "<b>" not in text and 'href="javascript' not in text and "&lt;i&gt;" in text


def test_stored_studies_become_files_of_the_site(tmp_path):
    target = tmp_path / "ablations"
    target.mkdir()
    page.write_studies(target, [page.STUDIES / "rank-full"])
    found = json.loads((target / "site.json").read_text())
    assert (
        [one["path"] for group in found["menu"] for one in group["studies"]] == list(found["studies"]) == ["rank-full"]
    )
    assert all((tmp_path / name).is_file() for name in found["studies"]["rank-full"]["images"])
    assert str(page.ROOT) not in (target / "site.json").read_text()


def test_a_saved_strip_gives_its_images_back(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (3, 5, 40, 40), np.uint8) * 255
    columns, groups = ("before", "1", "2", "a", "b"), (("images seen", 3), ("other", 2))
    strip = Strip(
        images, ("one", "two words", "three"), columns, title="A title", facts={"seed": 0}, column_groups=groups
    )
    path = save_strip(strip, tmp_path / "strip.png", cell_px=40)
    picture = np.asarray(page.Image.open(path).convert("L"))
    found = strip_cells(picture, json.loads(path.with_suffix(".json").read_text()))
    expected = np.stack([np.stack([np.asarray(draw_cell(image, 40)) for image in row]) for row in images])
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="expected a picture of"):
        strip_cells(picture[1:], json.loads(path.with_suffix(".json").read_text()))


def test_a_model_that_the_page_cannot_draw_with_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected what kanjilab export --format onnx wrote, got no kanjilab.json"):
        page.build(tmp_path / "site", tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "kanjilab.json").write_text('{"channels": 3}')
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(ValueError, match="gray pictures from WordPiece tokens.* got 3 channels and BPE"):
        page.build(tmp_path / "site", tmp_path)
    (tmp_path / "kanjilab.json").write_text('{"channels": 1, "condition_encoder": {}}')
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(ValueError, match="led by skeletons; expected a model that draws from text alone"):
        page.build(tmp_path / "site", tmp_path)
    assert not (tmp_path / "site").exists()


def test_what_is_in_the_way_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="no site that this command built"):
        page.build(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    monkeypatch.setattr(page, "RUNTIME", tmp_path / "missing")
    monkeypatch.setattr(page.shutil, "which", lambda name: None)
    monkeypatch.setattr(page.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match=r"needs npm, which brings onnxruntime-web \(Debian and Ubuntu: apt-get"):
        page.build(tmp_path / "new")
    monkeypatch.setattr(page.shutil, "which", lambda name: "false")
    with pytest.raises(RuntimeError, match="npm could not install onnxruntime-web .* run make page again"):
        page.build(tmp_path / "new")
    assert not (tmp_path / "new").exists()
