"""Virtual try-on: MC-VTON's garment and person token groups, and CatVTON's concatenation, on the shared core."""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec

__all__ = ["TASK"]

# A test compares these with the modules that use them, which need torch or NumPy.
CATEGORIES = ("upper", "lower", "overall")
LABELS = ("lip", "atr")

GUIDANCE = Option("--guidance-scale", "float", 1.0, "push away from the person without the garment; 1 is off")
RUN_OPTIONS = (
    Option("--garment", "path", None, "picture of the garment, laid flat", metavar="FILE"),
    Option(
        "--mask", "path", None, "what to dress anew, white; a picture of the person's size", metavar="FILE"
    ),
    Option("--parse", "path", None, "instead of a mask: map of labels to make one from", metavar="FILE"),
    Option("--labels", "str", "lip", "numbers of the map: of VITON-HD (lip) or DressCode (atr)", LABELS),
    Option("--category", "str", "upper", "garment that the map's mask is for", CATEGORIES),
    Option("--hull", "bool", False, "grow the mask to its convex hull and 4 percent of the height more"),
    GUIDANCE,
    Option("--repaint", "bool", True, "keep the person's own pixels outside the mask"),
    Option("--strip", "bool", False, "also write <stem>_<garment>_strip.png, all four pictures in a row"),
)

EVALUATE_OPTIONS = (
    Option("--data", "str", "drawn", "pairs to measure on", ("drawn", "viton-hd", "dresscode")),
    Option("--path", "path", None, "folder of the data set, for all but drawn pairs", metavar="FOLDER"),
    Option(
        "--corpus", "path", "data/corpus", "pictures of drawn pairs; none draws them, too", metavar="FOLDER"
    ),
    Option("--split", "str", "test", "of drawn pairs; test has the reserved pictures", ("test", "val")),
    Option("--count", "int", 256, "pairs at most", minimum=2),
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--system", "str", None, "whose weights, of those that came with the task"),
    Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
    Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
    Option("--steps", "int", None, "denoising steps; default: what the weights were trained for", minimum=1),
    Option("--against", "path", None, "weights to compare with, such as the teacher's", metavar="FOLDER"),
    Option("--against-steps", "int", None, "steps to compare with", minimum=1),
    GUIDANCE,
    Option("--lpips-network", "str", "alex", "network of LPIPS", ("alex", "vgg")),
    Option("--lpips-backbone", "path", None, "its weights, torchvision's file", metavar="FILE"),
    Option("--lpips-heads", "path", None, "its linear heads, of the lpips package", metavar="FILE"),
    Option("--inception", "path", None, "weights for FID and KID of unpaired dressing", metavar="FILE"),
    Option("--seed", "int", 0, "of drawn pairs and noise", minimum=0),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option("--dtype", "str", "float32", "precision", choices=("auto", "float32", "bfloat16", "float16")),
    Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
    Option("--sheet", "path", None, "PNG file for the first pairs side by side", metavar="FILE"),
    Option("--examples", "int", 6, "pairs on the sheet", minimum=1),
    Option("--overwrite", "bool", False, "replace files that are there already"),
)

DRAW_OPTIONS = (
    Option("--output", "path", None, "folder of the data set", metavar="FOLDER"),
    Option("--count", "int", 16, "people and garments", minimum=1),
    Option("--first", "int", 0, "number of the first one", minimum=0),
    Option("--height", "int", 384, "of the pictures, in pixels", minimum=32),
    Option("--width", "int", 288, "of the pictures, in pixels", minimum=32),
    Option(
        "--corpus", "path", "data/corpus", "fabrics, prints, backgrounds; none draws them", metavar="FOLDER"
    ),
    Option(
        "--split", "str", "train", "test has the reserved pictures of the corpus", ("train", "val", "test")
    ),
    Option("--seed", "int", 0, "of all draws", minimum=0),
    Option("--sheet", "path", None, "PNG file that shows the first eight", metavar="FILE"),
    Option("--overwrite", "bool", False, "replace files that are there already"),
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
            note="CPU default; weights in the package",
        ),
        System(
            name="MC-VTON",
            title="MC-VTON: Minimal Control Virtual Try-On Diffusion Transformer",
            arxiv="2501.03630",
            config="mc_vton_flux.yaml",
            note="on FLUX.1-dev, whose folder you have",
        ),
        System(
            name="MC-VTON on SD3",
            title="MC-VTON: Minimal Control Virtual Try-On Diffusion Transformer",
            arxiv="2501.03630",
            config="mc_vton_sd3.yaml",
            note="on Stable Diffusion 3.5, whose folder you have",
        ),
        System(
            name="CatVTON",
            title="CatVTON: Concatenation Is All You Need for Virtual Try-On with Diffusion Models",
            arxiv="2407.15886",
            config="catvton.yaml",
            note="its layout, on Stable Diffusion 3.5, whose folder you have",
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
    commands=(
        Command(
            "evaluate",
            "PSNR, SSIM, LPIPS, FID and KID on held-out pairs, beside pasting and the model without the garment",
            "polydit.tasks.virtual_try_on.evaluate:run",
            EVALUATE_OPTIONS,
        ),
        Command(
            "draw",
            "draw people and garments into a folder in VITON-HD's layout",
            "polydit.tasks.virtual_try_on.draw:run",
            DRAW_OPTIONS,
        ),
    ),
    input_flag="--person",
    table="--pairs",
    subclass_mode=True,
)
