"""Vector drawings as the layers of an illustration: flat colour, shadow, highlight and line art.

The layers are made first and the picture is composed of them, so that they are its true layers. Workflow-Aware
Structured Layer Decomposition for Illustration Production (arXiv 2603.14925) names the four; how a drawing's own
fills, strokes and gradients are sorted into them is ours:

- what is dark and thin, stroked or filled, is line art; bright strokes and thick dark areas are colours;
- opaque fills are flat colour, a gradient by its mean;
- where a gradient is darker than its mean, and where a dark fill lets something through, there is shadow (black, to be
  multiplied); where it is brighter, highlight (white, to be screened).

Under the lines the other layers are what is next to them: nobody can see it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .vectors import Drawing, Paint, Shape, UnsupportedDrawing

__all__ = ["LAYERS", "Illustration", "compose", "encode", "take_apart"]

LAYERS: tuple[tuple[str, str], ...] = (
    ("flat", "normal"),
    ("shadow", "multiply"),
    ("highlight", "screen"),
    ("line", "normal"),
)
"""Name and blend mode, bottom to top."""

_RED, _GREEN, _BLUE, _BLACK = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
_DARK, _BRIGHT = 0.35, 0.72  # luma of what counts as shadow or highlight where it lets something through
_INK = 0.16  # luma of fills that are lines where they are thin
_STROKE = 0.4  # luma of strokes that are lines where they are thin
_THICKEST = 0.022  # of a line, in sides of the picture
_LEAST_LINES, _MOST_LINES, _LEAST_COLOURS = 0.012, 0.3, 0.12  # mean alphas

Layer = NDArray[np.floating]


@dataclass(frozen=True)
class Illustration:
    """True layers, each (H, W, 4) with straight alpha in [0, 1], in the order of :data:`LAYERS`."""

    layers: tuple[Layer, ...]

    @property
    def amounts(self) -> dict[str, float]:
        """Mean alpha of each layer."""
        return {
            name: float(layer[..., 3].mean()) for (name, _), layer in zip(LAYERS, self.layers, strict=True)
        }


def compose(layers: tuple[Layer, ...]) -> Layer:
    """The picture (H, W, 3) in [0, 1] of the four layers on white paper."""
    flat, shadow, highlight, line = layers
    picture = 1 + flat[..., 3:] * (flat[..., :3] - 1)
    picture = picture * (1 - shadow[..., 3:] * (1 - shadow[..., :3]))
    picture = 1 - (1 - picture) * (1 - highlight[..., 3:] * highlight[..., :3])
    return picture + line[..., 3:] * (line[..., :3] - picture)


def take_apart(data: bytes, side: int = 256) -> Illustration:
    """Sort the shapes of an SVG file into layers.

    Args:
        data: the file.
        side: of the square picture, in pixels.

    Raises:
        UnsupportedDrawing: it cannot be read or drawn, or what it shows is no illustration in lines and colours.
        PolyditError: the renderer is not installed.
    """
    drawing = Drawing(data)
    if not 4 <= len(drawing.shapes) <= 600:
        raise UnsupportedDrawing("too few shapes" if len(drawing.shapes) < 4 else "too many shapes")
    if not any(_is_line(shape.stroke) or (shape.fill and _is_ink(shape.fill)) for shape in drawing.shapes):
        raise UnsupportedDrawing("few lines")
    drawing.fit()
    classes = _floats(drawing.render(side, _classes))[..., :3]
    drawn = classes[..., 0]
    thick = _opened(drawn, max(2, round(_THICKEST * side / 2)))
    line_alpha = np.where(thick, 0, drawn)
    if not _LEAST_LINES <= line_alpha.mean() <= _MOST_LINES:
        raise UnsupportedDrawing("few lines" if line_alpha.mean() < _LEAST_LINES else "mostly lines")
    colours = _floats(drawing.render(side, _flat))
    shaded = _floats(drawing.render(side, _shaded))
    strokes = _floats(drawing.render(side, _drawn))
    ink = strokes[..., :3] * strokes[..., 3:]
    line_colour = np.clip(ink / np.maximum(drawn[..., None], 1e-3), 0, 1)
    # Thick strokes are colours. (Dark fills and bright strokes are in `colours` already.)
    stroked = np.where(thick, drawn, 0)[..., None]
    alpha = colours[..., 3:]
    painted = colours[..., :3] * alpha * (1 - stroked) + line_colour * stroked
    alpha = alpha + stroked * (1 - alpha)
    flat = np.concatenate([painted / np.maximum(alpha, 1e-3), alpha], axis=-1)

    base, light = _luma(colours), _luma(shaded)
    covered = (colours[..., 3] > 0.5) & ~thick
    darker = np.where(covered, np.clip(1 - light / np.maximum(base, 1e-3), 0, 1), 0)
    brighter = np.where(covered, np.clip((light - base) / np.maximum(1 - base, 1e-3), 0, 1), 0)
    shadow = 1 - (1 - np.where(darker < 0.03, 0, darker)) * (1 - classes[..., 1])
    highlight = 1 - (1 - np.where(brighter < 0.03, 0, brighter)) * (1 - classes[..., 2])

    flat, shadow, highlight = _under_lines(line_alpha, flat, shadow, highlight)
    line = np.concatenate([np.where(line_alpha[..., None] > 0.02, line_colour, 0), line_alpha[..., None]], -1)
    black, white = np.zeros_like(flat), np.ones_like(flat)
    black[..., 3], white[..., 3] = shadow, highlight
    found = Illustration(tuple(np.clip(x, 0, 1).astype(np.float32) for x in (flat, black, white, line)))
    if found.amounts["flat"] < _LEAST_COLOURS:
        raise UnsupportedDrawing("few colours")
    return found


# -- how shapes are painted ------------------------------------------------------------------------------------


def _lets_through(paint: Paint | None) -> bool:
    return paint is not None and paint.clear and (paint.luma < _DARK or paint.luma > _BRIGHT)


def _flat(shape: Shape) -> tuple[Paint | None, Paint | None]:
    fill = shape.fill
    stroke = None if _is_line(shape.stroke) else shape.stroke
    if fill is None or _lets_through(fill):
        return None, stroke and replace(stroke, gradient=None)
    return replace(fill, gradient=None), stroke and replace(stroke, gradient=None)


def _shaded(shape: Shape) -> tuple[Paint | None, Paint | None]:
    fill = shape.fill
    stroke = None if _is_line(shape.stroke) else shape.stroke
    if fill is None or _lets_through(fill):
        return None, stroke and replace(stroke, gradient=None)
    return replace(fill, shaded=True), stroke and replace(stroke, gradient=None)


def _classes(shape: Shape) -> tuple[Paint | None, Paint | None]:
    """Lines red, shadows green, highlights blue, everything else black: each covers what is behind."""
    fill, stroke = shape.fill, shape.stroke
    if fill is not None:
        colour = _BLACK
        if _lets_through(fill):
            colour = _GREEN if fill.luma < _DARK else _BLUE
        elif _is_ink(fill):
            colour = _RED
        fill = replace(fill, colour=colour)
    return fill, stroke and replace(stroke, colour=_RED if _is_line(stroke) else _BLACK)


def _drawn(shape: Shape) -> tuple[Paint | None, Paint | None]:
    fill = shape.fill
    if fill is not None:
        fill = fill if _is_ink(fill) else replace(fill, colour=_BLACK)
    stroke = shape.stroke
    return fill, stroke if stroke is None or _is_line(stroke) else replace(stroke, colour=_BLACK)


def _is_line(paint: Paint | None) -> bool:
    return paint is not None and paint.luma < _STROKE


def _is_ink(paint: Paint) -> bool:
    return paint.luma < _INK and not paint.clear


# -- on pixels -------------------------------------------------------------------------------------------------


def _floats(picture: NDArray[np.uint8]) -> Layer:
    return picture.astype(np.float32) / 255


def _luma(picture: Layer) -> Layer:
    return picture[..., :3] @ np.array([0.2126, 0.7152, 0.0722], np.float32)


def _opened(coverage: Layer, radius: int) -> NDArray[np.bool_]:
    """Where a disc of this radius fits, and the rim that belongs to it."""
    from scipy import ndimage

    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = rows**2 + columns**2 <= (radius + 0.3) ** 2
    core = ndimage.binary_opening(coverage > 0.3, disc)
    return ndimage.binary_dilation(core, iterations=1) & (coverage > 0.02)


def _under_lines(line: Layer, *layers: Layer) -> list[Layer]:
    """Each layer with what is nearest put under the lines."""
    from scipy import ndimage

    hidden = line > 0.05
    if hidden.all():
        raise UnsupportedDrawing("mostly lines")
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return [layer[rows, columns] for layer in layers]


def encode(found: Illustration) -> dict[str, bytes]:
    """The files of an illustration by name: ``layers.json`` first, the layers bottom to top, the composite."""
    files: dict[str, bytes] = {}
    entries = []
    for number, ((name, mode), layer) in enumerate(zip(LAYERS, found.layers, strict=True)):
        file = f"layer_{number:02d}.png"
        files[file] = _png(layer)
        entries.append({"file": file, "name": name, "blend_mode": mode, "opacity": 1.0, "x": 0, "y": 0})
    height, width = found.layers[0].shape[:2]
    record = {"width": width, "height": height, "paper": [255, 255, 255], "layers": entries}
    content = json.dumps({"format": "polydit-layers", "version": 1, **record}, indent=1).encode() + b"\n"
    return {"layers.json": content, **files, "composite.png": _png(compose(found.layers))}


def _png(picture: Layer) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
