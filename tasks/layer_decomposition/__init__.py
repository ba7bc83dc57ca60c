"""Layer decomposition: a photograph into background and object with its shadow, an illustration into its layers."""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec

__all__ = ["TASK"]

RUN_OPTIONS = (
    Option(
        "--mask",
        "path",
        None,
        "mask of the object, white on black: a file for one picture, or a folder with files of the pictures' names",
    ),
    Option(
        "--size",
        "int",
        None,
        "longer side, in pixels, at which the network sees a picture, or an object with its surroundings; default: as "
        "trained",
        minimum=32,
    ),
    Option(
        "--export",
        "str",
        "none",
        "also write the layers as one file",
        choices=("none", "zip", "ora", "psd"),
    ),
    Option("--prompt", "str", "", "for weights that read text: what the picture shows"),
    Option(
        "--layers", "int", None, "for weights that take any number of layers: how many; default: 4", minimum=1
    ),
)

EVALUATE_OPTIONS = (
    Option(
        "--input", "path", None, "a corpus made by `polydit corpus build`; or see --truth", metavar="FOLDER"
    ),
    Option(
        "--truth",
        "path",
        None,
        "a folder of true stacks: --input is one of predicted stacks, and LayerD's measures are taken",
        metavar="FOLDER",
    ),
    Option("--merges", "int", 5, "with --truth: adjacent layers that may be merged, at most", minimum=0),
    Option("--count", "int", 60, "composites to measure", minimum=1),
    Option("--side", "int", 128, "side of the composites, in pixels", minimum=32),
    Option("--effects", "str", "shadow", "what every object has", choices=("shadow", "reflection")),
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
    Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
    Option("--steps", "int", 1, "denoising steps", minimum=1),
    Option("--seed", "int", 0, "of the composites and the noise", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--dtype", "str", "float32", "precision", choices=("auto", "float32", "bfloat16", "float16")),
    Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
    Option("--sheet", "path", None, "PNG file that shows the first composites and their layers"),
    Option("--overwrite", "bool", False, "replace the files if they are there already"),
)

TASK = TaskSpec(
    name="layer-decomposition",
    package="layer_decomposition",
    summary="Take pictures apart into layers.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, LayerDecomp's groups of tokens in pixel space",
            arxiv=None,
            config="small.yaml",
            note="CPU default; weights in the package",
            weights="demos/weights/layer_decomposition",
        ),
        System(
            name="LayerDecomp",
            title="Generative Image Layer Decomposition with Visual Effects",
            arxiv="2411.17864",
            config="layerdecomp.yaml",
        ),
        System(
            name="LayerDiffuse",
            title="Transparent Image Layer Diffusion using Latent Transparency",
            arxiv="2402.17113",
            config="layerdiffuse.yaml",
            pipeline="polydit.tasks.layer_decomposition.transparency_pipeline:TransparencyPipeline",
        ),
        System(
            name="illustration",
            title="Workflow-Aware Structured Layer Decomposition for Illustration Production",
            arxiv="2603.14925",
            config="illustration.yaml",
            note="line art, flat colour, shadow, highlight; small weights in the package",
            weights="demos/weights/layer_decomposition_illustration",
            pipeline="polydit.tasks.layer_decomposition.illustration_pipeline:IllustrationLayersPipeline",
        ),
        System(
            name="Qwen-Image-Layered",
            title="Qwen-Image-Layered: Towards Inherent Editability via Layer Decomposition",
            arxiv="2512.15603",
            config="qwen_image_layered.yaml",
            note="any number of layers; the released model where you have it",
            pipeline="polydit.tasks.layer_decomposition.layer_stack_pipeline:LayerStackPipeline",
            opens=("QwenImageLayeredPipeline",),
        ),
        System(
            name="small stacks",
            title="PolyDiT small, positions of Qwen-Image-Layered in pixel space",
            arxiv=None,
            config="layer_stack_small.yaml",
            note="any number of layers; to be trained, no weights in the package",
            pipeline="polydit.tasks.layer_decomposition.pixel_stack_pipeline:PixelStackPipeline",
        ),
    ),
    module="polydit.core.training:DiffusionModule",
    datamodule="lightning.pytorch:LightningDataModule",
    pipeline="polydit.tasks.layer_decomposition.pipeline:LayerDecompositionPipeline",
    predict="polydit.tasks.layer_decomposition.predict:predict_one",
    demo="polydit.demos.layer_decomposition:build",
    default_weights="demos/weights/layer_decomposition",
    default_config="small.yaml",
    predict_options=RUN_OPTIONS,
    outputs=("{stem}_layers.json",),
    commands=(
        Command(
            "evaluate",
            "held-out composites beside biharmonic inpainting; or stacks of layers against true ones",
            "polydit.tasks.layer_decomposition.evaluate:run",
            EVALUATE_OPTIONS,
        ),
    ),
    subclass_mode=True,
)
