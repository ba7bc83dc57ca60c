"""Compression: pictures and video as small files, decoded to the same symbols on every machine.

How a system codes latents of its own into a ``.pdc`` file:

- `context.ContextModel` gives means and table indices of whole numbers, group by group, with convolutions over integers
  (`integer.IntegerConv`); `tables.ProbabilityTables` counts bits while training, `rounding.Rounding` is the quantiser
  of training. ``freeze()`` turns both into integers, and only those may decide what is decoded.
- `entropy.RangeModels`, `Encoding` and `Decoding` write and read: each is a quantiser that a context model is called
  with, and one instance may run through several models, one after the other. ``check`` is the CRC of the symbols.
- `weights.identity_of` names the weights in the file.
- `container.write_container` and `read_container` hold it together: a number for the codec in `container.CODECS`, which
  names a module of this package with ``encode_file`` and ``decode_file`` (see `systems`); ``flags``, ``quality`` and
  the section `container.PRIVATE` are the codec's own. `coding` and `picture_file` show all of it at work.
"""

from __future__ import annotations

from ...core.task import Command, Option, System, TaskSpec

__all__ = ["TASK"]

_HERE = "polydit.tasks.compression"

SOURCE = Option("source", "path", None, "the file to read", metavar="IN")
TARGET = Option("output", "path", None, "the file to write", metavar="OUT")
RATE_OPTIONS = (
    Option("--quality", "float", 5.0, "from 1 (smallest) to 9 (best), fractions allowed"),
    Option("--target-bpp", "float", None, "instead: the best quality within so many bits per pixel"),
    Option(
        "--target-size",
        "str",
        None,
        "instead: the best quality within this size, such as 40kB",
        metavar="SIZE",
    ),
    Option("--metadata", "bool", False, "keep EXIF and the colour profile"),
)
DECODING_OPTIONS = (
    Option(
        "--fidelity",
        "float",
        None,
        "from 0 (generative) to 1 (plain): which decoder, or how much of each; default: 1, with DiT-IC 0",
    ),
)
CODING_OPTIONS = (
    Option("--weights", "path", None, "folder of a saved pipeline; default: the small weights of the task"),
    Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
    Option(
        "--dtype", "str", "float32", "precision of what no bit depends on", choices=("float32", "bfloat16")
    ),
    Option("--overwrite", "bool", False, "replace the file if it is there already"),
)
BENCH_OPTIONS = (
    Option(
        "--input", "path", None, "folder of pictures (Kodak, DIV2K, CLIC, or any) or of videos", metavar="DIR"
    ),
    Option("--frames", "int", 50, "of each video, so many from its beginning", minimum=2),
    Option("--limit-side", "int", None, "reduce larger pictures to this longer side first", minimum=16),
    Option(
        "--qualities",
        "float",
        (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7.5, 9),
        "where the curve is measured",
        many=True,
    ),
    Option(
        "--peers", "str", ("WEBP", "AVIF"), "what to compare with beside JPEG", ("WEBP", "AVIF"), many=True
    ),
    Option(
        "--reuse",
        "path",
        None,
        "take codecs from the bench.json of a run on the same pictures",
        metavar="FILE",
    ),
    Option("--low", "float", 0.1, "BD-rates count JPEG's curve from so many bits per pixel"),
    Option("--high", "float", 1.0, "up to so many"),
    Option("--lpips-backbone", "path", None, "AlexNet's weights, for LPIPS", metavar="FILE"),
    Option("--lpips-heads", "path", None, "LPIPS' own weights", metavar="FILE"),
    Option("--output", "path", None, "folder for bench.json, points.md and plots", metavar="DIR"),
)

TASK = TaskSpec(
    name="compression",
    package="compression",
    summary="Pictures and video as small files.",
    systems=(
        System(
            name="small",
            title="PolyDiT small, a lapped transform with a learned context model",
            arxiv=None,
            config="small.yaml",
            note="CPU default; weights in the package",
            weights="demos/weights/compression",
        ),
        System(
            name="small-video",
            title="PolyDiT small for videos, motion compensation and a learned context model",
            arxiv=None,
            config="small_video.yaml",
            note="CPU default for videos",
            weights="demos/weights/compression_video",
            pipeline=f"{_HERE}.video.pipeline:VideoCompressionPipeline",
        ),
        System(
            name="GNVC-VD",
            title="Generative Neural Video Compression via Video Diffusion Prior",
            arxiv=None,
            config="gnvc_vd.yaml",
            note="on Wan 2.1, whose folder you have",
            pipeline=f"{_HERE}.video.gnvc.pipeline:GNVCPipeline",
        ),
        System(
            name="DiT-IC",
            title="DiT-IC: Aligned Diffusion Transformer for Efficient Image Compression",
            arxiv=None,
            config="dit_ic.yaml",
            note="on SANA, whose folder you have",
            pipeline=f"{_HERE}.dit_ic.pipeline:DiTICPipeline",
        ),
        System(
            name="enhancer",
            title="PolyDiT small, DiT-IC's step on pixels behind the small codec",
            arxiv=None,
            config="enhance_small.yaml",
            note="what `decode --fidelity` shows below 1",
        ),
    ),
    module="polydit.core.training:DiffusionModule",
    datamodule="lightning.pytorch:LightningDataModule",
    pipeline=f"{_HERE}.pipeline:CompressionPipeline",
    predict=f"{_HERE}.predict:predict_one",
    demo="polydit.demos.compression:build",
    default_weights="demos/weights/compression",
    default_config="small.yaml",
    predict_options=(*RATE_OPTIONS, *DECODING_OPTIONS),
    input_kinds=("image",),
    outputs=("{stem}.pdc",),
    commands=(
        Command(
            "encode",
            "a picture or video as a .pdc file",
            f"{_HERE}.command:encode",
            (
                SOURCE,
                TARGET,
                Option("--system", "str", None, "what codes; default: the small one for pictures or videos"),
                *RATE_OPTIONS,
                *CODING_OPTIONS,
            ),
        ),
        Command(
            "decode",
            "a .pdc file as a picture or video",
            f"{_HERE}.command:decode",
            (SOURCE, TARGET, *DECODING_OPTIONS, *CODING_OPTIONS),
        ),
        Command(
            "bench",
            "rate and distortion on a folder of pictures, against JPEG, WebP and AVIF",
            f"{_HERE}.bench:run",
            (*BENCH_OPTIONS, *CODING_OPTIONS),
        ),
    ),
    subclass_mode=True,
)
