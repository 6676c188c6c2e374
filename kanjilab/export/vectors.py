"""Outlines of a glyph: traced from its picture, and written as SVG.

vtracer follows the edges; what it finds are polygons. Their gentle turns become quadratic curves, as in TrueType.
"""

from __future__ import annotations

import io
import re
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kanjilab.core.images import SIZE_PX

Pair = tuple[float, float]
Point = tuple[float, float, bool]  # x, y in px of the picture, y down; whether the outline goes through it
Contour = tuple[Point, ...]  # closed; points that it does not go through control quadratic curves, as in TrueType
Outline = tuple[Contour, ...]

SVG_BYTES_MAX = 4096
DETAIL = 8  # times the picture's size at which edges are followed
TOLERANCES_PX = (0.18, 0.3, 0.5, 0.8, 1.2)  # a vertex nearer than this to the line past it is left out
SPECK_PX = 1  # a patch with a smaller side than this is left out
CORNER_DEGREES = 50  # a sharper turn stays a corner
EDGE_PX = 1.2  # of a corner's edges, at least
REACH_PX = 3.0  # of a curve, along the edges before and after a turn
NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
PATHS = re.compile(r'<path d="([^"]*)"[^>]*translate\(([-\d.e]+),([-\d.e]+)\)')


def trace(image: NDArray[np.uint8], tolerance_px: float = TOLERANCES_PX[0]) -> Outline:
    """The outline of a glyph's ink.

    Args:
        image: (H, W) uint8, 0 ink to 255 paper.
        tolerance_px: a vertex nearer than this to the line past it is left out.
    Returns:
        Contours; of what is inside another the direction is the opposite, so that both fill rules agree.
        None without ink.
    Raises:
        ValueError: a wrong shape or type.
    """
    return _outline(_directed(_polygons(image)), tolerance_px)


def _outline(polygons: list[NDArray[np.float64]], tolerance_px: float) -> Outline:
    simplified = [_simplified(polygon, tolerance_px) for polygon in polygons]
    return tuple(_curved(polygon) for polygon in simplified if len(polygon) > 2)


def _polygons(image: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """Edges as polygons (n, 2) in px; holes are polygons of their own."""
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"expected one uint8 image (H, W), got {image.dtype} {image.shape}")
    import vtracer

    height, width = image.shape
    large = Image.fromarray(image).resize((width * DETAIL, height * DETAIL), Image.Resampling.BICUBIC)
    black = large.point(lambda value: 255 if value >= 128 else 0).convert("RGB")  # pyright: ignore[reportOperatorIssue]
    buffer = io.BytesIO()
    black.save(buffer, "PNG")
    options = {"colormode": "binary", "mode": "polygon", "filter_speckle": SPECK_PX * DETAIL, "path_precision": 2}
    svg = vtracer.convert_raw_image_to_svg(buffer.getvalue(), img_format="png", **options)
    found = []
    for path, x, y in PATHS.findall(svg):
        for ring in path.split("M")[1:]:
            points = np.array(re.findall(r"-?[\d.]+", ring), np.float64).reshape(-1, 2) + (float(x), float(y))
            points /= DETAIL
            found.append(points[:-1] if len(points) > 1 and (points[0] == points[-1]).all() else points)
    return found


def _simplified(polygon: NDArray[np.float64], tolerance_px: float) -> NDArray[np.float64]:
    """Without the vertices that are near the line past them.

    Source: Ramer 1972; Douglas and Peucker 1973.
    """
    farthest = int(((polygon - polygon[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([polygon, polygon[:1]])
    kept = np.zeros(len(closed), bool)
    pending = [(0, farthest), (farthest, len(polygon))]
    while pending:
        first, last = pending.pop()
        kept[[first, last]] = True
        if last - first > 1:
            away = _distances_to_line(closed[first + 1 : last], closed[first], closed[last])
            if away.max() > tolerance_px:
                middle = first + 1 + int(away.argmax())
                pending += [(first, middle), (middle, last)]
    return polygon[kept[:-1]]


def _distances_to_line(points: NDArray[np.float64], start: NDArray, end: NDArray) -> NDArray[np.float64]:
    along = end - start
    offset = points - start
    return np.abs(along[0] * offset[:, 1] - along[1] * offset[:, 0]) / max(float(np.hypot(*along)), 1e-9)


def signed_area(polygon: NDArray[np.float64]) -> float:
    """Of a polygon (n, 2) with y down: positive where it runs clockwise, as one sees it."""
    x, y = polygon.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _directed(polygons: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Each clockwise for ink, counter-clockwise for a hole: by how many others are around it."""
    if not polygons:
        return []
    low, high = (np.stack([end(polygon, axis=0) for polygon in polygons]) for end in (np.min, np.max))
    directed = []
    for index, polygon in enumerate(polygons):
        near = np.flatnonzero(((low < polygon[0]) & (polygon[0] < high)).all(axis=1))
        around = sum(_contains(polygons[other], polygon[0]) for other in near if other != index)
        clockwise = signed_area(polygon) > 0
        directed.append(polygon if clockwise == (around % 2 == 0) else polygon[::-1])
    return directed


def _contains(polygon: NDArray[np.float64], point: NDArray[np.float64]) -> bool:
    start, end = polygon, np.roll(polygon, -1, axis=0)
    crossing = (start[:, 1] > point[1]) != (end[:, 1] > point[1])
    start, end = start[crossing], end[crossing]
    at = start[:, 0] + (point[1] - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
    return bool((at > point[0]).sum() % 2)


def _curved(polygon: NDArray[np.float64]) -> Contour:
    """Gentle turns as curves: their vertices control them; long edges stay straight in the middle."""
    back, ahead = np.roll(polygon, 1, axis=0) - polygon, np.roll(polygon, -1, axis=0) - polygon
    lengths = np.hypot(*back.T), np.hypot(*ahead.T)
    cosine = -(back * ahead).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-9)
    corner = (cosine < np.cos(np.radians(CORNER_DEGREES))) & (np.minimum(*lengths) >= EDGE_PX)
    points: list[Point] = []
    for index, vertex in enumerate(polygon):
        if corner[index]:
            points.append((vertex[0], vertex[1], True))
            continue
        for step, length, after in ((back[index], lengths[0][index], False), (ahead[index], lengths[1][index], True)):
            if after:
                points.append((vertex[0], vertex[1], False))
            neighbour = (index + (1 if after else -1)) % len(polygon)
            if corner[neighbour] or length > 2 * REACH_PX:  # else the curves meet half-way, by themselves
                x, y = vertex + step * min(0.5, REACH_PX / max(length, 1e-9))
                points.append((x, y, True))
    return tuple((float(x), float(y), on) for x, y, on in points)


def segments(contour: Contour) -> tuple[Pair, list[tuple[Pair, ...]]]:
    """A contour's start, and its lines (one point each) and quadratic curves (control point and end)."""
    halfway = [_halfway(point, contour[(index + 1) % len(contour)]) for index, point in enumerate(contour)]
    first = next((index for index, point in enumerate(contour) if point[2]), None)
    start = halfway[-1] if first is None else contour[first][:2]
    found: list[tuple[Pair, ...]] = []
    for step in range(len(contour)):
        index = (step + (0 if first is None else first + 1)) % len(contour)
        x, y, on = contour[index]
        following = contour[(index + 1) % len(contour)]
        if not on:
            found.append(((x, y), following[:2] if following[2] else halfway[index]))
        elif contour[index - 1][2]:
            found.append(((x, y),))
    return start, found


def _halfway(first: Point, second: Point) -> Pair:
    return (first[0] + second[0]) / 2, (first[1] + second[1]) / 2


def path_of(outline: Outline) -> str:
    """The outline as the `d` of an SVG path, in tenths of px."""
    words = []
    for contour in outline:
        start, rest = segments(contour)
        at = _tenths(start)
        words.append(f"M{_numbers(at)}")
        for points in rest:
            steps = [_tenths(point) for point in points]
            words.append(("l", "q")[len(steps) - 1] + _numbers(*(tuple(np.subtract(step, at)) for step in steps)))
            at = steps[-1]
        words.append("z")
    return "".join(words)


def _tenths(point: tuple[float, ...]) -> tuple[int, int]:
    return round(10 * point[0]), round(10 * point[1])


def _numbers(*points: tuple[int, ...]) -> str:
    """Tenths as numbers, as short as SVG lets them be: "-.5", "12", "3.4"."""
    texts = [re.sub(r"^(-?)0\.", r"\1.", f"{value / 10:g}") for point in points for value in point]
    return "".join(text if not place or text.startswith("-") else f" {text}" for place, text in enumerate(texts))


def glyph_outline(image: NDArray[np.uint8], bytes_max: int = SVG_BYTES_MAX) -> Outline:
    """The most detailed outline that is short enough.

    Args:
        image: (H, W) uint8, 0 ink to 255 paper.
        bytes_max: of the whole SVG.
    Raises:
        ValueError: as `trace`, or even the roughest outline is longer, as that of a picture that is no glyph.
    """
    polygons = _directed(_polygons(image))
    for tolerance_px in TOLERANCES_PX:
        outline = _outline(polygons, tolerance_px)
        if len(svg_of(outline).encode()) <= bytes_max:
            return outline
    raise ValueError(f"expected a glyph that can be drawn in {bytes_max} bytes, got {len(outline)} contours")


def xml_text(text: str) -> str:
    """Text for an XML file: escaped, and with a replacement for each sign that XML has no way to hold."""
    return escape(NOT_IN_XML.sub("\ufffd", text))


def svg_of(outline: Outline, title: str = "", size_px: int = SIZE_PX) -> str:
    """An SVG of one path.

    Args:
        outline: in px of a picture of `size_px`.
        title: what the picture is, for who cannot see it.
        size_px: side of the picture.
    """
    named = f"<title>{xml_text(title)}</title>" if title else ""
    path = f'<path fill-rule="evenodd" d="{path_of(outline)}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size_px} {size_px}">{named}{path}</svg>\n'
