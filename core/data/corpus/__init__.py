"""The open corpus: openly licensed training material gathered from Debian and npm packages.

``polydit corpus build --output DIR`` is served by `add_arguments` and `run`. Importing this package is light
(standard library only), so that the command's help is quick.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["KINDS", "add_arguments", "run"]

KINDS = ("photos", "cutouts", "meshes", "illustrations")
DEFAULT_KINDS = KINDS[:3]  # the fourth needs the renderer of an extra, and half an hour


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``polydit corpus build`` to `parser`."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the corpus")
    parser.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        type=Path,
        default=None,
        metavar="FOLDER_OR_FILE",
        help="use these .deb files, .tgz files of npm pack, or folders of them, and do not download anything",
    )
    parser.add_argument(
        "--packages",
        default=None,
        metavar="A,B",
        help="only these packages (default: every catalogued one that the kinds need)",
    )
    parser.add_argument(
        "--kinds",
        default=",".join(DEFAULT_KINDS),
        metavar="K,K",
        help="what to gather: photos, cutouts, meshes, illustrations (default: all but the last, which needs the "
        "extra polydit[vectors])",
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=2048,
        metavar="PX",
        help="longer photographs are reduced to this many pixels on the long side (reserved ones are kept as they are)",
    )


def run(args: argparse.Namespace) -> int:
    """Build or update a corpus.

    Args:
        args: what `add_arguments` parsed.

    Returns:
        0. User-caused failures raise `PolyditError`.
    """
    from ...errors import PolyditError
    from .build import build_corpus

    kinds = [k.strip() for k in args.kinds.split(",") if k.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise PolyditError(f"--kinds: unknown kind '{kind}'; choose from {', '.join(KINDS)}")
    if not kinds:
        raise PolyditError(f"--kinds: nothing was asked for; choose from {', '.join(KINDS)}")
    if args.max_side < 64:
        raise PolyditError(f"--max-side {args.max_side}: too small; give 64 or more pixels")
    packages = None if args.packages is None else [p.strip() for p in args.packages.split(",") if p.strip()]
    build_corpus(args.output, kinds=kinds, sources=args.sources, packages=packages, max_side=args.max_side)
    return 0
