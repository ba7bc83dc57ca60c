"""``predict`` and ``evaluate`` on tiny weights: files that are there, and one line for what goes wrong."""

from __future__ import annotations

import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.geometry.primitives import Placed, Union, box
from polydit.core.geometry.reading import read_mesh
from polydit.core.geometry.solids import solid_of_points
from polydit.core.geometry.writing import mesh_bytes
from polydit.tasks.shape_3d.evaluate import held_out_clouds
from polydit.tasks.shape_3d.predict import cloud_mesh

from .conftest import CLOUD

trimesh = pytest.importorskip("trimesh")


@pytest.fixture
def cloud_weights(cloud_pipe, tmp_path):
    cloud_pipe.save_pretrained(tmp_path / "clouds")
    return tmp_path / "clouds"


@pytest.fixture
def triplane_weights(triplane_pipe, tmp_path):
    """The head's last bias makes all of the box solid, so that there is a surface."""
    with torch.no_grad():
        triplane_pipe.vae.head.net[-1].bias.fill_(50.0)
    triplane_pipe.save_pretrained(tmp_path / "planes")
    return tmp_path / "planes"


def test_clouds_of_a_category(cloud_weights, tmp_path, capsys):
    output = tmp_path / "out"
    words = [
        "shape-3d",
        "predict",
        "--category",
        "chair",
        "--num",
        "2",
        "--points",
        "80",
        "--output",
        str(output),
    ]
    words += ["--weights", str(cloud_weights), "--resolution", "24", "--views", "2"]
    assert main(words) == 0, capsys.readouterr().err
    names = {
        "chair_00.ply",
        "chair_00.glb",
        "chair_01.ply",
        "chair_01.glb",
        "chair_sheet.png",
        "results.json",
    }
    assert {file.name for file in output.iterdir()} == names
    assert len(trimesh.load(output / "chair_00.ply").vertices) == 80
    assert read_mesh(output / "chair_01.glb").mesh.is_watertight
    assert Image.open(output / "chair_sheet.png").size == (2 * 192, 2 * 192)
    record = json.loads((output / "results.json").read_text())["inputs"][0]
    assert record["status"] == "done"
    assert [shape["points"] for shape in record["shapes"]] == [80, 80]
    assert record["shapes"][0]["watertight"]
    assert record["resolution"] == 24
    assert "--resolution" not in capsys.readouterr().err
    assert main(words) == 0
    assert "1 kept as they were" in capsys.readouterr().err


def test_points_alone(cloud_weights, tmp_path):
    output = tmp_path / "out"
    words = ["shape-3d", "predict", "--category", "table", "--num", "1", "--no-mesh", "--output", str(output)]
    assert main([*words, "--weights", str(cloud_weights), "--views", "1"]) == 0
    assert {file.name for file in output.iterdir()} == {"table_00.ply", "table_sheet.png", "results.json"}


def test_finer_surfaces_than_points_allow_are_told_and_recorded(cloud_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("polydit.tasks.shape_3d.predict.MAX_CLOUD_RESOLUTION", 20)
    words = ["shape-3d", "predict", "--category", "chair", "--num", "2", "--weights", str(cloud_weights)]
    words += ["--resolution", "24", "--views", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--resolution")]
    assert told == [
        "--resolution 24: a surface around points has at most 20 cells along each axis, which are finer than points "
        "are apart; 20 are taken"
    ]
    record = json.loads((tmp_path / "out" / "results.json").read_text())["inputs"][0]
    assert record["resolution"] == 20
    assert main([*words, "--no-mesh", "--output", str(tmp_path / "points")]) == 0
    assert "--resolution" not in capsys.readouterr().err
    record = json.loads((tmp_path / "points" / "results.json").read_text())["inputs"][0]
    assert "resolution" not in record


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--category", "boat"], r"--category boat: .* they know chair, table"),
        (["--category", "chair", "--image", "x.png"], r"makes it from nothing; leave out --image"),
        (["--category", "../chair"], r"give a name"),
        ([], r"--image or --category: required"),
        (["--category", "chair", "--resolution", "700"], r"--resolution: 700 is greater than 512"),
        (["--category", "chair", "--level", "1"], r"--level: is for weights that know a solid"),
        (
            ["--image", "PHOTO"],
            r"make shapes of a category, not from pictures; give --category \(chair, table\)",
        ),
    ],
)
def test_wrong_words_are_one_line(words, line, cloud_weights, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(photo)
    words = [str(photo) if word == "PHOTO" else word for word in words]
    code = main(
        ["shape-3d", "predict", *words, "--output", str(tmp_path / "out"), "--weights", str(cloud_weights)]
    )
    complaint = capsys.readouterr().err.strip()
    assert code == 2
    assert "\n" not in complaint
    assert re.search(line, complaint), complaint


def test_a_mesh_from_a_picture(triplane_weights, tmp_path, capsys):
    photo = tmp_path / "stool.png"
    pixels = np.full((60, 60, 3), 255, np.uint8)
    pixels[20:50, 15:45] = (120, 80, 40)
    Image.fromarray(pixels).save(photo)
    words = [
        "shape-3d",
        "predict",
        "--image",
        str(photo),
        "--output",
        str(tmp_path / "out"),
        "--resolution",
        "24",
    ]
    assert main([*words, "--weights", str(triplane_weights), "--format", "stl"]) == 0, capsys.readouterr().err
    found = {file.name for file in (tmp_path / "out").iterdir()}
    assert found == {"stool.ply", "stool.stl", "stool_sheet.png", "results.json"}
    assert read_mesh(tmp_path / "out" / "stool.stl").mesh.is_watertight
    blank = tmp_path / "blank.png"
    Image.new("RGB", (30, 30), "white").save(blank)
    assert (
        main(["shape-3d", "predict", "--image", str(blank), *words[4:], "--weights", str(triplane_weights)])
        == 2
    )
    assert "blank.png: shows no object" in capsys.readouterr().err


def test_figures_of_tiny_weights(cloud_weights, tmp_path, capsys):
    file = tmp_path / "figures.json"
    words = [
        "shape-3d",
        "evaluate",
        "--weights",
        str(cloud_weights),
        "--categories",
        "chair",
        "--number",
        "3",
    ]
    assert main([*words, "--points", "64", "--train", "3", "--output", str(file)]) == 0, (
        capsys.readouterr().err
    )
    chair = json.loads(file.read_text())["categories"]["chair"]
    assert chair["held_out"] == 3
    assert 0 <= chair["accuracy"] <= 1
    assert chair["mmd_of_training"] < chair["mmd"]  # tiny random weights make nothing like a chair
    emd = tmp_path / "emd.json"
    more = ["--points", "64", "--train", "3", "--distance", "emd"]
    figures = {}
    for cost in ("l2", "l2sq"):
        assert main([*words, *more, "--cost", cost, "--output", str(emd), "--overwrite"]) == 0
        figures[cost] = json.loads(emd.read_text())["categories"]["chair"]
    for name in ("mmd", "mmd_of_training"):
        assert 0 < figures["l2sq"][name] < figures["l2"][name] < 1  # lengths below 1 shrink when squared
    assert main([*words, *more, "--output", str(emd), "--overwrite"]) == 0
    assert json.loads(emd.read_text())["categories"]["chair"] == figures["l2"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--per-batch", "0"], r"--per-batch: 0 is less than 1"),
        (
            ["--categories", "chiar"],
            r"--categories chiar: .* \(did you mean chair\?\); they know chair, table, sofa",
        ),
        (
            ["--categories", "sofa"],
            r"--categories sofa: there are no procedural shapes of it, but of chair, table, lamp, plane; give another",
        ),
        (["--layout", "cubes"], r"^polydit: error: --layout cubes: is unknown"),
        (["--layout", "meshes", "--path", "GONE"], r"^polydit: error: --path \S*gone: no such folder"),
        (["--layout", "pc15k", "--path", "GONE"], r"^polydit: error: --path \S*gone: no such folder"),
        (
            ["--layout", "meshes", "--path", "EMPTY"],
            r"--path \S*empty: the layout meshes holds no val shapes of chair",
        ),
        (
            ["--layout", "meshes", "--path", "EMPTY", "--split", "reserved"],
            r"^polydit: error: --path \S*empty: nothing of",
        ),
        (["--layout", "pc15k", "--path", "EMPTY"], r"--path \S*empty: 0 val shapes of chair"),
        (["--layout", "pc15k", "--path", "EMPTY", "--pictures", "2"], r"--pictures: needs solids"),
        (["--up", "z"], r"^polydit: error: --up z: is for mesh files, and the layout procedural has none"),
        (["--up", "x"], r"--up: x is not one of auto, y, z"),
        (["--cost", "l2sq"], r"--cost l2sq: is of the earth mover's distance; add --distance emd"),
        (["--pictures", "1"], r"--pictures: these weights make shapes of a category only"),
    ],
)
def test_figures_that_cannot_be_had_are_one_line(words, line, cloud_pipe, tmp_path, capsys):
    three = {**cloud_pipe.config.formulation, "categories": ["chair", "table", "sofa"]}
    cloud_pipe.register_to_config(formulation=three)
    cloud_pipe.save_pretrained(tmp_path / "clouds")
    (tmp_path / "empty" / "chair").mkdir(parents=True)
    places = {"GONE": str(tmp_path / "gone"), "EMPTY": str(tmp_path / "empty")}
    words = [places.get(word, word) for word in words]
    if "--categories" not in words:
        words += ["--categories", "chair"]
    code = main(["shape-3d", "evaluate", *words, "--number", "2", "--weights", str(tmp_path / "clouds")])
    complaint = capsys.readouterr().err.strip()
    assert code == 2
    assert "\n" not in complaint
    assert re.search(line, complaint), complaint


def test_figures_of_meshes_from_pictures(triplane_weights, tmp_path):
    file = tmp_path / "figures.json"
    words = [
        "shape-3d",
        "evaluate",
        "--weights",
        str(triplane_weights),
        "--categories",
        "chair",
        "--number",
        "2",
    ]
    words += ["--points", "32", "--train", "2", "--steps", "1", "--pictures", "1"]
    assert main([*words, "--output", str(file)]) == 0
    figures = json.loads(file.read_text())["pictures"]
    assert figures["shapes"] == 1
    # Of a network that says "inside" everywhere: a cube, beside a training chair.
    assert 0 < figures["iou"] < figures["random_iou"]
    assert 0.5 < figures["normal_consistency"] < 1  # 0.5 is of normals that know nothing of each other
    assert 0.5 < figures["random_normal_consistency"] < 1


def test_held_out_meshes_are_turned_as_asked(tmp_path, capsys):
    flat = Union([Placed(box(1.9, 0.6, 1.2), np.zeros(3))]).mesh(16)
    (tmp_path / "val" / "chair").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "val" / "chair" / f"{number}.obj").write_bytes(mesh_bytes(flat, "obj"))
    words = {"layout": "meshes", "path": tmp_path, "split": "val", "number": 2, "points": 500}
    for up, high in (("auto", 0.3), ("z", 0.6)):
        clouds = held_out_clouds("chair", Namespace(**words, up=up))
        assert [abs(cloud).max(0)[1] for cloud in clouds] == pytest.approx([high, high], abs=0.04)
    assert capsys.readouterr().err.count("turned: z was up, y is now") == 2


def test_difffit_by_the_command_ends_in_a_pipeline(cloud_weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # runs go to where the command is
    backbone = {**CLOUD, "norm": "layer"}
    config = {
        "model": {
            "class_path": "polydit.tasks.shape_3d.cloud_model.PointClouds",
            "init_args": {
                "backbone": {"class_path": "polydit.core.backbones.dit_3d.DiT3D", "init_args": backbone},
                "formulation": {
                    "categories": ["chair", "table"], "points": 64, "mean": [-0.005, 0.185, -0.041], "std": 0.441
                },
                "init_weights": str(cloud_weights / "transformer"),
                "tune": "difffit",
            },
        },
        "data": {
            "class_path": "polydit.tasks.shape_3d.cloud_data.CloudData",
            "init_args": {
                "layout": "procedural", "categories": ["chair", "table"], "procedural": 8, "points": 64, "batch_size": 4
            },
        },
        "trainer": {"max_steps": 2, "accelerator": "cpu"},
    }  # fmt: skip
    file = tmp_path / "difffit.yaml"
    file.write_text(json.dumps(config))  # which is YAML
    assert main(["shape-3d", "fit", "--config", str(file), "--name", "run"]) == 0, capsys.readouterr().err
    (folder,) = tmp_path.rglob("run/pipeline")
    words = [
        "shape-3d",
        "predict",
        "--weights",
        str(folder),
        "--category",
        "table",
        "--no-mesh",
        "--num",
        "1",
    ]
    assert main([*words, "--steps", "2", "--output", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "table_00.ply").is_file()


def test_a_closed_surface_around_a_cloud(monkeypatch):
    places = np.random.default_rng(0).normal(size=(1500, 3))
    cloud = places / np.linalg.norm(places, axis=1, keepdims=True) * [0.5, 0.5, 0.5] + [3, 0, 0]
    mesh = cloud_mesh(cloud, 48)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.15)
    np.testing.assert_allclose(mesh.bounds.mean(0), [3, 0, 0], atol=0.03)
    monkeypatch.setattr("polydit.tasks.shape_3d.predict.MAX_CLOUD_RESOLUTION", 48)
    assert len(cloud_mesh(cloud, 512).faces) == len(mesh.faces)  # a grid of 512 would take 11 GB
    sheet = np.concatenate([np.random.default_rng(1).uniform(-0.9, 0.9, (1500, 2)), np.zeros((1500, 1))], 1)
    assert solid_of_points(sheet, 48).mesh().is_watertight
