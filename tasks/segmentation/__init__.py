"""Segmentation: DiffDIS, PDFNet and few-shot DiffewS on the shared core; soft masks, cut-outs, edges."""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec
from .few_shot import EVALUATE as EVALUATE_FEW_SHOT
from .few_shot import SUPPORT_OPTIONS

__all__ = ["TASK"]

_HERE = "polydit.tasks.segmentation"

RUN_OPTIONS = (
    Option("--edges", "bool", False, "also write <stem>_edges.png, for weights that predict them"),
    Option(
        "--overlay", "bool", False, "also write <stem>_overlay.png, the picture with the object in colour"
    ),
    Option(
        "--threshold",
        "float",
        None,
        "of the hard mask, between 0 and 1; default: 0.5, or as the weights",
        minimum=0,
    ),
    Option(
        "--min-max", "bool", False, "stretch each soft mask to the full range, as published evaluations do"
    ),
    Option(
        "--detail",
        "str",
        None,
        "how large pictures get their detail: tiles with the whole as context (the default where the weights see "
        "tiles), guided filter, none",
        choices=("tiles", "guided", "none"),
    ),
    Option(
        "--detail-side",
        "int",
        None,
        "tiles are of the picture reduced to the area of a square of this side; default: 1024",
        minimum=64,
    ),
    Option(
        "--looks", "int", None, "looks at the whole: 1, or 6 and their mean; default: as the weights", (1, 6)
    ),
    Option("--box", "str", None, "only the object in this box of pixels", metavar="X0,Y0,X1,Y1"),
    *SUPPORT_OPTIONS,
    Option("--point", "str", None, "only the piece at, or nearest to, this pixel", metavar="X,Y"),
    Option(
        "--depth",
        "path",
        None,
        "for PDFNet: folder of depth maps, by name, or of a depth network",
        metavar="FOLDER",
    ),
    Option("--video", "str", "alpha", "of a video: the soft mask or the hard one", choices=("alpha", "mask")),
)

EVALUATE_OPTIONS = (
    Option("--input", "path", None, "folder of pictures", metavar="FOLDER"),
    Option("--masks", "path", None, "folder of their masks, paired by name", metavar="FOLDER"),
    Option("--composites", "int", None, "instead: so many composites of the corpus", minimum=1),
    Option("--corpus", "path", "data/corpus", "the corpus of --composites", metavar="FOLDER"),
    Option("--split", "str", "reserved", "its split", choices=("val", "reserved")),
    Option("--size", "int", 512, "side of the composites in pixels", minimum=64),
    Option("--small", "bool", False, "composites also with small objects, among the photograph's own"),
    Option("--peers", "bool", False, "compare with Otsu's threshold and with GrabCut-like colour models"),
    Option(
        "--binarize", "float", None, "threshold before all metrics, as DiffDIS' released scores; default none"
    ),
    Option("--hce", "bool", False, "also count the human correction efforts; takes seconds per picture"),
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
    Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
    Option("--seed", "int", 0, "of the composites and of the noise", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--dtype", "str", "float32", "precision", choices=("auto", "float32", "bfloat16", "float16")),
    *(
        option
        for option in RUN_OPTIONS
        if option.flag in ("--min-max", "--detail", "--detail-side", "--looks", "--depth")
    ),
    Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
    Option("--overwrite", "bool", False, "replace the file if it is there already"),
)

DEPTH_OPTIONS = (
    Option("--input", "path", None, "folder of pictures", metavar="FOLDER"),
    Option("--model", "path", None, "folder of the network: config.json and safetensors", metavar="FOLDER"),
    Option("--output", "path", None, "folder for the maps, such as depth_large", metavar="FOLDER"),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--overwrite", "bool", False, "replace maps that are there already"),
)

TASK = TaskSpec(
    name="segmentation",
    package="segmentation",
    summary="Cut the object out of a picture: soft mask, hard mask, cut-out.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, DiffDIS' one step for mask and edges, in pixel space",
            arxiv=None,
            config="small.yaml",
            note="CPU default; weights in the package",
            weights="demos/weights/segmentation",
        ),
        System(
            name="DiffDIS",
            title="High-Precision Dichotomous Image Segmentation via Probing Diffusion Capacity",
            arxiv=None,
            config="diffdis.yaml",
        ),
        System(
            name="PDFNet",
            title="Patch-Depth Fusion: Dichotomous Image Segmentation via Fine-Grained Patch Strategy and Depth "
            "Integrity-Prior",
            arxiv="2503.06100",
            config="pdfnet.yaml",
            pipeline=f"{_HERE}.pdfnet_pipeline:PDFNetPipeline",
        ),
        System(
            name="DiffewS",
            title="Unleashing the Potential of the Diffusion Model in Few-shot Semantic Segmentation",
            arxiv=None,
            config="diffews.yaml",
            note="segments what you marked in other pictures",
            pipeline=f"{_HERE}.few_shot.pipeline:FewShotPipeline",
        ),
        System(
            name="few-shot",
            title="PolyDiT small, DiffewS' supports on the native DiT in pixel space",
            arxiv=None,
            config="few_shot_small.yaml",
            note="finds what you marked in other pictures, with --support and --support-mask",
            weights="demos/weights/segmentation_few_shot",
            pipeline=f"{_HERE}.few_shot.pipeline:FewShotPipeline",
        ),
    ),
    module="polydit.core.training:DiffusionModule",
    datamodule="lightning.pytorch:LightningDataModule",
    pipeline=f"{_HERE}.pipeline:SegmentationPipeline",
    predict=f"{_HERE}.predict:predict_one",
    demo="polydit.demos.segmentation:build",
    default_weights="demos/weights/segmentation",
    default_config="small.yaml",
    predict_options=RUN_OPTIONS,
    input_kinds=("image", "video"),
    outputs={"image": ("{stem}_alpha.png",), "video": ("{stem}_{video}.mp4",)},
    commands=(
        Command(
            "depth",
            "depth maps of a folder of pictures, by a depth network in transformers' format",
            f"{_HERE}.depth:run",
            DEPTH_OPTIONS,
        ),
        Command(
            "evaluate",
            "F, E and S measures and MAE on pictures with masks, or on held-out composites",
            f"{_HERE}.evaluate:run",
            EVALUATE_OPTIONS,
        ),
        EVALUATE_FEW_SHOT,
    ),
    subclass_mode=True,
)
