"""Links that open a playground as another person left it: what the inputs say, as the query of an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

import anywidget
import traitlets

from kanjilab.models.sampling import Sampling
from kanjilab.widgets.common import FOLDER
from kanjilab.widgets.generation import Request

FIELDS_MOST = 20
Number = TypeVar("Number", int, float)
Choice = tuple[str, tuple[Path, int] | None]


class ShareLink(anywidget.AnyWidget):
    """A button that copies the address of the page with `query` behind it."""

    _esm = FOLDER / "share_link.js"
    query = traitlets.Unicode().tag(sync=True)


def query_of(request: Request, model: str) -> str:
    """A request as the query of an address; `request_of_query` is the inverse.

    Args:
        request: what to draw.
        model: label of what draws it, for paths belong to one machine.
    """
    sampling = request.sampling
    fields = {"prompt": request.prompt, "seed": request.seeds[0], "glyphs": len(request.seeds), "model": model}
    fields |= {"steps": sampling.steps, "guidance": f"{sampling.guidance:g}", "sampler": sampling.sampler}
    optional = {"step": request.step, "style": sampling.prefix, "negative": sampling.negative_prompt}
    optional |= {"parts": "".join(request.parts)}
    return urlencode(fields | {name: value for name, value in optional.items() if value not in (None, "")})


def request_of_query(query: str, choices: Sequence[Choice], usual: Request) -> Request:
    """What a link asks for.

    Args:
        query: of an address, without the question mark; untrusted.
        choices: (label, (folder of a run, arm) or None) of what can draw.
        usual: gives what the query does not say.
    Raises:
        ValueError: an unknown model, or a value of the wrong kind.
    """
    fields = dict(parse_qsl(query, max_num_fields=FIELDS_MOST))
    owned = dict(choices)
    if (model := fields.get("model")) is not None:
        if model not in owned:
            raise ValueError(f"the link asks for a model that is not here: {model:.80}")
        run, arm = owned[model] or (None, 0)
        usual = replace(usual, run=run, arm=arm)
    first = _number(fields, "seed", usual.seeds[0])
    count = _number(fields, "glyphs", len(usual.seeds))
    was = usual.sampling
    sampling = Sampling(
        fields.get("sampler", was.sampler),
        _number(fields, "steps", was.steps),
        _number(fields, "guidance", was.guidance),
        fields.get("negative", was.negative_prompt),
        fields.get("style", was.prefix),
    )
    step = _number(fields, "step", 0) if "step" in fields else None
    parts = tuple(dict.fromkeys(fields.get("parts", "")))
    seeds = tuple(range(first, first + min(count, 1000)))
    return replace(
        usual, prompt=fields.get("prompt", usual.prompt), seeds=seeds, sampling=sampling, step=step, parts=parts
    )


def _number(fields: Mapping[str, str], name: str, usual: Number) -> Number:
    """A field as a number of the usual one's kind."""
    try:
        return type(usual)(fields.get(name, usual))
    except ValueError as error:
        kind = "a whole number" if isinstance(usual, int) else "a number"
        raise ValueError(f"the link's {name}: expected {kind}, got {fields[name]!r:.80}") from error
