"""Super-resolution: DiT4SR's condition stream and LDM-SR's channel concatenation on the shared core."""

from __future__ import annotations

from ...core.task import Option, System, TaskSpec

__all__ = ["TASK"]

TASK = TaskSpec(
    name="super-resolution",
    package="super_resolution",
    summary="Enlarge photographs x2, x3 or x4.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, a condition stream in pixel space",
            arxiv="",
            config="small.yaml",
            note="CPU default; weights in the package",
        ),
        System(
            name="DiT4SR",
            title="DiT4SR: Taming Diffusion Transformer for Real-World Image Super-Resolution",
            arxiv="2503.23580",
            config="dit4sr.yaml",
        ),
        System(
            name="LDM-SR",
            title="High-Resolution Image Synthesis with Latent Diffusion Models",
            arxiv="2112.10752",
            config="ldm_sr.yaml",
        ),
    ),
    module="polydit.tasks.super_resolution.model:SuperResolution",
    datamodule="polydit.tasks.super_resolution.data:SuperResolutionData",
    pipeline="polydit.tasks.super_resolution.pipeline:SuperResolutionPipeline",
    predict="polydit.tasks.super_resolution.predict:predict_one",
    demo="polydit.demos.super_resolution:build",
    default_weights="demos/weights/super_resolution",
    default_config="small.yaml",
    predict_options=(
        Option("--scale", "int", 4, "factor: 2, 3 or 4", choices=(2, 3, 4)),
        Option("--tile", "int", 512, "side of a tile in output pixels; 0 for no tiling", minimum=0),
        Option("--overlap", "int", 64, "output pixels that neighbouring tiles share", minimum=0),
        Option(
            "--color-fix",
            "str",
            "none",
            "take the colours from the enlarged input",
            choices=("none", "adain", "wavelet"),
        ),
    ),
    input_kinds=("image", "video"),
)
