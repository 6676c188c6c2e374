"""Build kanjilab's page, a folder of plain files that any web server serves: `make page`.

It draws in the browser with the writer, or with any folder that `kanjilab export --format onnx` wrote, shows the strips
over training and the coined kanji, and holds the documents. It asks no other machine for anything.
"""

import argparse
import dataclasses
import gzip
import hashlib
import html
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from documents import Documents, document_pages  # noqa: E402

from kanjilab.core.images import SIZE_PX  # noqa: E402
from kanjilab.core.outside_files import checked_file, read_file, read_json_object  # noqa: E402
from kanjilab.core.storage import appearing_folder, write_json_atomic  # noqa: E402
from kanjilab.data.calligraphy import STYLES  # noqa: E402
from kanjilab.data.dictionary import load_characters  # noqa: E402
from kanjilab.data.skeleton import pack_skeletons  # noqa: E402
from kanjilab.export.onnx_folder import CONDITION_PART, FORMAT, PARTS, base_to_onnx  # noqa: E402
from kanjilab.models.diffusion import LatentDiffusion  # noqa: E402
from kanjilab.models.sampling import Sampling  # noqa: E402
from kanjilab.viz.strip import draw_cell, strip_cells  # noqa: E402
from kanjilab.widgets.ablation_catalogue import menu, study_catalogue  # noqa: E402

HERE = Path(__file__).parent.resolve()
ROOT, SOURCE = HERE.parents[1], HERE / "source"
RUNTIME = HERE / "node_modules" / "onnxruntime-web" / "dist"
LIMIT_BYTES = 60_000_000
FACTS = {"format", "size_px", "channels", "latent_shape", "scaling_factor", "shift_factor", "caption_tokens"}
FACTS |= {"schedule", "sampling"}  # of kanjilab.json
SCHEDULE = {"prediction", "alpha_bar", "timestep_spacing", "steps_offset"}
ONNX_START = b"\x08"  # the field of the version of the format
EXAMPLES = (
    "left: water, right: bird",
    "top: bamboo, bottom: eye",
    "woman + eye",
    "left: metal, right: bird",
    "outside: gate, inside: person",
    "to swim in a river",
)
FREQUENT = 1_400  # kanji that can be typed
KANA = "".join(chr(code) for start in (0x3041, 0x30A1) for code in range(start, start + 83))
BRUSH_EXAMPLES = ("春", "永", "夢", "鳥", "風", "花")
INK = 128  # gray below which a cell is not blank
DRAWN = 4  # glyphs of the first example that are there before anything is loaded
STRIPS = {
    "writer_strip": (
        "The writer, which draws on the first page. Before training it is pocket, a base that knows other scripts and "
        "no kanji. “Fish, see” and “fire, bird” are pairs that no kanji has."
    ),
    "demo_strip": (
        "What make demo trains: kanji with one of sixteen parts on their left, 28,000 images seen. “Robot” is in no "
        "training caption."
    ),
}
STUDIES = ROOT / "figures" / "studies"
PANEL = ROOT / "kanjilab" / "widgets"
NAMES = {"index": "Draw", "write": "Write", "strips": "Training", "coined": "Coined", "ablations": "Ablations"}


class Site:
    """The folder that is being filled."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shell = Template((SOURCE / "shell.html").read_text())

    def write(self, name: str, title: str, main: str, scripts: Sequence[str] = (), kind: str = "") -> None:
        """Writes a page into the common shell.

        Args:
            name: of the file, relative to the site.
            title: as text; `main` is HTML.
            scripts: modules that it loads.
            kind: the class of its main part.
        """
        root = "../" * name.count("/")
        links = [(f"{root}{one}.html", NAMES[one], name == f"{one}.html") for one in NAMES]
        links.append((f"{root}docs/findings.html", "Findings", name == "docs/findings.html"))
        links.append((f"{root}docs/index.html", "Docs", name.startswith("docs/") and not links[-1][2]))
        current = ("", ' aria-current="page"')
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        text = self.shell.substitute(
            title=html.escape(f"{title} · kanjilab"),
            description=html.escape(f"{title}: kanji by a small diffusion model, drawn in the browser."),
            root=root,
            nav="".join(f'<a href="{address}"{current[here]}>{label}</a>' for address, label, here in links),
            scripts="\n".join(
                f'<script type="module" src="{root}{script}"></script>' for script in ("offline.js", *scripts)
            ),
            main=main,
            kind=kind,
        )
        path.write_text(text)

    def picture(self, name: str, image: Image.Image, **options: Any) -> str:
        """Writes a picture as WebP; its address from the site's root."""
        path = self.folder / "images" / f"{name}.webp"
        path.parent.mkdir(exist_ok=True)
        image.save(path, method=6, **(options or {"lossless": True}))
        return f"images/{path.name}"


def build(out: Path, model: Path | None = None, repository: str = "") -> int:
    """Builds the site; in its place it appears whole.

    Args:
        out: the folder, which is replaced.
        model: what `kanjilab export --format onnx` wrote; None for the writer.
        repository: address of the repository in the web, for links to its files; "" for none.
    Returns:
        Bytes of all files.
    Raises:
        FileExistsError: the folder holds something else than a site.
        RuntimeError: npm, which brings onnxruntime-web, is missing or fails.
        ValueError: the site has more than 60 MB, or the model is not one that the page can draw with.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name another folder, or remove it")
    if out.exists() and any(out.iterdir()) and not (out / "service-worker.js").exists():
        raise FileExistsError(f"{out} is no site that this command built; name another folder, or remove it")
    if model is not None:
        require_drawable(model)
    fetch_runtime()
    with appearing_folder(out) as folder:
        site = Site(folder)
        teasers = write_pages(site, repository)
        weights = _model_files(site, model)
        drawn = site.picture("drawn", _drawn(weights)) if model is None else ""
        _first_page(site, weights, drawn=drawn, **teasers)
        _brush_page(site)
        _service_worker(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > LIMIT_BYTES:
            raise ValueError(f"the site has {size / 1e6:.1f} MB, more than the {LIMIT_BYTES / 1e6:.0f} MB allowed")
        shutil.rmtree(out, ignore_errors=True)
    return size


def require_drawable(model: Path) -> None:
    """Refuses a model that is not whole, or whose tokens or pictures the page does not know.

    Args:
        model: what `kanjilab export --format onnx` should have written.
    Raises:
        ValueError: what was expected of which file, and what came.
    """
    path = model / "kanjilab.json"
    if not path.is_file():
        raise ValueError(f"{model}: expected what kanjilab export --format onnx wrote, got no kanjilab.json")
    facts = read_json_object(path, "the numbers of a model as ONNX")
    source = model / "tokenizer" / "tokenizer.json"
    found = read_json_object(source, "a tokenizer").get("model")
    kind = found.get("type") if isinstance(found, dict) else None
    if (facts.get("channels"), kind) != (1, "WordPiece"):
        raise ValueError(
            f"{model}: the page draws gray pictures from WordPiece tokens, as pocket2 and the writer have them; got "
            f"{facts.get('channels')!s:.80} channels and {kind!s:.80}"
        )
    if CONDITION_PART in facts:
        raise ValueError(f"{model}: it is led by skeletons; expected a model that draws from text alone")
    if lacking := sorted(FACTS - facts.keys()):
        raise ValueError(f"{path}: expected the numbers of a model as ONNX, got none for {', '.join(lacking)}")
    if facts["format"] != FORMAT:
        raise ValueError(f"{path}: format: expected {FORMAT}, got {facts['format']!r:.80}: another version wrote it")
    schedule, shape = facts["schedule"], facts["latent_shape"]
    if not isinstance(schedule, dict) or (SCHEDULE - schedule.keys()):
        raise ValueError(f"{path}: schedule: expected {', '.join(sorted(SCHEDULE))}, got {schedule!r:.80}")
    if not (isinstance(shape, list) and [type(side) for side in shape] == [int] * 3):
        raise ValueError(f"{path}: latent_shape: expected three whole numbers, got {shape!r:.80}")
    try:
        Sampling(**facts["sampling"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: sampling: {error}") from error
    checked_file(model / "README.md", "the card of a model as ONNX", LIMIT_BYTES)
    for part in PARTS:
        _require_network(model / f"{part}.onnx")


def _require_network(path: Path) -> None:
    """Refuses what is no network as ONNX: its file starts with the number of the format's version."""
    data = read_file(path, "a network as ONNX", LIMIT_BYTES * 8)
    if not data.startswith(ONNX_START):
        raise ValueError(f"{path}: expected a network as ONNX, got {len(data):,} bytes of something else")
    if find_spec("onnx") is not None:
        import onnx

        try:
            onnx.load_from_string(data)
        except Exception as error:  # of protobuf
            raise ValueError(f"{path}: expected a whole network as ONNX, got a damaged file ({error})") from error


def write_pages(site: Site, repository: str = "") -> dict[str, str]:
    """Writes all pages but the first, which needs the model, and the scripts of all.

    Args:
        site: an empty one.
        repository: as for `build`.
    Returns:
        Addresses of pictures that invite to two of the pages.
    """
    for file in SOURCE.iterdir():
        if file.suffix in (".js", ".css", ".svg") and file.name not in ("service-worker.js", "ablations.js"):
            shutil.copyfile(file, site.folder / file.name)
    teasers = {"strip_teaser": _strip_page(site), "coined_teaser": _coined_page(site)}
    _ablation_page(site)
    documents = Documents(ROOT, site.folder, repository)
    document_pages(documents, lambda name, title, main: site.write(f"docs/{name}", title, main, kind="text"))
    shutil.copyfile(ROOT / "NOTICE", site.folder / "NOTICE.txt")
    (site.folder / ".nojekyll").touch()
    return teasers


def fetch_runtime() -> None:
    """Installs onnxruntime-web with npm, as package-lock.json pins it, where it is not there yet."""
    if (RUNTIME / "ort.wasm.bundle.min.mjs").is_file():
        return
    command = [_npm(), "ci", "--no-audit", "--no-fund", "--silent"]
    try:
        subprocess.run(command, cwd=HERE, check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise RuntimeError(
            f"npm could not install onnxruntime-web into {HERE / 'node_modules'}, which the page draws with "
            f"({error}); it needs the npm registry once: run make page again where that can be reached"
        ) from error


def _npm() -> str:
    """The system's npm, else the one beside the type checker's node."""
    if found := shutil.which("npm"):
        return found
    beside = Path(sys.executable).with_name("npm")
    if beside.exists():
        return str(beside)
    raise RuntimeError("make page needs npm, which brings onnxruntime-web (Debian and Ubuntu: apt-get install npm)")


def _model_files(site: Site, model: Path | None) -> Path:
    """The model and its runtime, packed; the folder of the site that holds the model."""
    with tempfile.TemporaryDirectory(prefix="kanjilab-") as temporary:
        if model is None:
            from kanjilab.models.loading import load_base

            model = base_to_onnx(load_base("writer"), Path(temporary) / "writer", "small")
        weights, vendor = site.folder / "model", site.folder / "vendor"
        weights.mkdir()
        vendor.mkdir()
        for name in ("kanjilab.json", "README.md", "tokenizer/tokenizer.json"):
            shutil.copyfile(model / name, weights / Path(name).name)
        packed = [_pack(model / f"{part}.onnx", weights) for part in PARTS]
        shutil.copyfile(RUNTIME / "ort.wasm.bundle.min.mjs", vendor / "ort.wasm.bundle.min.mjs")
        packed.append(_pack(RUNTIME / "ort-wasm-simd-threaded.wasm", vendor))
        sizes = {file.relative_to(site.folder).as_posix(): file.stat().st_size for file in packed}
        (weights / "files.json").write_text(json.dumps(sizes))
    return weights


def _pack(source: Path, folder: Path) -> Path:
    """Servers of plain files do not pack what they send."""
    target = folder / f"{source.name}.gz"
    target.write_bytes(gzip.compress(source.read_bytes(), 6, mtime=0))
    return target


def _brush_page(site: Site) -> None:
    """The page that calligraphy writes on, with its model and the skeletons that can be typed."""
    from kanjilab.experiments.writing import TRACING, WRITING, skeleton_encoder, typed_skeleton, write, writing_prompt
    from kanjilab.models.loading import load_base
    from kanjilab.models.skeleton_encoder import knowing

    base = load_base("calligraphy")
    encoder = skeleton_encoder(base)
    ranked = load_characters().dropna(subset="frequency").sort_values("frequency")
    frequent = "".join(map(str, ranked.index[:FREQUENT]))
    known = "".join(character for character in frequent if character in encoder.characters)
    others = "".join(character for character in frequent if character not in known)
    base = dataclasses.replace(base, condition_encoder=knowing(encoder, known))
    lines = {character: typed_skeleton(character) for character in known + others + KANA}
    packed = pack_skeletons(np.stack(list(lines.values())))
    (site.folder / "skeletons.bin.gz").write_bytes(gzip.compress(packed.tobytes(), 9, mtime=0))
    (site.folder / "skeletons.json").write_text(json.dumps({"characters": "".join(lines), "known": len(known)}))
    for name in ("brush_board.js", "brush_board.css"):
        shutil.copyfile(PANEL / name, site.folder / name)
    sizes = _calligraphy_files(site, base)
    example, styles = BRUSH_EXAMPLES[0], [style.caption for style in STYLES]
    prompt = writing_prompt(base, styles[0], index=known.index(example) + 1, typed=lines[example])
    drawn = draw_cell(write(base, [prompt])[0], SIZE_PX)
    main = Template((SOURCE / "write.html").read_text()).substitute(
        example=example,
        styles="".join(f"<option>{html.escape(style)}</option>" for style in styles),
        chips="".join(f'<button type="button">{html.escape(text)}</button>' for text in BRUSH_EXAMPLES),
        drawn=site.picture("written", Image.fromarray(np.asarray(drawn))),
        megabytes=round(sum(sizes.values()) / 1e6),
        frequent=f"{len(frequent):,}",
        guidance=f"{WRITING.guidance:g}",
        typed_guidance=f"{WRITING.array_guidance:g}",
        drawn_guidance=f"{TRACING.array_guidance:g}",
    )
    site.write("write.html", "Write by brush", main, ["write.js"])


def _calligraphy_files(site: Site, base: LatentDiffusion) -> dict[str, int]:
    """Calligraphy's model, packed; the bytes of all files that it needs, by name.

    The nine captions' states come with it, in place of the text encoder; a decoder that another model of the site has
    too is not packed again.
    """
    captions = ["", *(style.caption for style in STYLES)]
    target = site.folder / "calligraphy"
    target.mkdir()
    with tempfile.TemporaryDirectory(prefix="kanjilab-") as temporary:
        model = base_to_onnx(base, Path(temporary) / "calligraphy", "small")
        facts = read_json_object(model / "kanjilab.json", "the numbers of a model as ONNX")
        write_json_atomic(target / "kanjilab.json", facts | {"captions": captions})
        shutil.copyfile(model / "README.md", target / "README.md")
        states = base.encode_text(captions).tokens.numpy()
        (target / "states.bin.gz").write_bytes(gzip.compress(states.tobytes(), 9, mtime=0))
        files = [
            target / "states.bin.gz",
            *(_pack(model / f"{part}.onnx", target) for part in (CONDITION_PART, "denoiser")),
        ]
        decoder, other = _pack(model / "decoder.onnx", target), site.folder / "model" / "decoder.onnx.gz"
        if decoder.read_bytes() == other.read_bytes():
            decoder.unlink()
            decoder = other
    files += [target / "states.bin.gz", decoder, site.folder / "vendor" / "ort-wasm-simd-threaded.wasm.gz"]
    sizes = {file.relative_to(site.folder).as_posix(): file.stat().st_size for file in files}
    (target / "files.json").write_text(json.dumps(sizes))
    return sizes


def _first_page(site: Site, weights: Path, **pictures: str) -> None:
    sizes = json.loads((weights / "files.json").read_text())
    main = Template((SOURCE / "index.html").read_text()).substitute(
        prompt=html.escape(EXAMPLES[0]),
        chips="".join(f'<button type="button">{html.escape(text)}</button>' for text in EXAMPLES),
        megabytes=round(sum(sizes.values()) / 1e6),
        **pictures,
    )
    site.write("index.html", "Ask for a kanji", main, ["draw.js"])


def _drawn(weights: Path) -> Image.Image:
    """The writer's glyphs for the first example, as the page itself will draw them."""
    from kanjilab.models.loading import load_base
    from kanjilab.models.sampling import sample

    sampling = Sampling(**json.loads((weights / "kanjilab.json").read_text())["sampling"])
    images = sample(load_base("writer"), [EXAMPLES[0]], range(DRAWN), sampling)[0, 0]
    return Image.fromarray(np.concatenate([np.asarray(draw_cell(image, image.shape[0])) for image in images], 1))


def _cells(name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """A stored strip's cells, (rows, columns, edge, edge), and its facts."""
    facts = json.loads((ROOT / "figures" / f"{name}.json").read_text())
    with Image.open(ROOT / "figures" / f"{name}.png") as picture:
        return strip_cells(np.asarray(picture.convert("L")), facts), facts


def _sheet(cells: np.ndarray) -> Image.Image:
    """(rows, columns, edge, edge) as one picture without gaps."""
    rows, columns, edge, _ = cells.shape
    return Image.fromarray(cells.transpose(0, 2, 1, 3).reshape(rows * edge, columns * edge))


def _strip_page(site: Site) -> str:
    """The scrubbers; the address of a picture that invites to them."""
    strips = []
    for name, note in STRIPS.items():
        cells, facts = _cells(name)
        shown = facts["column_groups"][0][1] if facts["column_groups"] else cells.shape[1]  # others have other noises
        columns = [f"{label} images seen" if label[0].isdigit() else label for label in facts["column_labels"][:shown]]
        title = facts["title"].split(": ")[0]
        image = site.picture(name, _sheet(cells[:, :shown]))
        strips.append(dict(title=title, note=note, rows=facts["row_labels"], columns=columns, image=image))
    (site.folder / "strips.json").write_text(json.dumps(strips))
    main = (
        "<h1>Over training</h1>\n<p class='lede'>Each glyph is drawn out of the same noise at every checkpoint. Move "
        "the slider, with the mouse or the arrow keys, or play.</p>\n<div id='strips'></div>"
    )
    site.write("strips.html", "Over training", main, ["strips.js"])
    cells, _ = _cells("writer_strip")
    return site.picture("strip_teaser", _sheet(cells[2:3, [0, 2, 5, 10]]))


def _coined_page(site: Site) -> str:
    """Phrases with their glyphs; the address of a picture that invites to them."""
    cells, facts = _cells("coined_sheet")
    (unselected, count), (chosen, _) = facts["column_groups"]
    cards = []
    for number, phrase in enumerate(facts["row_labels"]):
        groups = ((unselected, cells[number, :count]), (chosen, cells[number, count:]))
        figures = "".join(_figure(site, f"coined-{number:02d}", phrase, *group) for group in groups)
        cards.append(f"<article><h2>{html.escape(phrase)}</h2>{figures}</article>")
    found = facts["facts"]["chosen that pass all five criteria by judge B"]
    main = (
        "<h1>Coined kanji</h1>\n<p class='lede'>Phrases, and the kanji that the writer coins for them: one drawing of "
        "each of four readings, unselected, and the best that judge A chose among all.</p>\n<p>Of the chosen glyphs "
        f"{html.escape(found)} meet all five criteria of a new kanji by the other judge, B: "
        "<a href='docs/coin.html'>how a kanji is coined, and what the criteria are</a>.</p>\n"
        f"<div class='coined'>{''.join(cards)}</div>"
    )
    site.write("coined.html", "Coined kanji", main)
    inked = (cells[:, count:].min((2, 3)) < INK).all(1)
    return site.picture("coined_teaser", _sheet(cells[inked, count:][-1:]))


def _figure(site: Site, name: str, phrase: str, heading: str, cells: np.ndarray) -> str:
    """Some glyphs side by side; places without one are left out."""
    cells = cells[cells.min((1, 2)) < INK]
    if not len(cells):
        return f"<p class='quiet'>{html.escape(heading)}: none</p>"
    sheet = _sheet(cells[None])
    address = site.picture(f"{name}-{heading.split()[-1]}", sheet)
    text = html.escape(f"{len(cells)} glyphs for “{phrase}”: {heading}" if len(cells) > 1 else f"{phrase}: {heading}")
    return (
        f'<figure><img src="{address}" alt="{text}" width="{sheet.width}" height="{sheet.height}">'
        f"<figcaption>{html.escape(heading)}</figcaption></figure>"
    )


def _ablation_page(site: Site) -> None:
    """The ablation panel over the stored studies; see source/ablations.js."""
    (site.folder / "ablations").mkdir()
    listed = [entry for group in menu({"Studies": STUDIES}) for entry in group["studies"] if not entry["pilot"]]
    write_studies(site.folder / "ablations", [Path(entry["path"]) for entry in listed])
    for file in (PANEL / "ablation.js", PANEL / "ablation.css", SOURCE / "ablations.js"):
        shutil.copyfile(file, site.folder / file.name)
    main = (
        '<link rel="stylesheet" href="ablation.css">\n<h1>Ablations</h1>\n<p class="lede">Move a slider: what each '
        'setting learned, from stored trainings.</p>\n<div id="ablations"></div>'
    )
    site.write("ablations.html", "Ablations", main, ["ablations.js"], kind="ablations")


def write_studies(target: Path, folders: Sequence[Path]) -> None:
    """Writes what the ablation panel shows of stored studies.

    Args:
        target: a folder of the site; it gets site.json and the sheets of glyphs.
        folders: of studies, which are listed in this order.
    """
    studies, listed = {}, []
    for folder in folders:
        catalogue, sheets = study_catalogue(folder)
        names = [f"{folder.name}-{number}.webp" for number in range(len(sheets))]
        for name, sheet in zip(names, sheets, strict=True):
            (target / name).write_bytes(sheet)
        studies[folder.name] = {"catalogue": catalogue, "images": [f"{target.name}/{name}" for name in names]}
        listed.append({"path": folder.name, "label": catalogue["title"], "images": bool(sheets)})
    write_json_atomic(target / "site.json", {"menu": [{"heading": "Studies", "studies": listed}], "studies": studies})


def _service_worker(folder: Path) -> None:
    """Keeps all but the model and its runtime at once; a change of any file is a new build."""
    digest, small = hashlib.sha256(), ["./"]
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".nojekyll"):
        name = file.relative_to(folder).as_posix()
        digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
        if not name.startswith(("model/", "calligraphy/", "vendor/", "reports/", "ablations/")):
            small.append(name)
    names = f"const HASH = {json.dumps(digest.hexdigest()[:16])};\nconst FILES = {json.dumps(small)};\n"
    (folder / "service-worker.js").write_text(names + (SOURCE / "service-worker.js").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site (default: site/)")
    parser.add_argument("--model", type=Path, help="folder of kanjilab export --format onnx (default: the writer)")
    parser.add_argument("--repository", default="", help="its address, such as https://github.com/owner/name")
    given = parser.parse_args()
    try:
        size = build(given.out, given.model, given.repository)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"make page: {error}")
    print(f"{given.out}: {size / 1e6:.1f} MB; to look at it: python -m http.server -d {given.out}")


if __name__ == "__main__":
    main()
