"""Super-resolution: DiT4SR's condition stream and LDM-SR's channel concatenation on the shared core."""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec

__all__ = ["TASK"]

# A test compares this list with polydit.core.data.degradation.PRESETS, which needs torch.
DEGRADATIONS = ("bicubic", "mild", "real_esrgan", "real_esrgan_mild", "bsrgan_light")

RUN_OPTIONS = (
    Option("--scale", "int", 4, "factor: 2, 3 or 4", choices=(2, 3, 4)),
    Option("--tile", "int", 1024, "side of a tile in output pixels; 0 for no tiling", minimum=0),
    Option("--overlap", "int", 64, "output pixels that neighbouring tiles share", minimum=0),
    Option(
        "--color-fix",
        "str",
        "none",
        "take the colours from the enlarged input",
        choices=("none", "adain", "wavelet"),
    ),
    Option(
        "--guidance-scale", "float", 1.0, "for weights that read text: push from the negative one; 1 is off"
    ),
)

EVALUATE_OPTIONS = (
    Option("--input", "path", None, "folder of high-resolution pictures", metavar="FOLDER"),
    Option(
        "--low", "path", None, "folder of their low-resolution partners, paired by name", metavar="FOLDER"
    ),
    Option("--degradation", "str", "bicubic", "what reduces the pictures", choices=DEGRADATIONS),
    Option("--limit-side", "int", None, "cut larger pictures to their middle of this side", minimum=32),
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
    Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
    Option("--steps", "int", 1, "denoising steps", minimum=1),
    Option("--seed", "int", 0, "start of degradation and noise", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--dtype", "str", "float32", "precision", choices=("auto", "float32", "bfloat16", "float16")),
    *RUN_OPTIONS,
    Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
    Option("--overwrite", "bool", False, "replace the file if it is there already"),
)

TASK = TaskSpec(
    name="super-resolution",
    package="super_resolution",
    summary="Enlarge photographs x2, x3 or x4.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, a condition stream in pixel space",
            arxiv=None,
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
            name="DiT4SR on SD3",
            title="DiT4SR: Taming Diffusion Transformer for Real-World Image Super-Resolution",
            arxiv="2503.23580",
            config="dit4sr_sd3.yaml",
            note="on Stable Diffusion 3.5, whose folder you have",
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
    predict_options=RUN_OPTIONS,
    input_kinds=("image", "video"),
    outputs={"image": ("{stem}.png",), "video": ("{stem}.mp4",)},
    commands=(
        Command(
            "evaluate",
            "PSNR and SSIM against bicubic enlargement on a folder of pictures",
            "polydit.tasks.super_resolution.evaluate:run",
            EVALUATE_OPTIONS,
        ),
    ),
)
