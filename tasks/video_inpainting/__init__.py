"""Video inpainting: EraserDiT and GenCompositor on the shared core; objects out of clips, and clips into clips."""

from __future__ import annotations

from ...core.task import Option, System, TaskSpec

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
    Option("--composite", "path", None, "for GenCompositor: video of what is put in", metavar="FILE"),
    Option("--format", "str", "mp4", "of the result", choices=("mp4", "webm", "gif", "frames")),
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
    outputs=("{stem}_inpainted.*", "{stem}_inpainted"),
    subclass_mode=True,
)
