"""``predict`` and ``evaluate`` on tiny weights: files that are there, and one line for what goes wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.geometry.reading import read_mesh
from polydit.core.geometry.solids import solid_of_points
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
    capsys.readouterr()
    assert main(words) == 0
    assert "1 kept as they were" in capsys.readouterr().err


def test_points_alone(cloud_weights, tmp_path):
    output = tmp_path / "out"
    words = ["shape-3d", "predict", "--category", "table", "--num", "1", "--no-mesh", "--output", str(output)]
    assert main([*words, "--weights", str(cloud_weights), "--views", "1"]) == 0
    assert {file.name for file in output.iterdir()} == {"table_00.ply", "table_sheet.png", "results.json"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--category", "boat"], r"--category boat: .* they know chair, table"),
        (["--category", "chair", "--image", "x.png"], r"makes it from nothing; leave out --image"),
        (["--category", "../chair"], r"give a name"),
        ([], r"--image or --category: required"),
        (["--category", "chair", "--resolution", "700"], r"--resolution 700: at most 512"),
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
    assert main([*words, "--pictures", "1"]) == 2
    assert "--pictures: these weights make shapes of a category only" in capsys.readouterr().err


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
