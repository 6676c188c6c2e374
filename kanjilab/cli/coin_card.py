"""The card of coined glyphs: one page that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from kanjilab.evaluation.judges.explanation import LAYOUT_WORDS
from kanjilab.experiments.certificate import LABELS, UNITS, Certificate, Criterion, Nearest, Verdict
from kanjilab.experiments.coining import Coinage, Coined
from kanjilab.export.font import FAMILY, FIRST_CODE
from kanjilab.export.vectors import Outline, path_of

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1a; --paper: #fbfaf7; --soft: #6a6862; --line: #dedbd2; --good: #23734a;
  --bad: #b3372f; --first: #1f6fb2; --second: #b4641d; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae4; --paper: #171716; --soft: #a3a099; --line: #3a3936;
  --good: #6cc596; --bad: #f08a80; --first: #7db8ec; --second: #e3a15f; --card: #1f1f1d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK JP", "Hiragino Sans", sans-serif; }
h1 { font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.15; margin: 0 0 .4rem; font-weight: 650; }
h2 { font-size: 1.15rem; margin: 0 0 .3rem; font-weight: 650; }
p { margin: .3rem 0; } .soft { color: var(--soft); } .small { font-size: .875rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem; margin: 1.6rem 0; }
.sheet a { display: block; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem;
  color: inherit; text-decoration: none; text-align: center; }
.sheet a:hover, .sheet a:focus-visible { border-color: var(--ink); }
svg { display: block; width: 100%; height: auto; } path { fill: currentColor; }
.glyph { border-top: 1px solid var(--line); padding: 1.6rem 0; display: grid; gap: 1.5rem;
  grid-template-columns: minmax(12rem, 17rem) 1fr; }
.glyph > * { min-width: 0; } .picture { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
rect { fill: none; stroke-width: .9; stroke-dasharray: 3 2; } .p0 { stroke: var(--first); }
.p1 { stroke: var(--second); } .p2, .p3, .p4 { stroke: var(--soft); }
.key0 { color: var(--first); } .key1 { color: var(--second); }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: .8rem 0; font-size: .93rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { font-variant-numeric: tabular-nums; } thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 500; } .yes { color: var(--good); } .no { color: var(--bad); }
ul.near { list-style: none; padding: 0; margin: .2rem 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
.near b { font-weight: 400; font-size: 1.25rem; } .typed { font-family: "FAMILY"; font-size: 2.6rem; line-height: 1.3;
  overflow-wrap: anywhere; } code { font-size: .9em; }
@media (max-width: 40rem) { .glyph { grid-template-columns: 1fr; } .picture { max-width: 17rem; } }
@media print { .glyph { break-inside: avoid; } }
"""


def card_html(coinage: Coinage, outlines: Sequence[Outline], woff2: bytes) -> str:
    """The page: all glyphs large, a certificate of each, and how to type them.

    Args:
        coinage: what to show.
        outlines: of its glyphs.
        woff2: the font, which the page carries.
    """
    data = base64.b64encode(woff2).decode()
    face = f'@font-face {{ font-family: "{FAMILY}"; src: url(data:font/woff2;base64,{data}) format("woff2"); }}'
    title, translation = escape(coinage.phrase), escape(coinage.translation)
    translated = f'<p class="soft">translated by the dictionary: {translation}</p>' if translation else ""
    numbered = list(enumerate(zip(coinage.glyphs, outlines, strict=True), 1))
    sheet = "".join(_tile(number, one, outline) for number, (one, outline) in numbered)
    sections = "".join(_section(number, one.certificate, outline) for number, (one, outline) in numbered)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}: coined kanji</title><style>{STYLE.replace('FAMILY', FAMILY)}{face}</style>\n"
        f"<header><h1>{title}</h1>{translated}<p>{escape(coinage.summary)}</p></header>\n"
        f'<div class="sheet">{sheet}</div>\n{sections}{_typing(len(outlines))}{_about(coinage)}</html>\n'
    )


def _svg(outline: Outline, label: str, more: str = "") -> str:
    path = f'<path fill-rule="evenodd" d="{path_of(outline)}"/>'
    return f'<svg viewBox="0 0 128 128" role="img" aria-label="{escape(label)}">{path}{more}</svg>'


def _tile(number: int, one: Coined, outline: Outline) -> str:
    report = one.certificate.report
    parts = escape(" + ".join(part.name or part.part for part in report.parts) or "no part")
    mark = _mark(report.passes, "all five" if report.passes else f"{5 - len(report.lacking)} of 5")
    label = f"Glyph {number}"
    return f'<a href="#g{number}">{_svg(outline, label)}<span class="small">{number}. {parts}<br>{mark}</span></a>'


def _mark(passed: bool, text: str = "") -> str:
    return f'<span class="{"yes" if passed else "no"}">{"✓" if passed else "✗"} {escape(text)}</span>'


def _section(number: int, certificate: Certificate, outline: Outline) -> str:
    links = (
        f'<a href="{number:02d}.png">PNG</a> · <a href="{number:02d}.svg">SVG</a> · '
        f'<a href="{number:02d}.json">certificate</a> · typed as U+{FIRST_CODE + number - 1:04X}'
    )
    return f'<section class="glyph" id="g{number}">{certificate_html(number, certificate, outline, links)}</section>\n'


def certificate_html(number: int, certificate: Certificate, outline: Outline, links: str) -> str:
    """A glyph with its parts in boxes, and beside it its certificate, as two blocks.

    Args:
        number: of the glyph, from 1.
        certificate: its own.
        outline: its own.
        links: HTML below the picture.
    """
    report = certificate.report
    boxes = "".join(_box(place, part.box) for place, part in enumerate(report.parts))
    parts = ", ".join(
        f'<span class="key{place}">{escape(part.part)} {escape(part.name)}</span> ({part.score:.2f})'
        for place, part in enumerate(report.parts)
    )
    layout = LAYOUT_WORDS.get(report.layout, "no clear layout")
    reason = f" ({escape(certificate.reason)})" if certificate.reason else ""
    rejected = f"<p>{_mark(False, f'rejected by judge A: {certificate.rejected}')}</p>" if certificate.rejected else ""
    return (
        f'<div><div class="picture">{_svg(outline, f"Glyph {number}", boxes)}</div>'
        f'<p class="small soft">{links}</p></div><div>'
        f"<h2>{number}. {escape(certificate.novelty)}</h2>{rejected}"
        f"<p>Parts: {parts or 'none found'}; {layout}.</p>"
        f'<p class="soft">Asked: “{escape(certificate.prompt)}”{reason}, noise {certificate.seed}.</p>'
        f'{_criteria_table(certificate)}<p class="small soft">Nearest real characters, by distance:</p>'
        f'<ul class="near">{_nearest_rows(certificate)}</ul></div>'
    )


def _box(place: int, box: Sequence[float]) -> str:
    left, top, right, bottom = (round(128 * value, 1) for value in box)
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    return f'<rect class="p{min(place, 4)}" x="{left}" y="{top}" {size}/>'


def _criteria_table(certificate: Certificate) -> str:
    heads = "".join(f"<th>{_role(verdict)}</th>" for verdict in certificate.verdicts)
    rows = []
    for criteria in zip(*(verdict.criteria for verdict in certificate.verdicts), strict=True):
        name = criteria[0].name
        cells = "".join(f'<td title="{escape(one.note)}">{_cell(one)}</td>' for one in criteria)
        unit = f'<span class="small soft">{UNITS[name]}</span>'
        rows.append(f"<tr><th>{LABELS[name]}<br>{unit}</th>{cells}</tr>")
    head = f"<thead><tr><th></th>{heads}</tr></thead>"
    return f'<div class="table"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _role(verdict: Verdict) -> str:
    return f"Judge {verdict.judge}, {'which chose' if verdict.judge == 'A' else 'which reports'}"


def _cell(one: Criterion) -> str:
    value = "–" if one.value is None else f"{one.value:.3g}"
    note = "" if one.passed else f'<br><span class="small soft">{escape(one.note)}</span>'
    return f'{_mark(one.passed)} {value} <span class="soft">(least {one.threshold:.3g})</span>{note}'


def _nearest_rows(certificate: Certificate) -> str:
    lists = [(f"judge {verdict.judge}", verdict.nearest) for verdict in certificate.verdicts]
    rows = [_near(who, one) for who, found in [*lists, ("outline", certificate.outline)] for one in found[:2]]
    return "".join(rows)


def _near(who: str, one: Nearest) -> str:
    text = f"{one.codepoint}, {who} {one.distance:.2f}"
    return f'<li><b lang="ja">{escape(one.character)}</b> <span class="small soft">{text}</span></li>'


def _typing(count: int) -> str:
    codes = [FIRST_CODE + number for number in range(count)]
    typed = " ".join(f"&#x{code:X};" for code in codes)
    return (
        f'<section><h2>To type them</h2><p class="typed">{typed}</p>'
        f"<p>Install <code>coined.ttf</code> (for web pages: <code>coined.woff2</code>), choose the font “{FAMILY}”, "
        f"and copy the signs above, or enter their codes: U+{codes[0]:04X} to U+{codes[-1]:04X}. They are private: "
        f"without this font they are empty boxes.</p></section>\n"
    )


def _about(coinage: Coinage) -> str:
    one = coinage.glyphs[0].certificate
    writer = f"the model “{one.writer}” ({one.identity})" if one.writer else "a drawing function"
    return (
        f'<footer class="small soft"><p>Drawn by {escape(writer)} with kanjilab {escape(one.version)}. Two networks '
        f"read each glyph: judge A chose, judge B reports. Their thresholds were frozen on real characters; of real "
        f"held-out characters about 95% pass each. “Not in the list” does not mean that no one ever wrote it.</p>"
        f"</footer>\n"
    )
