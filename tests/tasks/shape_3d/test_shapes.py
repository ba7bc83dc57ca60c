"""Procedural families, layouts of meshes and clouds, and what training reads of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from polydit.core.data.corpus.manifest import Record
from polydit.core.errors import PolyditError
from polydit.core.geometry.mesh import Mesh
from polydit.core.geometry.writing import mesh_bytes
from polydit.tasks.shape_3d.cloud_data import CloudData, CloudSet, read_pc15k, statistics
from polydit.tasks.shape_3d.pool import PoolOptions, build_pool
from polydit.tasks.shape_3d.procedural import FAMILIES, make_shape
from polydit.tasks.shape_3d.shapes import (
    MeshShape,
    ProceduralShape,
    find_shapes,
    furniture_category,
    procedural_shapes,
    readable,
    with_variations,
)
from polydit.tasks.shape_3d.triplane_data import SolidData


@pytest.mark.parametrize("category", FAMILIES)
def test_a_family_is_known_exactly(category):
    shape = make_shape(category, 5)
    points, normals = shape.sample(1500, np.random.default_rng(0))
    assert abs(shape.distance(points)).max() < 1e-9
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-9)
    # Centred, the longest side 1.9; the box is measured on samples.
    assert (points.max(0) - points.min(0)).max() == pytest.approx(1.9, abs=0.06)
    np.testing.assert_allclose(points.max(0) + points.min(0), 0, atol=0.1)
    mesh = shape.mesh(40)
    assert mesh.is_watertight
    assert mesh.volume > 0.005
    # One piece: of what a grid of 40 sees, nearly all is connected.
    assert (mesh.components() == 0).mean() > 0.6


def test_shapes_are_numbered_and_held_out_ones_are_others():
    same = [make_shape("chair", 3).sample(50, np.random.default_rng(1))[0] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    others = [make_shape("chair", 4), make_shape("chair", 3, held_out=True)]
    for other in others:
        assert abs(other.distance(same[0])).max() > 0.01
    assert ProceduralShape("chair", 3, True).name == "chair-held-out-3"
    with pytest.raises(PolyditError, match="chair, table, lamp, plane"):
        make_shape("boat", 0)


def test_furniture_is_sorted_by_its_name():
    known = {
        "Armchair": "chair", "Bar stool": "chair", "Oak table": "table", "Desk": "table", "Desk lamp": "lamp",
        "Bedside table": "table", "Corner sofa": "sofa", "Chair with cushion": "chair", "Table fan": None,
        "Bath": None, "Doormat": None,
    }  # fmt: skip
    assert {name: furniture_category(name) for name in known} == known


def layout(root, block_file, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(block_file, root / path)
    return root


def test_layouts_of_meshes(block_file, tmp_path, monkeypatch):
    import polydit.tasks.shape_3d.shapes as module

    monkeypatch.setattr(module, "split_by_name", lambda name: "val" if name.endswith("7") else "train")
    plain = layout(tmp_path / "plain", block_file, "chair/a1.glb", "chair/more/a7.glb", "lamp/b1.glb")
    (plain / "chair" / "notes.txt").write_text("no mesh")
    found = find_shapes("meshes", plain, "train", ["chair", "lamp"])
    assert [(s.name, s.category) for s in found] == [("chair/a1", "chair"), ("lamp/b1", "lamp")]
    assert [s.name for s in find_shapes("meshes", plain, "val", ["chair", "lamp"])] == ["more/a7"]
    split = layout(tmp_path / "split", block_file, "train/chair/x7.glb", "val/chair/y1.glb")
    assert [s.name for s in find_shapes("meshes", split, "train", ["chair"])] == ["chair/x7"]
    # The suffix is an OBJ's: only the name matters here.
    net = layout(
        tmp_path / "net", block_file, *(f"03001627/m{n}/models/model_normalized.obj" for n in (1, 2, 7))
    )
    assert len(find_shapes("shapenet", net, "train", ["chair"])) == 2
    (net / "03001627" / "train.lst").write_text("m7\n")
    (only,) = find_shapes("shapenet", net, "train", ["chair"])
    assert only.file.parts[-3] == "m7"
    verse = layout(tmp_path / "verse", block_file, "glbs/000-001/u1.glb", "glbs/000-002/u7.glb")
    (one,) = find_shapes("objaverse", verse, "train", ["object"])
    assert one.category == "object"
    with pytest.raises(PolyditError, match=r"nothing of boat for train .* it holds chair, lamp"):
        find_shapes("meshes", plain, "train", ["boat"])
    with pytest.raises(PolyditError, match="no such folder"):
        find_shapes("meshes", tmp_path / "gone", "train", ["chair"])
    with pytest.raises(PolyditError, match="choose from corpus, meshes, shapenet, objaverse"):
        find_shapes("voxels", plain, "train", ["chair"])


def test_a_mesh_is_a_solid_and_what_was_done_is_told(block, block_file, tmp_path):
    shape = MeshShape(block_file, "chair", resolution=40)
    points, _ = shape.sample(500, np.random.default_rng(0))
    np.testing.assert_allclose(abs(points).max(0), [0.95, 0.3, 0.6], atol=0.04)
    inside = np.array([[0, 0, 0], [0.8, 0.2, 0.5], [0, 0.5, 0]])
    assert (shape.distance(inside) < 0).tolist() == [True, True, False]
    bad = tmp_path / "bad.obj"
    bad.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    said = []
    assert readable([MeshShape(bad, "chair"), shape], said.append) == [shape]
    assert "1 usable face" in said[0]
    printed = tmp_path / "printed.stl"
    printed.write_bytes(
        mesh_bytes(Mesh(500 * block.vertices, block.faces), "stl")
    )  # written along z, as such files are
    shape = MeshShape(printed, "chair", resolution=32)
    assert readable([shape], said.append) == [shape]
    assert "turned: z was up" in said[1]
    assert "its longest side was 950 units" in said[1]
    build_pool([shape], PoolOptions(points=8), say=said.append)
    assert said[2] == "meshes: 1 turned, 1 scaled"
    large = [tmp_path / f"large{number}.obj" for number in range(3)]
    for number, file in enumerate(large):
        file.write_bytes(mesh_bytes(block.fitted(5.0 + number), "obj"))
    shapes = [MeshShape(file, "chair", resolution=32) for file in large]
    assert readable(shapes, said.append) == shapes
    assert said[3:] == ["meshes: 3 scaled, to a longest side of 1.9"]
    build_pool([*shapes, shape], PoolOptions(points=8), say=said.append)
    assert said[4:] == ["meshes: 4 scaled, 1 turned"]


def test_variations_stretch_and_turn_a_mesh(block_file):
    shape = MeshShape(block_file, "chair", resolution=40)
    family = with_variations([*procedural_shapes(["lamp"], 1), shape], 4)
    assert [s.name for s in family[1:]] == [shape.name] + [f"{shape.name}~{n}" for n in range(1, 5)]
    sizes = np.array([np.ptp(s.surface.vertices, axis=0) for s in family[1:]])
    np.testing.assert_allclose(sizes.max(1), 1.9, atol=0.06)  # each is scaled back
    ratios = sizes[:, 0] / sizes[:, 2]
    assert len(set(ratios.round(2))) == 5  # each in its own way
    np.testing.assert_array_equal(family[2].surface.vertices, replace(shape, variation=1).surface.vertices)
    # Stretched alone, then turned by a quarter or two: an odd one keeps its sides within a third of each other.
    stretch = np.log(sizes[1::2] / sizes[0])
    assert (np.ptp(stretch, axis=1) <= 2 * 0.29 + 0.05).all()


def test_variations_and_other_things_are_trained_on(block, tmp_path):
    def piece(name):
        (tmp_path / f"{name}.obj").write_bytes(mesh_bytes(block, "obj"))
        blank = ("",) * 5
        record = Record(f"{name}.obj", "meshes", "train", *blank, 0, 0, 0, "", extra={"name": name})
        return json.dumps(asdict(record)) + "\n"

    (tmp_path / "manifest.jsonl").write_text("".join(piece(name) for name in ("stool", "teapot", "clock")))
    options = {"path": str(tmp_path), "layout": "corpus", "categories": ["chair"], "procedural": 0}
    options |= {"points": 32, "queries": 8, "views": 1, "size": 16}
    data = SolidData(**options, variations=2, others=0.5)
    data.setup()
    assert data.train_set.categories == ["chair", "", "", "chair", "chair"] + [""] * 4
    labels = [int(data.train_set[n]["label"]) for n in range(40)]
    assert 10 < labels.count(1) < 30  # the place after the last category
    assert labels.count(0) + labels.count(1) == 40
    with pytest.raises(PolyditError, match=r"--data\.others 0\.5: is for the layout corpus"):
        SolidData(layout="meshes", others=0.5)


def test_files_that_stand_along_another_axis_are_turned(block, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "chair").mkdir(parents=True)
        (tmp_path / split / "chair" / "block.obj").write_bytes(mesh_bytes(block, "obj"))
    options = {"path": str(tmp_path), "layout": "meshes", "categories": ["chair"], "procedural": 0}
    cache = str(tmp_path / "cache")
    for up, high in (("auto", 0.3), ("z", 0.6)):
        clouds = CloudData(**options, points=64, up=up, cache=cache)
        clouds.setup()
        for data in (clouds.train_set, clouds.val_set):
            assert abs(data.clouds[0]).max(0)[1] == pytest.approx(high, abs=0.04)
    solids = SolidData(**options, points=64, queries=16, up="z")
    solids.setup()
    assert abs(solids.train_set.entries[0].points).max(0)[1] == pytest.approx(0.6, abs=0.04)
    for module in (CloudData, SolidData):
        with pytest.raises(PolyditError, match=r"--data\.up x: is unknown; choose from auto, y, z"):
            module(layout="meshes", up="x")
        with pytest.raises(
            PolyditError, match=r"--data\.up z: is for mesh files, and the layout procedural has none"
        ):
            module(up="z")


def test_the_pool_keeps_what_is_asked_for_and_finds_it_again(block_file, tmp_path):
    shapes = [*procedural_shapes(["chair", "lamp"], 1), MeshShape(block_file, "table", resolution=32)]
    options = PoolOptions(points=64, queries=40, near=0.02, views=1, size=16)
    entries, names = build_pool(shapes, options, tmp_path)
    assert names == ["chair", "lamp", "table"]
    entry = entries[0]
    assert entry.points.shape == (64, 3)
    assert entry.pictures.shape == (1, 16, 16, 4)
    assert 0.02 < (entry.pictures[0, ..., 3] > 0).mean() < 0.8
    true = shapes[0].distance(entry.queries.astype(np.float64))
    np.testing.assert_allclose(entry.distances, true, atol=1e-3)
    assert abs(entry.distances[20:]).mean() < 0.1 < abs(entry.distances[:20]).mean()
    again, _ = build_pool(shapes, options, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    np.testing.assert_array_equal(again[2].queries, entries[2].queries)
    build_pool(shapes, PoolOptions(points=65), tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2  # other settings, another file


def test_shapenet_pc15k(tmp_path):
    folder = tmp_path / "03001627"
    for split, count in (("train", 2), ("val", 1)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            np.save(folder / split / f"m{number}.npy", np.arange(45, dtype=np.float32).reshape(15, 3))
    clouds, names = read_pc15k(tmp_path, "train", ["chair"], 10)
    assert names == ["chair"] * 2
    assert clouds[0][-1].tolist() == [27, 28, 29]  # the first two thirds are for training
    held, _ = read_pc15k(tmp_path, "val", ["chair"], 5)
    assert held[0][0].tolist() == [30, 31, 32]
    with pytest.raises(
        PolyditError, match=r"m0\.npy: 5 points for val, and --data\.points 6 are asked for; lower it"
    ):
        read_pc15k(tmp_path, "val", ["chair"], 6)
    with pytest.raises(PolyditError, match=r"no \.npy files of lamp"):
        read_pc15k(tmp_path, "train", ["lamp"], 5)
    np.save(folder / "train" / "m0.npy", np.full((15, 3), np.nan))
    with pytest.raises(PolyditError, match="finite"):
        read_pc15k(tmp_path, "train", ["chair"], 5)
    (folder / "train" / "m0.npy").write_bytes(b"no array")
    with pytest.raises(PolyditError, match="cannot be read"):
        read_pc15k(tmp_path, "train", ["chair"], 5)


def test_clouds_by_category_each_equally_often():
    clouds = [np.full((50, 3), float(n)) for n in range(5)]
    names = ["chair", "chair", "chair", "chair", "lamp"]
    data = CloudSet(clouds, names, ["chair", "boat", "lamp"], 10, length=400, meshes=1, share=0.5)
    samples = [data[number] for number in range(400)]
    assert np.bincount([int(s["label"]) for s in samples]).tolist() == [200, 0, 200]
    of_mesh = np.mean([float(s["points"][0, 0]) == 0 for s in samples if s["label"] == 0])
    assert 0.35 < of_mesh < 0.65  # as the share says, although it is one in four
    assert torch.equal(data[7]["points"], data[7]["points"])
    each = CloudSet(clouds, names, ["chair", "lamp"], 10)
    assert [int(each[n]["label"]) for n in range(5)] == [0, 0, 0, 0, 1]
    with pytest.raises(PolyditError, match=r"--data\.points 60: a cloud has only 50"):
        CloudSet(clouds, names, ["chair"], 60)


def test_statistics_are_by_axis_and_one_number():
    cloud = np.random.default_rng(0).normal(size=(20_000, 3)) * [1, 2, 3] + [1, 0, -1]
    mean, std = statistics([cloud[:10_000], cloud[10_000:]])
    np.testing.assert_allclose(mean, [1, 0, -1], atol=0.1)
    assert std == pytest.approx(np.sqrt((1 + 4 + 9) / 3), rel=0.02)


def test_data_modules_say_what_is_missing(tmp_path):
    with pytest.raises(PolyditError, match=r"--data\.layout cubes"):
        CloudData(layout="cubes")
    with pytest.raises(PolyditError, match=r"--data\.layout cubes"):
        SolidData(layout="cubes")
    with pytest.raises(PolyditError, match="give 16 or more"):
        CloudData(points=3)
    with pytest.raises(PolyditError, match="PC15k"):
        CloudData(path=str(tmp_path / "gone"), layout="pc15k").setup()
    with pytest.raises(PolyditError, match="no shape of boat"):
        CloudData(categories=["chair", "boat"], procedural=1, points=16).setup()


def test_solids_for_training():
    data = SolidData(
        categories=["lamp", "table"],
        procedural=1,
        points=32,
        queries=20,
        views=1,
        size=16,
        batch_size=3,
        held_out=1,
    )
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["points"].shape == (3, 32, 3)
    assert batch["picture"].shape == (3, 4, 16, 16)
    assert sorted(set(batch["label"].tolist())) == [0, 1]
    near = batch["distances"][:, 10:].abs().mean()
    assert near < batch["distances"][:, :10].abs().mean()
    assert len(data.val_set) == 2
