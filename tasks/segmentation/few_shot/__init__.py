"""Few-shot segmentation in context (DiffewS): marked pictures say what to segment in other pictures.

What the command line needs to know of it is here; no torch is imported.
"""

from __future__ import annotations

from ....core.task import Command, Option

__all__ = ["EVALUATE", "SUPPORT_OPTIONS"]

SUPPORT_OPTIONS = (
    Option(
        "--support",
        "path",
        None,
        "few-shot: pictures that show what to find, or their folder",
        metavar="IMG",
        many=True,
    ),
    Option(
        "--support-mask",
        "path",
        None,
        "few-shot: for each support its mask, white on black, or their folder, paired by name; cut-outs need none",
        metavar="MASK",
        many=True,
    ),
    Option(
        "--support-classes",
        "path",
        None,
        "few-shot, several classes: a folder for each, with cut-outs or with NAME_mask.png beside NAME.png",
        metavar="FOLDER",
    ),
)

EVALUATE = Command(
    "evaluate-few-shot",
    "mIoU and FB-IoU on held-out classes, with and without supports",
    f"{__name__}.evaluate:run",
    (
        Option("--path", "path", "data/corpus", "the corpus, or the folder of a data set", metavar="FOLDER"),
        Option(
            "--layout",
            "str",
            "corpus",
            "what lies there",
            choices=("corpus", "drawn", "coco-20i", "pascal-5i", "fss-1000"),
        ),
        Option("--part", "str", "val", "whose classes", choices=("val", "test", "reserved")),
        Option("--fold", "int", 0, "of COCO-20i and PASCAL-5i", choices=(0, 1, 2, 3)),
        Option("--episodes", "int", 1000, "how many; FSS-1000 has as many as pictures", minimum=1),
        Option("--shots", "int", 1, "supports of each", minimum=1),
        Option("--weights", "path", None, "folder of a saved pipeline; default: the small few-shot weights"),
        Option("--lora", "path", None, "LoRA file to add to the weights", metavar="FILE"),
        Option("--lora-scale", "float", 1.0, "its strength; 0 is off"),
        Option("--seed", "int", 0, "of the episodes", minimum=0),
        Option("--device", "str", "auto", "auto, cpu, cuda, cuda:1 or mps", metavar="DEVICE"),
        Option("--dtype", "str", "float32", "precision", choices=("auto", "float32", "bfloat16", "float16")),
        Option("--output", "path", None, "JSON file for the figures", metavar="FILE"),
        Option("--overwrite", "bool", False, "replace the file if it is there already"),
    ),
)
