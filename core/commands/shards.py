"""``polydit shards build``: pack a folder of pictures for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import PolyditError
from .parser import Menu, Parser

__all__ = ["run_shards"]


def run_shards(words: Sequence[str]) -> int:
    """Run ``polydit shards <words>``."""
    menu = Menu(
        prog="polydit shards",
        summary="Pictures packed into few large files, to train from a slow disk or an object store.",
        sections=(
            (
                "commands",
                (("build", "pack a folder of pictures, or a corpus, with the captions beside them"),),
            ),
        ),
    )
    chosen = menu.choose(words)
    if chosen is None:
        print(menu.help())
        return 0
    parser = Parser("polydit shards build", "Pack the pictures of a folder or corpus, as the files they are.")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="PATH",
        help="a folder of pictures (searched recursively) or a corpus",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the shards")
    parser.add_argument("--split", choices=("train", "val"), help="only this part of a corpus or folder")
    parser.add_argument("--min-side", type=int, default=1, metavar="PX", help="leave out smaller pictures")
    parser.add_argument("--shard-mb", type=int, default=64, metavar="MB", help="size of a shard")
    parser.add_argument("--overwrite", action="store_true", help="replace shards that are there")
    options = parser.parse_args(chosen[1])
    if options.shard_mb < 1:
        raise PolyditError(f"--shard-mb {options.shard_mb}: must be 1 or more")
    from ..data.streaming import build_shards

    print(
        build_shards(
            options.input,
            options.output,
            split=options.split,
            min_side=options.min_side,
            shard_mb=options.shard_mb,
            overwrite=options.overwrite,
        )
    )
    return 0
