"""Virtual try-on: MC-VTON's garment and person token groups, and CatVTON's concatenation, on the shared core."""

from __future__ import annotations

from ...core.task import Option, System, TaskSpec

__all__ = ["TASK"]

RUN_OPTIONS = (
    Option("--garment", "path", None, "picture of the garment, laid flat", metavar="FILE"),
    Option("--mask", "path", None, "region to generate anew, white; of the person's size", metavar="FILE"),
    Option("--guidance-scale", "float", 1.0, "push away from the person without the garment; 1 is off"),
    Option("--repaint", "bool", True, "keep the person's own pixels outside the mask"),
)

TASK = TaskSpec(
    name="virtual-try-on",
    package="virtual_try_on",
    summary="Put the garment of a product photograph on a person.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, MC-VTON's token groups in pixel space",
            arxiv=None,
            config="small.yaml",
            note="CPU default",
        ),
        System(
            name="MC-VTON",
            title="MC-VTON: Minimal Control Virtual Try-On Diffusion Transformer",
            arxiv="2501.03630",
            config="mc_vton.yaml",
            note="on FLUX.1-dev, whose folder you have",
        ),
        System(
            name="CatVTON",
            title="CatVTON: Concatenation Is All You Need for Virtual Try-On with Diffusion Models",
            arxiv="2407.15886",
            config="catvton.yaml",
        ),
    ),
    module="polydit.tasks.virtual_try_on.model:VirtualTryOn",
    datamodule="polydit.tasks.virtual_try_on.data:TryOnData",
    pipeline="polydit.tasks.virtual_try_on.pipeline:VirtualTryOnPipeline",
    predict="polydit.tasks.virtual_try_on.predict:predict_one",
    demo="polydit.demos.virtual_try_on:build",
    default_weights="demos/weights/virtual_try_on",
    default_config="small.yaml",
    predict_options=RUN_OPTIONS,
    outputs=("{stem}_{garment_stem}.png",),
    subclass_mode=True,
)
