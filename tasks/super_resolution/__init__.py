"""Super-resolution: enlarge pictures and videos two, three or four times with a diffusion transformer."""

from __future__ import annotations

from ...core.task import Option, System, TaskSpec

__all__ = ["TASK"]

TASK = TaskSpec(
    name="super-resolution",
    package="super_resolution",
    summary="enlarge pictures and videos x2, x3 or x4, removing blur, noise and compression marks",
    systems=(
        System(
            name="DiT4SR",
            title="DiT4SR: Taming Diffusion Transformer for Real-World Image Super-Resolution",
            arxiv=None,
            config="dit4sr.yaml",
            note="the low-resolution picture as a third stream in joint attention",
        ),
        System(
            name="LDM-SR",
            title="High-Resolution Image Synthesis with Latent Diffusion Models",
            arxiv="2112.10752",
            config="ldm_sr.yaml",
            note="the low-resolution picture as further input channels",
        ),
    ),
    module="polydit.tasks.super_resolution.model:SuperResolution",
    datamodule="polydit.tasks.super_resolution.data:SuperResolutionData",
    pipeline="polydit.tasks.super_resolution.pipeline:SuperResolutionPipeline",
    predict="polydit.tasks.super_resolution.predict:predict_one",
    demo="polydit.demos.super_resolution:build",
    default_weights="demos/weights/super_resolution_x4",
    default_config="small.yaml",
    predict_options=(
        Option("--scale", "int", 4, "enlargement factor", choices=(2, 3, 4)),
        Option("--tile", "int", 512, "side of a tile in output pixels, 0 for no tiling", minimum=0),
        Option("--overlap", "int", 64, "output pixels that neighbouring tiles share", minimum=0),
        Option(
            "--color-fix",
            "str",
            "none",
            "take the colours from the input",
            choices=("none", "adain", "wavelet"),
        ),
    ),
    input_kinds=("image", "video"),
    outputs=("{stem}.*", "{stem}_x{scale}.*"),
)
