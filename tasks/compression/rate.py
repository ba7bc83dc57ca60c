"""The best quality whose file is not larger than wanted."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from ...core.errors import PolyditError

__all__ = ["best_within", "check_rate", "parse_size"]

UNITS = {"": 1, "B": 1, "K": 1000, "KB": 1000, "KIB": 1024, "M": 10**6, "MB": 10**6, "MIB": 2**20}


def check_rate(options: Namespace) -> None:
    """Refuse a quality or a target that makes no sense.

    Raises:
        PolyditError: with what is possible.
    """
    if not 1 <= options.quality <= 9:
        raise PolyditError(f"--quality {options.quality:g}: goes from 1 (smallest) to 9 (best)")
    if options.target_bpp is not None and options.target_size is not None:
        raise PolyditError("--target-bpp, --target-size: give one of the two")
    if options.target_bpp is not None and not options.target_bpp > 0:
        raise PolyditError(f"--target-bpp {options.target_bpp:g}: must be above 0, such as 0.25")
    if options.target_size is not None:
        parse_size(options.target_size)


def best_within(encode: Callable[[int], bytes], limit: float, last: int, what: str) -> tuple[int, bytes]:
    """Search for the highest quality by coding at several.

    Args:
        encode: quality index to the bytes of the file; they grow with it.
        limit: bytes.
        last: highest index.
        what: the option, for complaints.

    Returns:
        The index and its file.

    Raises:
        PolyditError: even the lowest quality is larger.
    """
    low, best = 0, encode(0)
    if len(best) > limit:
        raise PolyditError(
            f"{what}: the smallest file of this picture has {len(best):,} bytes; allow that or reduce the picture"
        )
    high = last + 1  # not known to fit
    while high - low > 1:
        middle = (low + high) // 2
        file = encode(middle)
        if len(file) <= limit:
            low, best = middle, file
        else:
            high = middle
    return low, best


def parse_size(text: str) -> int:
    """Bytes of ``"40000"``, ``"40kB"`` or ``"40KiB"``.

    Raises:
        PolyditError: it is none of these.
    """
    number = text.strip().upper().rstrip("KMIB")
    unit = text.strip().upper()[len(number) :]
    try:
        size = float(number) * UNITS[unit]
        if not 0 < size < 2**40:
            raise ValueError(size)
        return int(size)
    except (KeyError, ValueError, OverflowError) as error:
        raise PolyditError(f"--target-size {text}: give bytes, such as 40000, 40kB or 0.5MB") from error
