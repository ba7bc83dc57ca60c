"""Mesh files: read, repaired or refused, written and read again; pictures without a graphics card."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from polydit.core.errors import PolyditError
from polydit.core.geometry.mesh import Mesh
from polydit.core.geometry.primitives import Placed, Union, box
from polydit.core.geometry.reading import read_mesh, repaired
from polydit.core.geometry.turntable import View, render_mesh, render_points, turntable
from polydit.core.geometry.writing import MESH_FORMATS, height_colours, mesh_bytes, points_bytes

trimesh = pytest.importorskip("trimesh")


@pytest.fixture(scope="module")
def block():
    """Wide, flat and deep: 1.9 x 0.6 x 1.2."""
    return Union([Placed(box(1.9, 0.6, 1.2), np.zeros(3))]).mesh(24)


def write_obj(path, mesh):
    lines = [f"v {x} {y} {z}" for x, y, z in mesh.vertices]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in mesh.faces]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("kind", MESH_FORMATS)
def test_a_mesh_comes_back(block, kind, tmp_path):
    painted = block.painted(height_colours(block.vertices))
    file = tmp_path / f"block.{kind}"
    file.write_bytes(mesh_bytes(painted, kind))
    read = read_mesh(file)
    assert read.mesh.is_watertight
    assert read.mesh.volume == pytest.approx(block.volume, rel=0.02)
    np.testing.assert_allclose(
        read.mesh.bounds, block.bounds, atol=0.05
    )  # STL was turned, and is turned back
    assert [note for note in read.notes if "turned" in note] == (
        ["turned: z was up, y is now (STL files mostly are)"] if kind == "stl" else []
    )


def test_files_hold_normals_and_colours(block):
    painted = block.painted(height_colours(block.vertices))
    scene = trimesh.load(io.BytesIO(mesh_bytes(painted, "glb")), file_type="glb")
    (geometry,) = scene.geometry.values()
    assert "vertex_normals" in geometry._cache
    np.testing.assert_array_equal(np.asarray(geometry.visual.vertex_colors)[:, :3], painted.colours)
    assert b"vn " in mesh_bytes(painted, "obj")
    assert b"property float nx" in mesh_bytes(painted, "ply")
    with pytest.raises(PolyditError, match="glb, obj, ply, stl"):
        mesh_bytes(block, "fbx")
    with pytest.raises(PolyditError, match="no surface"):
        mesh_bytes(Mesh.empty(), "glb")


def test_a_cloud_is_a_ply(block, tmp_path):
    points, _ = block.sample(50, np.random.default_rng(0))
    file = tmp_path / "cloud.ply"
    file.write_bytes(points_bytes(points))
    cloud = trimesh.load(file)
    np.testing.assert_allclose(cloud.vertices, points, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], height_colours(points))
    with pytest.raises(PolyditError, match="no faces; a mesh is needed, not points"):
        read_mesh(file)


def test_scale_and_place_are_normalised_and_told(block, tmp_path):
    read = read_mesh(write_obj(tmp_path / "big.obj", block.moved(700, np.array([5000.0, 0, 0]))))
    np.testing.assert_allclose(read.mesh.bounds, block.bounds, atol=1e-3)
    assert any(note.startswith("scaled: its longest side was 1330 units") for note in read.notes)
    for side in (5.0, 0.3, 19.0):
        read = read_mesh(write_obj(tmp_path / "other.obj", block.fitted(side)))
        assert read.notes == (f"scaled: its longest side was {side:g} units, it is 1.9 now",)
    assert read_mesh(write_obj(tmp_path / "same.obj", block.fitted(1.905))).notes == ()
    assert read_mesh(write_obj(tmp_path / "kept.obj", block.fitted(5.0)), fit=False).notes == ()
    turned = read_mesh(write_obj(tmp_path / "z.obj", block), up="z")
    np.testing.assert_allclose(turned.mesh.bounds[1], [0.95, 0.6, 0.3], atol=0.02)
    assert "turned: z was up, y is now" in turned.notes


def stl_header(faces):
    return bytes(80) + struct.pack("<I", faces)


BAD = {
    "missing.obj": (None, "no such file"),
    "notes.txt": (b"hello", "not a mesh that can be read; give one of .glb"),
    "empty.obj": (b"", "an empty file"),
    "words.obj": (b"this is no mesh\n", "no faces|cannot be read"),
    "broken.glb": (b"glTF\x02\x00\x00\x00garbage", "cannot be read as a mesh"),
    "picture.ply": (b"\x89PNG\r\n\x1a\n" + bytes(64), "cannot be read as a mesh"),
    "triangle.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "1 usable face; a solid has at least four"),
    "nan.obj": (b"v nan 0 0\nv nan 0 0\nv nan 1 0\nv nan 1 1\nf 1 2 3\nf 1 2 4\n", "NaN or infinite"),
    "dot.obj": (b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "in one place|no faces"),
    "huge.stl": (stl_header(5_000_000), "more than 2,000,000 faces"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_solid_is_refused_in_one_line(name, tmp_path):
    content, reason = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PolyditError, match=reason) as caught:
        read_mesh(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_faces_are_refused(block, tmp_path):
    with pytest.raises(PolyditError, match="at most 100 are read"):
        read_mesh(write_obj(tmp_path / "block.obj", block), max_faces=100)


def test_damage_is_repaired_and_told(block):
    vertices = block.vertices.copy()
    vertices[3] = np.nan
    mesh, notes = repaired(Mesh(vertices, block.faces))
    assert np.isfinite(mesh.vertices).all()
    assert "not finite" in notes[0]
    assert any(note.startswith("not watertight") for note in notes)
    twice = Mesh(block.vertices, np.concatenate([block.faces, block.faces[:5], [[0, 0, 1]]]))
    mesh, notes = repaired(twice)
    assert notes == ["removed 6 double or degenerate faces"]
    assert mesh.is_watertight
    inside_out, notes = repaired(Mesh(block.vertices, block.faces[:, ::-1]))
    assert inside_out.volume > 0
    assert notes == ["turned inside out: its faces looked inwards"]
    fin = Mesh(
        np.concatenate([block.vertices, [[0.0, 2, 0]]]),
        np.concatenate([block.faces, [[*block.faces[0, :2], len(block.vertices)]]]),
    )
    assert any(note.startswith("not manifold") for note in repaired(fin)[1])


def test_a_picture_shows_what_is_in_front(block):
    red = np.zeros((len(block.vertices), 3), np.uint8)
    red[:, 0] = 255
    behind = block.moved(0.5, np.array([0.0, 0, -0.9])).painted(255 - red)
    both = Mesh(
        np.concatenate([behind.vertices, block.vertices]),
        np.concatenate([behind.faces, block.faces + len(behind.vertices)]),
        np.concatenate([behind.colours, red]),
    )
    picture = render_mesh(both, View(0, 0, 1.25), 64)
    covered = picture[..., 3] > 128
    # 1.9 x 0.6 of a field of 2.5 x 2.5, seen from the front; no holes.
    assert covered.mean() == pytest.approx(1.9 * 0.6 / 2.5**2, rel=0.08)
    middle = picture[32, 20:44]
    assert (middle[:, 0] > 100).all()
    assert (middle[:, 1:3] == 0).all()
    other_side = render_mesh(both, View(180, 0, 1.25), 64)[32, 32]
    assert other_side[0] == 0
    assert other_side[1] > 100
    assert render_mesh(Mesh.empty(), View(), 16).max() == 0


def test_clouds_and_sheets(block):
    points, _ = block.sample(2000, np.random.default_rng(0))
    picture = render_points(points, View(0, 0, 1.25), 64)
    assert 0.1 < (picture[..., 3] > 0).mean() < 0.25
    sheet = turntable(block, views=6, size=32, columns=4)
    assert sheet.size == (128, 64)
    assert turntable(points, views=2, size=32).size == (64, 32)
