"""What the repository promises besides its code: pins, commands, sizes, and texts free of one machine's traces."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from kanjilab.evaluation.controls import STYLE
from kanjilab.evaluation.criteria import ALL_FIVE, CRITERIA
from kanjilab.evaluation.statistics import Contrast
from kanjilab.experiments.calligraphy_scores import table_text
from kanjilab.experiments.demo import report_table
from kanjilab.experiments.designs import CLAIMS, TUNED, TUNED_SUFFIX, best_rates
from kanjilab.experiments.findings import claims, findings
from kanjilab.experiments.image_sheets import PLACE as SHEETS
from kanjilab.experiments.report import StoredStudy

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "figures" / "studies"
FINDINGS = ROOT / "docs" / "findings.md"
DEMO_SHUFFLED = "demo_shuffled_report.json"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
WEIGHTS_LIMIT_BYTES = 110_000_000
NOTEBOOK_LIMIT_BYTES = 1_000_000
FIGURE_LIMIT_BYTES = 500_000
SHEETS_LIMIT_BYTES = 8_000_000  # of the images of all stored studies
PICTURES = {".png", ".gif", ".webp", ".jpg", ".svg"}
BINARY = PICTURES | {".safetensors", ".ttf", ".otf", ".gz", ".zip", ".npy"}
TRACES = {
    "a path of one machine": re.compile(r"/(?:home|Users)/\w|/root[/]|/tmp[/]\w|site-packages[/]|[A-Z]:\\Users"),
    "a package index": re.compile(
        r"pypi[.]org|python[h]osted[.]org|npmjs[.](?:com|org)|deb[.]debian[.]org|conda[.]org"
    ),
}


def git(*words: str) -> str:
    """Output of git in this checkout; skips the test where there is no repository."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout


def committed(*folders: str) -> list[Path]:
    """Files under version control that are there, all or those below the folders named."""
    return [ROOT / name for name in git("ls-files", "-z", "--", *folders).split("\0") if (ROOT / name).is_file()]


# Pins


def project_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(row) for row in project["dependencies"] + project["optional-dependencies"]["test"]]


def pins() -> dict[str, str]:
    """Version of each distribution in constraints.txt, by canonical name."""
    rows = [row for row in (ROOT / "constraints.txt").read_text().splitlines() if not row.startswith("#")]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9A-Za-z.!]+)", row) for row in rows]
    assert None not in pairs, f"not an exact pin: {rows[pairs.index(None)]}"
    names = [canonicalize_name(pair[1]) for pair in pairs]
    assert len(set(names)) == len(names), "a distribution is pinned twice"
    return dict(zip(names, (pair[2] for pair in pairs), strict=True))


def needed_here(requirements: Iterable[Requirement]) -> set[str]:
    """Canonical names of all distributions that the requirements bring into this environment."""
    pending, seen = list(requirements), set()
    while pending:
        requirement = pending.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            rows = [Requirement(row) for row in distribution(requirement.name).requires or []]
        except PackageNotFoundError:
            continue
        extras = ["", *requirement.extras]
        pending += [row for row in rows if not row.marker or any(row.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name, _ in seen}


def test_every_requirement_is_pinned_within_its_range():
    pinned = pins()
    for requirement in project_requirements():
        version = pinned.get(canonicalize_name(requirement.name), "no version")
        assert version != "no version" and requirement.specifier.contains(version), f"{requirement}: {version} pinned"


def test_all_that_the_requirements_need_is_pinned():
    # torch's GPU libraries come only with some builds of it, and torch itself names their exact versions.
    gpu = re.compile(r"nvidia-|cuda-|triton$")
    assert {name for name in needed_here(project_requirements()) if not gpu.match(name)} - pins().keys() == set()


def test_installed_versions_are_the_pinned_ones():
    installed = {}
    for name in needed_here(project_requirements()):
        try:
            installed[name] = Version(distribution(name).version).public  # without torch's '+cpu'
        except PackageNotFoundError:  # needed on another system only
            continue
    pinned = pins()
    assert {name: version for name, version in installed.items() if pinned.get(name, version) != version} == {}


def test_environment_file_installs_the_same():
    rows = [row.strip() for row in (ROOT / "environment.yml").read_text().splitlines()]
    assert rows[rows.index("- pip:") :] == ["- pip:", "- -c constraints.txt", "- -e ."]
    conda = [row.removeprefix("- ") for row in rows[rows.index("dependencies:") + 1 : rows.index("- pip:")]]
    assert [re.match(r"[a-z]+", row)[0] for row in conda] == ["python", "pip"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed, asked = SpecifierSet(project["requires-python"]), SpecifierSet(conda[0].removeprefix("python"))
    versions = list(asked.filter(f"3.{minor}" for minor in range(20)))
    assert versions == ["3.11", "3.12", "3.13"]
    assert list(allowed.filter(versions)) == versions


def test_torch_is_named_alike_everywhere():
    makefile = re.findall(r"pip install .*\btorch==([0-9.]+)", (ROOT / "Makefile").read_text())
    required = [str(word.specifier) for word in project_requirements() if word.name == "torch"]
    assert (makefile, required, pins()["torch"]) == (["2.13.0"], ["==2.13.0"], "2.13.0")


# Commands


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_make_command_in_a_text_exists():
    texts = [(ROOT / "README.md").read_text(), *(path.read_text() for path in [*ROOT.glob("docs/*.md"), CONTRIBUTING])]
    named = [set(re.findall(r"(?:^\$? ?|`)make ([a-z][a-z-]*)", text, re.MULTILINE)) for text in texts]
    assert {"demo", "test", "lab"} <= named[0]
    assert set().union(*named) - make_targets() == set()


def test_the_makefile_explains_each_of_its_targets():
    described = set(re.findall(r'@echo "make ([a-z-]+) ', (ROOT / "Makefile").read_text()))
    assert described == make_targets() - {"help"}


# Sizes


def test_weights_stay_small_in_all_history():
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("a shallow clone does not hold the history")
    listed = git("rev-list", "--objects", "--all", "--", "kanjilab/weights")
    checked = subprocess.run(
        ["git", "cat-file", "--batch-check=%(objecttype) %(objectsize) %(rest)"],
        cwd=ROOT,
        input=listed,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [row.split(" ", 2) for row in checked.stdout.splitlines() if row.startswith("blob")]
    sizes = [int(size) for _, size, name in rows if name.startswith("kanjilab/weights")]
    assert sum(sizes) <= WEIGHTS_LIMIT_BYTES, f"{len(sizes)} versions of files, {sum(sizes)} bytes"


def test_notebooks_and_figures_stay_small():
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in committed("notebooks", "figures")}
    limits = {".ipynb": NOTEBOOK_LIMIT_BYTES} | dict.fromkeys(PICTURES, FIGURE_LIMIT_BYTES)
    assert {str(path): size for path, size in sizes.items() if size > limits.get(path.suffix, size)} == {}


def test_the_images_of_stored_studies_are_small_and_listed():
    sheets = [path for path in committed("figures") if path.parent.name == SHEETS]
    assert sum(path.stat().st_size for path in sheets) <= SHEETS_LIMIT_BYTES
    for folder in {path.parent for path in sheets}:
        stored = {path.stem for path in folder.glob("*.webp")}
        assert stored == set(json.loads((folder / "sheets.json").read_text())["arms"]), folder


def test_every_figure_has_its_facts_beside():
    for path in committed("figures"):
        if path.suffix in PICTURES and path.parent.name != SHEETS:
            beside = path.with_suffix(".json")
            assert beside in committed("figures"), f"{path.name} has no {beside.name} beside it"
            assert isinstance(json.loads(beside.read_text()), dict), f"{beside.name} is not a table of facts"


# Texts


def traces(text: str) -> list[str]:
    return [f"{kind}: {found[0]}" for kind, pattern in TRACES.items() if (found := pattern.search(text))]


@pytest.mark.parametrize(("judge", "unit"), [("radicals", " points"), ("judge-b", "")])
@pytest.mark.parametrize("suffix", ["", TUNED_SUFFIX])
def test_findings_hold_the_verdicts_of_the_claims(judge, unit, suffix):
    page = FINDINGS.read_text()
    stated = [sentence.split(": ")[-2].split(", 8 blocks")[0] for sentence in findings(STUDIES, judge, suffix=suffix)]
    assert len(stated) == 4
    for text in stated:
        assert text.replace(" points", unit) in page


def points(contrast: Contrast) -> str:
    value, low, high = (100 * end for end in contrast.difference)
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]".replace("-0.0", "0.0")


@pytest.mark.parametrize("judge", ["radicals", "judge-b"])
@pytest.mark.parametrize("name", ["targets", "full", "position"])
def test_findings_hold_the_exploratory_contrasts(name, judge):
    page = FINDINGS.read_text().replace(" points", "")
    stored = StoredStudy.read(STUDIES / f"{name}-full", judge)
    assert points(stored.contrasts()[0]) in page and points(stored.above_chance()[0]) in page


@pytest.mark.parametrize("judge", ["radicals", "judge-b"])
@pytest.mark.parametrize("name", CLAIMS)
def test_findings_hold_the_claims_above_chance(name, judge):
    page = FINDINGS.read_text()
    for contrast in StoredStudy.read(STUDIES / f"{name}-full", judge).above_chance():
        assert points(contrast) in page, contrast.first


@pytest.mark.parametrize("judge", ["radicals", "judge-b"])
@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("balance", ("imbalance 3", "imbalance 10", "imbalance 30")),
        ("schedule", ("periodic", "constant + EMA")),
        ("batch", ("batch 4", "batch 64", "batch 64, equal steps")),
        ("rank", ("rank 16", "rank 256", "rank 64, rsLoRA", "rank 256, rsLoRA", "rank 256, alpha 4")),
        ("epochs", ("4,800 images seen", "88 kanji")),
    ],
)
def test_findings_hold_the_broad_studies(name, labels, judge):
    page = FINDINGS.read_text()
    stored = StoredStudy.read(STUDIES / f"{name}-broad", judge)
    for found in (stored.contrasts(), stored.above_chance()):
        contrasts = {variant: c for c in found for variant in (c.first, c.second)}
        for label in labels:
            assert points(contrasts[label]) in page, label


def test_findings_hold_the_demos_report():
    page = FINDINGS.read_text()
    report = json.loads((ROOT / "figures" / "demo_report.json").read_text())
    assert report_table(report).partition("seconds:")[0] in page
    rates = [[100 * score[end] for end in ("rate", "low", "high")] for score in report["scores"][1::2]]
    cells = [f"**{value:.1f}%** [{low:.1f}, {high:.1f}]" for value, low, high in rates]
    assert f"`make demo` | 28,000 | {' | '.join(cells)} |" in page


def test_findings_hold_where_water_is_drawn_unasked():
    page = FINDINGS.read_text()
    first, second = (
        StoredStudy.read(STUDIES / "balance-broad", judge).by_radical() for judge in ("radicals", "judge-b")
    )
    one, other = ([f"{100 * share:.0f}" for share in table["not asked for", "水"]] for table in (first, second))
    assert f"{', '.join(one[:3])} and {one[3]}% of the images for *other* prompts" in page
    assert f"(B: {', '.join(other)}%)" in page
    rare = [f"{100 * share:.1f}".removesuffix(".0") for share in first["asked for", "虫"]]
    assert f"falls from {rare[0]}% of its prompts to {', '.join(rare[1:3])} and {rare[3]}%" in page
    ways = StoredStudy.read(STUDIES / "full-full", "judge-b").by_radical()["not asked for", "水"]
    assert f"(B: {100 * ways['every weight']:.0f} against {100 * ways['LoRA']:.0f}%)" in page


def test_findings_hold_how_many_drawings_are_nearest_to_their_own_kanji():
    stored = pd.read_parquet(STUDIES / "epochs-broad" / "nearest.parquet").query("split == 'train'")
    own = stored.groupby("variant")["its own"].agg(["sum", "count"])
    few, many = own.loc["88 kanji"], own.loc["2,400 images seen", "sum"]
    stated = f"{few['sum']} of {few['count']} images, where chance alone would give 3 or 4; with 352 kanji in {many}."
    assert stated in FINDINGS.read_text()


def test_findings_hold_the_criteria():
    page = FINDINGS.read_text()
    scores = json.loads((ROOT / "figures" / "criteria_judge_b.json").read_text())["scores"]
    rows = {"the demo's run": "run", "trained with shuffled captions": "shuffled captions", "noise": "noise"}
    rows |= {"typeset by rule": "typeset", "real held-out characters": "real held-out"}
    for label, name in rows.items():
        (line,) = re.findall(rf"^\| {label}.*", page, re.MULTILINE)
        shares = [float(cell.strip(" *").split()[0].strip("*")) for cell in line.split("|")[2:-1]]
        assert shares == [round(100 * scores[name][score]["value"], 1) for score in (*CRITERIA, ALL_FIVE, STYLE)]


def percent(estimate: Iterable[float]) -> str:
    value, low, high = (100 * end for end in estimate)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def test_findings_hold_re_invention():
    asked = json.loads((ROOT / "figures" / "reinvention_report.json").read_text())["scores"]
    for label, kind in (("by parts", "T1, by parts"), ("by meaning", "T2, by meaning")):
        cells = [label]
        for score in ("part-set recall", "top-10, among all"):
            own, other = (asked[name][score] for name in (kind, f"{kind} read as answers to another item"))
            cells += [percent(own[end] for end in ("value", "low", "high")), f"{100 * other['value']:.1f}%"]
        assert f"| {' | '.join(cells)} |" in FINDINGS.read_text()
    assert asked["T1, by parts"]["both parts"]["value"] == 0


def test_findings_hold_the_pairs_of_radicals():
    page = FINDINGS.read_text()
    pairs = json.loads((ROOT / "figures" / "slot_pairs_report.json").read_text())["judges"]["B"]
    rates = pairs["rates"]
    assert f"| one radical alone | {percent(rates['alone']['any'])} | | |" in page
    labels = {"same slot": "two radicals of one slot", "different slots": "two radicals with slots of their own"}
    for kind, label in labels.items():
        found = [percent(rates[kind][name]) for name in ("any", "both")]
        assert f"| {label} | {' | '.join(found)} | {100 * pairs['independent'][kind]:.1f}% |" in page


@pytest.mark.parametrize(("judge", "mark"), [("radicals", ""), ("judge-b", "B ")])
def test_the_readme_holds_the_verdicts_at_tuned_rates(judge, mark):
    readme = (ROOT / "README.md").read_text()
    for _, contrast in claims(STUDIES, judge, suffix=TUNED_SUFFIX):
        assert f"{mark}{points(contrast)}" in readme


def test_the_readme_holds_the_demos_rates():
    readme = (ROOT / "README.md").read_text()
    reports = [json.loads((ROOT / "figures" / name).read_text()) for name in ("demo_report.json", DEMO_SHUFFLED)]
    after = [[f"{100 * score['rate']:.0f}%" for score in report["scores"][1::2]] for report in reports]
    assert f"in {after[0][0]} of images for training captions and {after[0][1]} for new captions" in readme
    assert f"({after[1][0]} and {after[1][1]} if trained with shuffled captions)" in readme
    assert "names it for 49%" in readme
    scores = json.loads((ROOT / "figures" / "criteria_judge_b.json").read_text())["scores"]
    own, typeset = (f"{100 * scores[name][ALL_FIVE]['value']:.1f}%" for name in ("run", "typeset"))
    assert f"{own} of its images pass every test of a new character (typeset by rule: {typeset})" in readme


def test_the_texts_hold_the_writers_scores():
    sets = json.loads((ROOT / "figures" / "writer_report.json").read_text())["sets"]
    readme = (ROOT / "README.md").read_text()
    held, novel = sets["held out"], sets["novel"]
    assert f"in {100 * held['both'][0]:.0f}% of its images for pairs that it was never shown" in readme
    assert f"in {100 * novel['both'][0]:.0f}% for pairs that no kanji has" in readme
    assert f"{100 * novel['all_five'][0]:.0f}% of those pass every test" in readme
    assert f"{100 * novel['best'][0]:.0f}% of the best of eight" in readme
    for page in (ROOT / "docs" / "findings.md", ROOT / "kanjilab" / "weights" / "writer" / "README.md"):
        text = page.read_text()
        for kind in ("taught", "held out", "novel"):
            cells = [interval(sets[kind][name]) for name in ("either", "both", "right", "well_formed")]
            assert f"| {' | '.join(cells)} |" in text, (page, kind)
        assert interval(novel["all_five"]) in text and interval(novel["best"]) in text
        assert f"{100 * sets['meaning']['parts']:.1f}%" in text and f"{100 * sets['meaning']['shuffled']:.1f}%" in text


def interval(values: list[float]) -> str:
    return f"{100 * values[0]:.1f}% [{100 * values[1]:.1f}, {100 * values[2]:.1f}]"


def test_the_page_of_calligraphy_holds_its_scores():
    report = json.loads((ROOT / "figures" / "calligraphy.json").read_text())
    page = (ROOT / "docs" / "calligraphy.md").read_text()
    assert table_text(report) in page
    for hand in report["hands"]:
        assert f"{hand['hand']} {hand['distance_before']:.1f} → {hand['distance_after']:.1f}" in page
    notebook = (ROOT / "notebooks" / "18_write_by_brush.ipynb").read_text()
    shares = {row["row"]: row["style_read"][0] for row in report["rows"] if row["split"] == "unseen characters"}
    own, real, typed = (shares[name] for name in ("led by its skeleton", "real glyphs", "by the typed one"))
    assert f"in {own:.0%} of the unseen characters ({real:.0%} of the real glyphs)" in notebook
    assert f"from a typed one in {typed:.0%}" in notebook
    read = {row["row"]: row["outside"][0] for row in report["rows"] if row["split"] == "trained characters, regular"}
    by_index, real, both = (read[name] for name in ("by index", "real glyphs", "typed, with index"))
    assert f"in {by_index:.0%} of the glyphs in regular scripts ({real:.0%} of the real ones)" in notebook
    assert f"with the typed skeleton too, in {both:.0%}" in notebook


def test_findings_hold_the_writers_trials():
    page = (ROOT / "docs" / "findings.md").read_text()
    for trial in json.loads((ROOT / "figures" / "writer_trials.json").read_text())["trials"]:
        cells = [f"{trial[name]:.2f}" for name in ("right", "held_both", "novel_both", "held_wf")]
        assert f"| {trial['what']} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("file", ["base_trials.json", "demo_recipes.json"])
def test_findings_hold_the_trials_of_bases_and_recipes(file):
    page = FINDINGS.read_text()
    for trial in json.loads((ROOT / "figures" / file).read_text())["trials"]:
        rates = [f"{100 * rate:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" for rate, low, high in trial["rates"]]
        assert f"| {trial['what']} | {trial['images_seen']:,} | {' | '.join(rates)} | {trial['loss']:.3f} |" in page


def test_the_page_of_japanese_holds_how_swapped_captions_are_found():
    page = (ROOT / "docs" / "japanese.md").read_text()
    table = pd.DataFrame(json.loads((ROOT / "figures" / "caption_filter_planted.json").read_text())["rows"])
    for share, rows in table.groupby("share"):
        ways = {others: found for others, found in rows.groupby("others")}
        helped, alone = ways["with other kanji"], ways["alone"]
        cells = [f"{v.mean():.3f} [{v.min():.3f}, {v.max():.3f}]" for v in (helped.auc, helped.precision, alone.auc)]
        assert f"| {share:.0%} | {' | '.join(cells)} |" in page


def test_the_page_of_japanese_holds_what_filtered_captions_teach():
    page, cells = (ROOT / "docs" / "japanese.md").read_text(), {}
    for report in json.loads((ROOT / "figures" / "caption_filter_trained.json").read_text()).values():
        for rate in report["rates"]:
            value, low, high = (100 * rate[name] for name in ("value", "low", "high"))
            cells.setdefault(rate["variant"], []).append(f"{value:.0f}% [{low:.0f}, {high:.0f}]")
        for contrast in report["contrasts"]["held_out"]:
            value, low, high = (100 * number for number in contrast["difference"])
            assert f"{value:+.0f} [{low:.0f}, {high:.0f}]" in page
    assert len(cells) == 4 and all(f"| {' | '.join(texts)} |" in page for texts in cells.values())


def test_the_page_of_japanese_holds_what_the_stages_are_worth():
    page = (ROOT / "docs" / "japanese.md").read_text()
    stored = json.loads((ROOT / "figures" / "japanese_stages.json").read_text())
    cells: dict[str, list[str]] = {}
    for reports in stored["studies"].values():
        for report in reports.values():
            for rate in report["rates"]:
                value, low, high = (100 * rate[name] for name in ("value", "low", "high"))
                cells.setdefault(rate["variant"], []).append(f"{value:.0f}% [{low:.0f}, {high:.0f}]")
            for contrast in report["contrasts"].get("held_out", []):
                value, low, high = (100 * number for number in contrast["difference"])
                assert f"{value:+.0f} [{low:.0f}, {high:.0f}]" in page
    for contrast in stored["against"].values():
        value, low, high = (100 * number for number in contrast["difference"])
        assert f"{value:+.0f} [{low:.0f}, {high:.0f}]" in page
    assert len(cells) == 4 and all(f"| {' | '.join(texts)} |" in page for texts in cells.values())


def test_the_findings_say_what_each_moved_setting_drew():
    page, folder = (ROOT / "docs" / "findings.md").read_text(), ROOT / "figures" / "studies" / "settings-steps"
    cells: dict[str, list[str]] = {}
    for judge in ("radicals", "judge-b"):
        for rate in json.loads((folder / f"report-{judge}.json").read_text())["rates"]:
            if rate["final"] and rate["split"] == "held_out":
                value, low, high = (100 * rate[name] for name in ("value", "low", "high"))
                cells.setdefault(rate["variant"], []).append(f"{value:.0f} [{low:.0f}, {high:.0f}]")
    reference, *others = cells.items()
    assert f"all layers | {' | '.join(reference[1])} |" in page
    for variant, texts in others:
        assert f"| {variant} | {' | '.join(texts)} |" in page


def test_the_findings_say_what_the_pilot_of_the_claims_drew():
    page, folder = (ROOT / "docs" / "findings.md").read_text(), ROOT / "figures" / "studies" / "claims-legible-pilot"
    cells: dict[str, list[str]] = {}
    for judge in ("radicals", "judge-b", "outside"):
        for rate in json.loads((folder / f"report-{judge}.json").read_text())["rates"]:
            if rate["final"] and rate["split"] == "held_out":
                value, low, high = (100 * rate[name] for name in ("value", "low", "high"))
                cells.setdefault(rate["variant"], []).append(f"{value:.0f} [{low:.0f}, {high:.0f}]")
    table = pd.read_parquet(folder / "table-radicals.parquet")
    chosen = {f"{row.setting}, rate {row.peak_lr:.2g}" for row in best_rates(table).itertuples()}
    assert {row.setting: row.peak_lr for row in best_rates(table).itertuples()} == TUNED["claims-legible"]
    for variant, texts in cells.items():
        name = f"**{variant}**" if variant in chosen else variant
        assert f"| {name} | {' | '.join(texts)} |" in page


def test_no_text_names_one_machine_or_a_package_index():
    texts = {path: path.read_text(errors="replace") for path in committed() if path.suffix not in BINARY}
    here = [f"{folder}/" for folder in (ROOT, ROOT.parent) if len(folder.parts) > 1]
    found = {path: traces(text) + [place for place in here if place in text] for path, text in texts.items()}
    assert {str(path.relative_to(ROOT)): what for path, what in found.items() if what} == {}


def test_traces_are_recognised():
    outputs = ["/home" + "/ada", "/Users" + "/ada", "/root" + "/run", "/tmp" + "/run", "lib/site-packages" + "/torch"]
    outputs += ["https://pypi" + ".org/simple", "files.python" + "hosted" + ".org"]
    assert [len(traces(text)) for text in outputs] == [1] * len(outputs)
    assert traces("runs/demo, ~/data, https://kanjivg.tagaini.net") == []
