"""Marching cubes with the right scale and winding, exact solids, and what a broken mesh encloses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from polydit.core.geometry.mesh import Mesh
from polydit.core.geometry.primitives import Ball, Extrusion, Frustum, Placed, Union, box, rotation
from polydit.core.geometry.solids import solid_of
from polydit.core.geometry.surfaces import grid_points, surface_of_field

CENTRE = np.array([0.2, 0.0, 0.0])


def ball_field(resolution):
    field = 0.6 - np.linalg.norm(grid_points(resolution) - CENTRE, axis=1)
    return field.reshape((resolution + 1,) * 3)


def cube(side=1.0):
    part = Union([Placed(box(side, side, side), np.zeros(3))])
    return part, part.mesh(32)


@pytest.mark.parametrize("resolution", [32, 64])
def test_a_sphere_has_its_radius_and_volume(resolution):
    mesh = surface_of_field(ball_field(resolution))
    radii = np.linalg.norm(mesh.vertices - CENTRE, axis=1)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)
    assert radii.mean() == pytest.approx(0.6, rel=0.01)
    assert abs(radii - 0.6).max() < 0.01
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    outwards = (mesh.vertex_normals * (mesh.vertices - CENTRE)).sum(1)
    assert outwards.min() > 0.5  # of 0.6


def test_the_released_scale_shrinks_and_shifts():
    """Dividing by R + 1, as released codes do: measured in the method's sheet."""
    mesh = surface_of_field(ball_field(64), released=True, closed=False)
    centre = (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    np.testing.assert_allclose(centre, [0.1815, -0.0154, -0.0154], atol=2e-4)
    assert mesh.volume == pytest.approx(0.8623, abs=1e-3)


def test_shapes_that_touch_the_box_are_closed_and_nothing_gives_nothing():
    full = surface_of_field(np.ones((9, 9, 9)))
    assert full.is_watertight
    assert full.volume == pytest.approx(8)
    open_one = surface_of_field(np.linspace(-1, 1, 9)[:, None, None] + np.zeros((9, 9, 9)), closed=False)
    assert not open_one.is_watertight
    half = surface_of_field(np.linspace(-1, 1, 9)[:, None, None] + np.zeros((9, 9, 9)))
    assert half.is_watertight
    assert half.volume == pytest.approx(4, rel=0.01)
    assert surface_of_field(-np.ones((9, 9, 9)), level=0.0).is_empty
    assert surface_of_field(ball_field(16), level=5.0).is_empty
    with pytest.raises(ValueError, match="three axes"):
        surface_of_field(np.ones((4, 5, 4)))


def test_corners_on_the_level_leave_no_holes():
    field = np.maximum(np.abs(grid_points(16)).max(1), 0.0)
    assert surface_of_field((0.5 - field).reshape(17, 17, 17)).is_watertight


@pytest.mark.parametrize(
    "part",
    [
        Ball(0.5),
        Frustum(0.5, 0.2, 0.4),
        Frustum(0.3, 0.3, 0.5),
        box(1, 0.2, 0.6),
        Extrusion(np.array([[0, -0.5], [0.6, 0], [0.2, 0.4], [0, 0.4]]), 0.1),
    ],
    ids=["ball", "cone", "cylinder", "box", "prism"],
)
def test_primitives_know_their_surface_and_their_distance(part):
    generator = np.random.default_rng(0)
    points, normals = part.sample(20_000, generator)
    assert abs(part.distance(points)).max() < 1e-12
    np.testing.assert_allclose(part.distance(points + 0.01 * normals), 0.01, atol=1e-12)
    assert (part.distance(points - 0.001 * normals) < 0).mean() > 0.98  # all but sharp edges
    places = generator.uniform(-1, 1, (1000, 3))
    nearest = cKDTree(points).query(places)[0]
    np.testing.assert_allclose(abs(part.distance(places)), nearest, atol=0.015)
    # Evenly spread: a tenth of the box holds its share of the area, measured on the mesh.
    mesh = Union([Placed(part, np.zeros(3))]).mesh(64)
    assert mesh.areas.sum() == pytest.approx(part.area(), rel=0.05)


def test_a_union_samples_its_outside_only():
    shape = Union(
        [
            Placed(box(1, 0.1, 1), np.zeros(3)),
            Placed(Frustum(0.05, 0.08, 0.4), np.array([0.3, -0.4, 0.3])),
            Placed(box(1, 1, 0.1), np.array([0, 0.5, -0.45]), rotation(x=-8)),
        ]
    ).fitted()
    points, normals = shape.sample(5000, np.random.default_rng(0))
    assert abs(shape.distance(points)).max() < 1e-9
    assert (shape.distance(points + 0.004 * normals) > 0).mean() > 0.97  # all but concave corners
    assert (points.max(0) - points.min(0)).max() == pytest.approx(1.9, rel=0.01)
    assert shape.mesh(48).is_watertight


def test_a_mesh_knows_its_solid_and_its_parts():
    shape, mesh = cube()
    assert mesh.volume == pytest.approx(1, rel=0.02)
    points, normals = mesh.sample(4000, np.random.default_rng(0))
    assert abs(shape.distance(points)).max() < 0.02
    assert (points * normals).sum(1).min() > 0.2
    two = Mesh(
        np.concatenate([mesh.vertices, mesh.vertices * 0.01 + 0.9]),
        np.concatenate([mesh.faces, mesh.faces[:10] + len(mesh.vertices)]),
    )
    assert two.components().max() == 1
    assert len(two.without_floaters().faces) == len(mesh.faces)
    assert Mesh.empty().without_floaters().is_empty
    with pytest.raises(ValueError, match="no area"):
        Mesh.empty().sample(3, np.random.default_rng(0))


def test_a_solid_survives_holes_and_turned_faces():
    shape, mesh = cube(1.2)
    generator = np.random.default_rng(0)
    broken = mesh.keep(generator.random(len(mesh.faces)) > 0.03)
    turned = Mesh(broken.vertices, broken.faces.copy())
    half = generator.random(len(turned.faces)) < 0.5
    turned.faces[half] = turned.faces[half][:, ::-1]
    solid = solid_of(turned, 48)
    places = generator.uniform(-1, 1, (20_000, 3))
    true, found = shape.contains(places), solid.contains(places)
    assert (true & found).sum() / (true | found).sum() > 0.97
    assert solid.mesh().is_watertight
    assert solid.mesh().volume == pytest.approx(1.2**3, rel=0.03)
    near = places[abs(shape.distance(places)) < 0.06]
    assert abs(solid.distance(near) - shape.distance(near)).mean() < 0.01
    assert solid.distance(np.array([[3.0, 0, 0]]))[0] == pytest.approx(2.4, abs=0.05)


def test_an_open_sheet_becomes_a_thin_solid():
    corners = np.array([[-0.9, 0.01, -0.9], [0.9, 0.01, -0.9], [0.9, 0.01, 0.9], [-0.9, 0.01, 0.9]])
    sheet = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    mesh = solid_of(sheet, 48).mesh()
    assert mesh.is_watertight
    assert 0 < mesh.volume < 1.9 * 1.9 * 0.1
