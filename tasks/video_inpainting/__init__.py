"""Video inpainting: EraserDiT and GenCompositor on the shared core; objects out of clips, and clips into clips."""

from __future__ import annotations

from ...core.task import Option, System, TaskSpec

__all__ = ["TASK"]

_HERE = "polydit.tasks.video_inpainting"

RUN_OPTIONS = (
    Option("--mask", "path", None, "what is to be removed, white on black: picture, folder, video, or CSV of boxes"),
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
    input_kinds=("video",),
    outputs=("{stem}_inpainted.*",),
    subclass_mode=True,
)
