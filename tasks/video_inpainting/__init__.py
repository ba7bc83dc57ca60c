"""Video inpainting: EraserDiT and GenCompositor on the shared core; objects out of clips, and clips into clips."""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec

__all__ = ["TASK"]

_HERE = "polydit.tasks.video_inpainting"

RUN_OPTIONS = (
    Option(
        "--mask",
        "path",
        None,
        "what is to be removed, white on black: picture for all frames, folder, video, or CSV of boxes (frame,x,y,w,h)",
    ),
    Option("--track", "str", None, "instead: a box that is followed", metavar="X,Y,W,H@FRAME"),
    Option("--dilate", "int", 4, "pixels by which masks grow", minimum=0),
    Option("--union", "int", 0, "join each mask with those of so many frames before and after", minimum=0),
    Option("--invert", "bool", False, "black is what is removed"),
    Option(
        "--windows",
        "str",
        "hand-over",
        "how long videos are cut: each part is given the last results, or rings and means at every step",
        choices=("hand-over", "circular", "averaged"),
    ),
    Option("--clip-frames", "int", None, "frames in memory for circular and averaged windows", minimum=1),
    Option("--feather", "int", 0, "pixels over which results fade in, inside of the masks", minimum=0),
    Option("--adain", "bool", False, "match colours of the result with those of the video"),
    Option(
        "--composite",
        "path",
        None,
        "for GenCompositor: video of what is put in; --mask is its",
        metavar="FILE",
    ),
    Option("--path", "str", None, "where its middle goes: points with frames", metavar="'X,Y@FRAME ...'"),
    Option("--size-pixels", "int", None, "rows that it takes; default: 0.4 of the video's", minimum=2),
    Option("--gamma", "float", 1.0, "of its luminance: below 1 is brighter", minimum=0.05),
    Option("--format", "str", "mp4", "of the result", choices=("mp4", "webm", "gif", "frames")),
)

EVALUATE_OPTIONS = (
    Option(
        "--input",
        "path",
        None,
        "root of a data set, such as DAVIS; default: synthetic clips",
        metavar="FOLDER",
    ),
    Option(
        "--layout",
        "str",
        "auto",
        "of the data set",
        choices=("auto", "davis", "youtube-vos", "propainter", "clips"),
    ),
    Option("--split", "str", "val", "of the data set", choices=("train", "val", "test")),
    Option("--corpus", "path", "data/corpus", "made by `polydit corpus build`", metavar="FOLDER"),
    Option("--validation", "bool", False, "synthetic clips of the validation split, not of the reserved one"),
    Option("--clips", "int", None, "how many; default 24 synthetic ones, or all of a data set", minimum=1),
    Option("--frames", "int", 24, "of a synthetic clip", minimum=2),
    Option("--size", "int", 128, "side of a synthetic clip in pixels", minimum=64),
    Option("--masks", "str", "both", "of synthetic clips", choices=("both", "objects", "shapes")),
    Option("--peers", "bool", False, "beside the fill alone, biharmonic, temporal median and optical flow"),
    Option("--baselines-only", "bool", False, "without weights of ours"),
    Option("--vfid-weights", "path", None, "I3D's weights, for VFID", metavar="FILE"),
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
    Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
    Option("--steps", "int", None, "denoising steps; default: what the weights were trained for", minimum=1),
    Option("--windows", "str", "hand-over", "see predict", choices=("hand-over", "circular", "averaged")),
    Option("--seed", "int", 0, "of the clips, masks and noise", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--dtype", "str", "float32", "precision", choices=("auto", "float32", "bfloat16", "float16")),
    Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
    Option("--sheet", "path", None, "PNG file that shows the first clips", metavar="FILE"),
    Option("--overwrite", "bool", False, "replace the files if they are there already"),
)

TASK = TaskSpec(
    name="video-inpainting",
    package="video_inpainting",
    summary="Remove things from videos, or put others in.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, EraserDiT's channels in pixel space over a fill from other frames",
            arxiv=None,
            config="small.yaml",
            note="CPU default; weights in the package",
            weights="demos/weights/video_inpainting",
        ),
        System(
            name="EraserDiT",
            title="EraserDiT: Fast Video Inpainting with Diffusion Transformer Model",
            arxiv="2506.12853",
            config="eraserdit.yaml",
            note="on LTX-Video checkpoints in diffusers format",
        ),
        System(
            name="compositing",
            title="PolyDiT small, GenCompositor's streams and branch in pixel space",
            arxiv=None,
            config="compositing_small.yaml",
            note="with --composite",
            weights="demos/weights/video_inpainting_compositing",
            pipeline=f"{_HERE}.compositing_pipeline:VideoCompositingPipeline",
        ),
        System(
            name="GenCompositor",
            title="GenCompositor: Generative Video Compositing with Diffusion Transformer",
            arxiv="2509.02460",
            config="gencompositor.yaml",
            note="on CogVideoX checkpoints in diffusers format",
            pipeline=f"{_HERE}.compositing_pipeline:VideoCompositingPipeline",
        ),
    ),
    module="polydit.core.training:DiffusionModule",
    datamodule="lightning.pytorch:LightningDataModule",
    pipeline=f"{_HERE}.pipeline:VideoInpaintingPipeline",
    predict=f"{_HERE}.predict:predict_one",
    demo="polydit.demos.video_inpainting:build",
    default_weights="demos/weights/video_inpainting",
    default_config="small.yaml",
    predict_options=RUN_OPTIONS,
    input_kinds=("video", "frames"),
    outputs=("{stem}_inpainted.*", "{stem}_inpainted", "{stem}_composite.*", "{stem}_composite"),
    commands=(
        Command(
            "evaluate",
            "PSNR, SSIM, E_warp and VFID on held-out synthetic clips or a data set, beside classical methods",
            f"{_HERE}.evaluate:run",
            EVALUATE_OPTIONS,
        ),
    ),
    subclass_mode=True,
)
