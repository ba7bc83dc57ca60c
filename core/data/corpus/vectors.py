"""Vector pictures whose shapes can be painted anew: what tells lines, fills and shading apart is in the file.

Drawing needs resvg (``pip install polydit[vectors]``); only ``polydit corpus build --kinds illustrations`` draws.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ...errors import PolyditError

__all__ = ["Drawing", "Paint", "Shape", "UnsupportedDrawing"]

SHAPES = {"path", "rect", "circle", "ellipse", "polygon", "polyline", "line"}
# Kept as they are, colours and all: what is inside is geometry, or is referred to from elsewhere.
_HIDDEN = {"defs", "clipPath", "mask", "pattern", "symbol", "marker", "linearGradient", "radialGradient"}
_DROPPED = {"text", "flowRoot", "image", "use", "script", "foreignObject", "metadata"}
_PAINT = ("fill", "stroke", "opacity", "fill-opacity", "stroke-opacity")
_UNITS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_HREF = "{http://www.w3.org/1999/xlink}href"

Colour = tuple[float, float, float]


class UnsupportedDrawing(ValueError):
    """A file that is not SVG, or uses what cannot be painted anew."""


@dataclass(frozen=True)
class Paint:
    """What a shape is filled or stroked with.

    Attributes:
        colour: in [0, 1]; of a gradient the mean along it.
        alpha: in [0, 1]; of a gradient the mean along it.
        gradient: its id, or None for a plain colour.
        clear: whether something behind can be seen anywhere.
        shaded: a gradient is drawn in its own colours; otherwise in ``colour``, with its own opacities.
    """

    colour: Colour
    alpha: float
    gradient: str | None = None
    clear: bool = False
    shaded: bool = False

    @property
    def luma(self) -> float:
        """Brightness in [0, 1] (Rec. 709 weights on the coded values)."""
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), self.colour, strict=True))


@dataclass
class Shape:
    """One shape in the order of painting."""

    element: ElementTree.Element
    fill: Paint | None
    stroke: Paint | None
    style: dict[str, str] = field(default_factory=dict)


class Drawing:
    """An SVG file whose shapes can be painted in other colours.

    Text, pictures and references are left out.

    Args:
        data: the file.

    Raises:
        UnsupportedDrawing: it is no SVG, or is coloured by a style sheet.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self.root = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise UnsupportedDrawing(f"unreadable: {error}") from error
        if _tag(self.root) != "svg":
            raise UnsupportedDrawing("not an SVG file")
        if any(_tag(e) == "style" for e in self.root.iter()):
            raise UnsupportedDrawing("coloured by a style sheet")
        for parent in list(self.root.iter()):
            for child in [c for c in parent if _tag(c) in _DROPPED]:
                parent.remove(child)
        self.gradients = {e.get("id", ""): e for e in self.root.iter() if _tag(e).endswith("Gradient")}
        self.shapes = list(self._collect(self.root, {}, 1.0))
        self.box = self._page()

    def fit(self, margin: float = 0.04) -> None:
        """Look at the square around what is painted, with a margin on each side.

        Raises:
            UnsupportedDrawing: nothing is.
        """
        alpha = self.render(192, lambda shape: (shape.fill, shape.stroke))[..., 3]
        rows, columns = np.nonzero(alpha.max(1) > 8)[0], np.nonzero(alpha.max(0) > 8)[0]
        if not len(rows):
            raise UnsupportedDrawing("nothing is painted")
        x, y, side, _ = self.box
        top, left = rows[0] / 192 * side, columns[0] / 192 * side
        bottom, right = (rows[-1] + 1) / 192 * side, (columns[-1] + 1) / 192 * side
        size = max(bottom - top, right - left) * (1 + 2 * margin)
        self.box = (x + (left + right - size) / 2, y + (top + bottom - size) / 2, size, size)

    def render(
        self, side: int, paint: Callable[[Shape], tuple[Paint | None, Paint | None]]
    ) -> NDArray[np.uint8]:
        """Draw: 8-bit (side, side, 4) with straight alpha.

        Args:
            side: in pixels.
            paint: the fill and the stroke of each shape; None leaves it out.

        Raises:
            UnsupportedDrawing: the renderer refuses the file.
            PolyditError: the renderer is not installed.
        """
        try:
            import resvg_py
        except ImportError as error:
            raise PolyditError(
                "illustrations: drawing vector pictures needs resvg; pip install polydit[vectors]"
            ) from error
        extra: dict[str, ElementTree.Element] = {}
        for shape in self.shapes:
            fill, stroke = paint(shape)
            style = dict(shape.style)
            for name, one in (("fill", fill), ("stroke", stroke)):
                style[name] = "none" if one is None else self._reference(one, extra)
                style[f"{name}-opacity"] = "1" if one is None else f"{1 if one.gradient else one.alpha:.4f}"
            shape.element.set("style", ";".join(f"{k}:{v}" for k, v in style.items()))
        self.root.set("viewBox", " ".join(f"{v:.5f}" for v in self.box))
        self.root.set("width", str(side))
        self.root.set("height", str(side))
        self.root.set("preserveAspectRatio", "xMidYMid meet")
        defs = ElementTree.SubElement(self.root, "{http://www.w3.org/2000/svg}defs")
        defs.extend(extra.values())
        try:
            png = resvg_py.svg_to_bytes(
                svg_string=ElementTree.tostring(self.root, encoding="unicode"), skip_system_fonts=True
            )
        except ValueError as error:
            raise UnsupportedDrawing(f"cannot be drawn: {error}") from error
        finally:
            self.root.remove(defs)
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
        if picture.shape[:2] != (side, side):
            raise UnsupportedDrawing("drawn at another size")
        return picture

    # -- reading -------------------------------------------------------------------------------------------

    def _collect(
        self, element: ElementTree.Element, inherited: dict[str, str], opacity: float
    ) -> Iterator[Shape]:
        tag = _tag(element)
        if tag in _HIDDEN:
            return
        own = {k: element.get(k, "") for k in (*_PAINT, "display", "visibility") if element.get(k)}
        style = _style(element.get("style", ""))
        own |= style
        if own.get("display") == "none" or own.get("visibility") == "hidden":
            element.set("style", "display:none")
            return
        opacity *= _number(own.pop("opacity", "1"), 1.0)
        known = {**inherited, **{k: v for k, v in own.items() if k in (*_PAINT, "color")}}
        geometry = {k: v for k, v in style.items() if k not in _PAINT}
        for name in _PAINT:
            element.attrib.pop(name, None)
        element.set("style", ";".join(f"{k}:{v}" for k, v in geometry.items()))
        if tag in SHAPES:
            fill = self._paint(known.get("fill", "black"), known.get("fill-opacity", "1"), opacity)
            stroke = self._paint(known.get("stroke", "none"), known.get("stroke-opacity", "1"), opacity)
            yield Shape(element, fill, stroke, geometry)
            return
        for child in element:
            yield from self._collect(child, known, opacity)

    def _paint(self, value: str, alpha: str, opacity: float) -> Paint | None:
        strength = min(max(_number(alpha, 1.0), 0.0), 1.0) * opacity
        if strength < 0.01 or value in ("none", "transparent"):
            return None
        reference = re.match(r"url\(\s*['\"]?#([^'\")]+)", value)
        if reference is None:
            colour = _colour(value)
            return None if colour is None else Paint(colour, strength, None, strength < 0.95)
        stops = self._stops(reference[1])
        if not stops:
            return None
        places = np.array([stop[0] for stop in stops])
        along = np.linspace(0, 1, 33)
        values = np.array([[*stop[1], stop[2] * strength] for stop in stops])
        sampled = np.stack([np.interp(along, places, column) for column in values.T], axis=1)
        weight = sampled[:, 3:] + 1e-6
        red, green, blue = (sampled[:, :3] * weight).sum(0) / weight.sum(0)
        mean = float(sampled[:, 3].mean())
        if mean < 0.01:
            return None
        return Paint(
            (float(red), float(green), float(blue)), mean, reference[1], bool(values[:, 3].min() < 0.95)
        )

    def _stops(self, name: str, depth: int = 0) -> list[tuple[float, Colour, float]]:
        element = self.gradients.get(name)
        if element is None or depth > 8:
            return []
        stops = []
        last = 0.0
        for stop in element:
            if _tag(stop) != "stop":
                continue
            style = {k: stop.get(k, "") for k in ("stop-color", "stop-opacity") if stop.get(k)}
            style |= _style(stop.get("style", ""))
            offset = stop.get("offset", "0")
            place = _number(offset.rstrip("%"), 0.0) / (100 if offset.endswith("%") else 1)
            last = min(max(place, last), 1.0)
            colour = _colour(style.get("stop-color", "black")) or (0.0, 0.0, 0.0)
            stops.append((last, colour, _number(style.get("stop-opacity", "1"), 1.0)))
        href = element.get(_HREF) or element.get("href") or ""
        return stops or self._stops(href.removeprefix("#"), depth + 1)

    def _reference(self, paint: Paint, extra: dict[str, ElementTree.Element]) -> str:
        """The paint as a CSS value; a gradient becomes one of the paint's own colour and strength."""
        colour = "#" + "".join(f"{round(min(max(c, 0), 1) * 255):02x}" for c in paint.colour)
        if paint.gradient is None:
            return colour
        gradient, name = paint.gradient, f"polydit-{len(extra)}"
        source = self.gradients[gradient]
        copy = ElementTree.Element(source.tag, {**source.attrib, "id": name, _HREF: f"#{gradient}"})
        stops = self._stops(gradient)
        mean = self._paint(f"url(#{gradient})", "1", 1.0)
        strength = paint.alpha / mean.alpha if mean is not None else 1.0
        for place, stop_colour, alpha in stops:
            shown = (
                "rgb(" + ",".join(f"{round(c * 255)}" for c in stop_colour) + ")" if paint.shaded else colour
            )
            ElementTree.SubElement(
                copy,
                "{http://www.w3.org/2000/svg}stop",
                {
                    "offset": f"{place:.5f}",
                    "stop-color": shown,
                    "stop-opacity": f"{min(alpha * strength, 1):.4f}",
                },
            )
        extra[name] = copy
        return f"url(#{name})"

    def _page(self) -> tuple[float, float, float, float]:
        numbers = [_number(v, 0.0) for v in re.split(r"[\s,]+", self.root.get("viewBox", "").strip()) if v]
        if len(numbers) == 4 and min(numbers[2:]) > 0:
            x, y, width, height = numbers
        else:
            x = y = 0.0
            width, height = _length(self.root.get("width")), _length(self.root.get("height"))
        side = max(width, height)
        return (x + (width - side) / 2, y + (height - side) / 2, side, side)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _style(text: str) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in text.split(";") if ":" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def _number(text: str, default: float) -> float:
    try:
        value = text.strip()
        return float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        return default


def _length(text: str | None) -> float:
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text or "")
    if match is None or match[2] not in _UNITS or not _number(match[1], 0.0):
        raise UnsupportedDrawing("no size")
    return float(match[1]) * _UNITS[match[2]]


def _colour(value: str) -> Colour | None:
    try:
        red, green, blue = ImageColor.getrgb(value.split("icc-color")[0].strip())[:3]
    except (ValueError, IndexError):
        return None
    return red / 255, green / 255, blue / 255
