"""Vector drawings taken apart: which shape goes into which layer."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("resvg_py")

from polydit.core.data.corpus.illustrations import LAYERS, compose, encode, take_apart
from polydit.core.data.corpus.vectors import Drawing, UnsupportedDrawing
from polydit.core.media import read_layers

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="100" height="100">'
FACE = f"""{HEAD}
<defs><linearGradient id="g"><stop offset="0" stop-color="#808000"/><stop offset="1" stop-color="#ffff00"/>
</linearGradient><linearGradient id="h" xlink:href="#g" x2="0" y2="1"/></defs>
<g style="stroke:black;stroke-width:3">
<rect x="10" y="10" width="80" height="80" fill="#f00"/>
<circle cx="35" cy="50" r="12" style="fill:url(#h)"/></g>
<rect x="55" y="30" width="20" height="20" fill="#000" fill-opacity="0.5"/>
<g opacity="0.5"><rect x="55" y="60" width="20" height="20" fill="white"/></g>
<text x="20" y="20">never drawn</text></svg>""".encode()


@pytest.fixture(scope="module")
def layers() -> dict[str, np.ndarray]:
    return dict(zip([name for name, _ in LAYERS], take_apart(FACE, 100).layers, strict=True))


def at(layer: np.ndarray, x: float, y: float) -> np.ndarray:
    """The pixel at the drawing's own coordinates: it is shown with a margin around the 83 units of the square."""
    scale = 100 / (83 * 1.08)
    return layer[round((y - 8.5) * scale + 4), round((x - 8.5) * scale + 4)]


def test_fills_are_flat_colour_by_their_mean(layers):
    assert at(layers["flat"], 20, 80) == pytest.approx([1, 0, 0, 1], abs=0.01)
    assert at(layers["flat"], 35, 50)[:3] == pytest.approx([0.75, 0.75, 0], abs=0.02)
    assert at(layers["flat"], 65, 40) == pytest.approx([1, 0, 0, 1], abs=0.01)  # under the shadow
    assert layers["flat"][0, 0, 3] == 0


def test_dark_thin_strokes_are_lines(layers):
    assert at(layers["line"], 50, 10.5)[3] > 0.9
    assert not at(layers["line"], 50, 10.5)[:3].any()
    assert at(layers["line"], 20, 80)[3] == 0


def test_what_lets_through_is_shadow_or_highlight(layers):
    assert at(layers["shadow"], 65, 40)[3] == pytest.approx(0.5, abs=0.02)
    assert at(layers["highlight"], 65, 70)[3] == pytest.approx(0.5, abs=0.02)
    assert at(layers["shadow"], 20, 80)[3] == 0
    assert at(layers["shadow"], 35, 42)[3] > 0.1  # the gradient's dark end
    assert at(layers["highlight"], 35, 58)[3] > 0.01


def test_layers_make_the_picture(layers):
    picture = compose(tuple(layers.values()))
    assert at(picture, 65, 40) == pytest.approx([0.5, 0, 0], abs=0.02)
    assert at(picture, 65, 70) == pytest.approx([1, 0.5, 0.5], abs=0.02)
    assert picture[0, 0] == pytest.approx([1, 1, 1])


def test_files_are_those_of_a_stack(tmp_path):
    found = take_apart(FACE, 64)
    for name, content in encode(found).items():
        (tmp_path / name).write_bytes(content)
    stack = read_layers(tmp_path / "layers.json")
    assert [layer.name for layer in stack.layers] == [name for name, _ in LAYERS]
    expected = compose(found.layers) * 255
    assert np.abs(stack.composite() - expected).max() <= 1.51
    assert json.loads((tmp_path / "layers.json").read_text())["paper"] == [255, 255, 255]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not xml", "unreadable"),
        (b"<html/>", "not an SVG"),
        (HEAD.encode() + b"<style>a{}</style></svg>", "style sheet"),
        (HEAD.encode() + b'<rect width="9" height="9" stroke="#000"/></svg>', "too few shapes"),
        (HEAD.encode() + b'<rect width="9" height="9" fill="red"/>' * 5 + b"</svg>", "few lines"),
        (
            HEAD.encode() + b'<line x1="1" y1="1" x2="90" y2="90" stroke="#000"/>' * 5 + b"</svg>",
            "few colours",
        ),
    ],
)
def test_what_is_no_illustration_is_named(data, reason):
    with pytest.raises(UnsupportedDrawing, match=reason):
        take_apart(data, 64)


def test_sizes_without_a_view_box():
    wide = FACE.replace(b'width="100" height="100"', b'width="50mm" height="100px"')
    assert Drawing(wide).box[2] == pytest.approx(50 * 96 / 25.4)
    with pytest.raises(UnsupportedDrawing, match="no size"):
        Drawing(FACE.replace(b'width="100" height="100"', b""))
