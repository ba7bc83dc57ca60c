"""3D shapes: DiT-3D makes point clouds of a category, Direct3D makes meshes of a category or from a picture."""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec

__all__ = ["TASK"]

_HERE = "polydit.tasks.shape_3d"

SAMPLING = (
    Option("--num", "int", 8, "shapes of the category", minimum=1),
    Option("--points", "int", 2048, "of each point cloud", minimum=16),
    Option("--guidance-scale", "float", None, "1 is none; default: what the weights were made for"),
)

RUN_OPTIONS = (
    Option("--category", "str", None, "make shapes of this category, with no input", metavar="NAME"),
    *SAMPLING,
    Option(
        "--resolution", "int", 96, "cells of the mesh along each axis, at most 512", minimum=16, maximum=512
    ),
    Option("--level", "float", None, "of the surface, in logits; lower is thicker; default: as the weights"),
    Option("--format", "str", "glb", "of the meshes", choices=("glb", "obj", "ply", "stl")),
    Option("--mesh", "bool", True, "also write meshes, not only points"),
    Option("--views", "int", 4, "pictures around each shape on its sheet", minimum=1),
)

EVALUATE_OPTIONS = (
    Option(
        "--categories", "str", None, "which; default: all that the weights know", metavar="NAME", many=True
    ),
    Option("--number", "int", 50, "held-out shapes of each category, and generated ones", minimum=2),
    Option("--points", "int", 2048, "of each cloud", minimum=16),
    Option(
        "--layout", "str", "procedural", "of the held-out shapes: procedural, corpus, meshes, shapenet, pc15k"
    ),
    Option("--path", "path", "data/corpus", "folder of the data", metavar="FOLDER"),
    Option("--split", "str", "val", "its split; reserved of a corpus", choices=("val", "test", "reserved")),
    Option(
        "--up",
        "str",
        "auto",
        "upward axis of its mesh files; auto: z of STL and 3MF",
        choices=("auto", "y", "z"),
    ),
    Option("--distance", "str", "cd", "cd, or emd (exact, slow: take few points)", choices=("cd", "emd")),
    Option("--cost", "str", None, "of emd; default: l2, the length", choices=("l2", "l2sq")),
    Option(
        "--per-batch",
        "int",
        None,
        "average over batches of so many, as the released DiT-3D does with 64",
        minimum=1,
    ),
    Option("--train", "int", 50, "training shapes to compare the training set itself with", minimum=2),
    Option("--pictures", "int", None, "also meshes from renderings of so many held-out shapes", minimum=1),
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--steps", "int", None, "denoising steps; default: what the weights were trained for", minimum=1),
    Option("--guidance-scale", "float", None, "1 is none; default: what the weights were made for"),
    Option("--seed", "int", 0, "of the noise", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
    Option("--overwrite", "bool", False, "replace the file if it is there already"),
)

TASK = TaskSpec(
    name="shape-3d",
    package="shape_3d",
    summary="Make 3D shapes of a category or from a picture: points, meshes, pictures around them.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, Direct3D's triplanes by category and from a picture",
            arxiv=None,
            config="small.yaml",
            note="CPU default; its autoencoder is small_vae.yaml",
            weights="demos/weights/shape_3d",
        ),
        System(
            name="DiT-3D",
            title="DiT-3D: Exploring Plain Diffusion Transformers for 3D Shape Generation",
            arxiv="2307.01831",
            config="dit_3d.yaml",
            note="point clouds by category; dit_3d_small.yaml for a CPU",
            pipeline=f"{_HERE}.cloud_pipeline:PointCloudPipeline",
        ),
        System(
            name="Direct3D",
            title="Direct3D: Scalable Image-to-3D Generation via 3D Latent Diffusion Transformer",
            arxiv="2405.14832",
            config="direct3d.yaml",
            note="a mesh from a picture; its autoencoder is direct3d_vae.yaml",
        ),
    ),
    module="polydit.core.training:DiffusionModule",
    datamodule="lightning.pytorch:LightningDataModule",
    pipeline=f"{_HERE}.triplane_pipeline:TriplanePipeline",
    predict=f"{_HERE}.predict:predict_one",
    demo="polydit.demos.shape_3d:build",
    default_weights="demos/weights/shape_3d",
    default_config="small.yaml",
    predict_options=RUN_OPTIONS,
    input_kinds=("image",),
    input_flag="--image",
    subject="--category",
    outputs={"category": ("{stem}_*.ply",), "image": ("{stem}.ply",)},
    commands=(
        Command(
            "evaluate",
            "1-NNA, coverage, MMD and JSD of generated shapes against held-out ones",
            f"{_HERE}.evaluate:run",
            EVALUATE_OPTIONS,
        ),
    ),
    subclass_mode=True,
)
