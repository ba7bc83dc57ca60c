"""Try-on data sets on the disk: VITON-HD and DressCode, paired and unpaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PolyditError
from .masks import from_parse, read_labels, read_mask

__all__ = ["DRESSCODE_CATEGORIES", "TryOnPair", "dresscode", "mask_of", "usable", "viton_hd"]

Split = Literal["train", "test"]
DRESSCODE_CATEGORIES = {"upper_body": "upper", "lower_body": "lower", "dresses": "overall"}
"""Folders of DressCode, and the category of masks that they need."""


@dataclass(frozen=True)
class TryOnPair:
    """A person and a garment to put on.

    Attributes:
        person: the photograph.
        garment: of the garment laid flat.
        worn: whether the person wears this garment, so that the photograph is the answer.
        mask: agnostic mask, where the data set has one.
        parse: map of labels from which one can be made.
        scheme: of these labels, see `masks.SCHEMES`.
        garment_mask: of the garment laid flat, where there is one.
        category: one of `masks.CATEGORIES`.
    """

    person: Path
    garment: Path
    worn: bool
    mask: Path | None
    parse: Path | None
    scheme: str
    garment_mask: Path | None = None
    category: str = "upper"

    def missing(self) -> Path | None:
        """The first file without which the pair cannot be used and that is not there."""
        for path in (self.person, self.garment):
            if not path.is_file():
                return path
        if self.mask is None and self.parse is None:
            return self.person  # nothing says what to generate
        return None


def viton_hd(root: str | Path, split: Split = "train", paired: bool = True) -> list[TryOnPair]:
    """Pairs of VITON-HD: ``train`` and ``test`` with ``image``, ``cloth``, ``cloth-mask``, ``agnostic-mask``.

    The lists are ``{train,test}_pairs.txt`` beside these folders, of lines ``person.jpg garment.jpg``;
    ``test_pairs_unpaired.txt`` is taken where it exists. Paired, the garment is the file of the person's own name and
    the second column does not count.

    Args:
        root: folder of the data set.
        split: ``train`` or ``test``.
        paired: False gives persons the garments of the second column.

    Raises:
        PolyditError: no such data set, no list, or a line of it is damaged.
    """
    root = _folder(root, "VITON-HD", (split,))
    names = [f"{split}_pairs_unpaired.txt", f"{split}_pairs.txt"]
    lines = _lines(root, names[::-1] if paired else names)
    base = root / split
    parses = [base / name for name in ("image-parse-v3", "image-parse") if (base / name).is_dir()]
    pairs = []
    for person, other in lines:
        stem = Path(person).stem
        garment = person if paired else other
        pairs.append(
            TryOnPair(
                base / "image" / person,
                base / "cloth" / garment,
                worn=paired,
                mask=_first(
                    base / "agnostic-mask" / f"{stem}_mask.png", base / "agnostic-mask" / f"{stem}.png"
                ),
                parse=_first(*(folder / f"{stem}.png" for folder in parses)),
                scheme="lip",
                garment_mask=_first(base / "cloth-mask" / garment),
            )
        )
    return pairs


def dresscode(
    root: str | Path,
    split: Split = "train",
    paired: bool = True,
    categories: Sequence[str] = tuple(DRESSCODE_CATEGORIES),
) -> list[TryOnPair]:
    """Pairs of DressCode: ``upper_body``, ``lower_body`` and ``dresses``, each with ``images`` and ``label_maps``.

    The lists are ``train_pairs.txt``, ``test_pairs_paired.txt`` and ``test_pairs_unpaired.txt`` in each of them, of
    lines ``013563_0.jpg 013563_1.jpg`` (further columns do not count).

    Args:
        root: folder of the data set.
        split: ``train`` or ``test``.
        paired: False takes the unpaired list of the test set.
        categories: which folders.

    Raises:
        PolyditError: no such data set, unknown category, no list, or a line of it is damaged.
    """
    unknown = sorted(set(categories) - set(DRESSCODE_CATEGORIES))
    if unknown or not categories:
        raise PolyditError(
            f"--data.categories: {unknown[0] if unknown else 'none'!r} is unknown; choose from "
            f"{', '.join(DRESSCODE_CATEGORIES)}"
        )
    root = _folder(root, "DressCode", tuple(categories))
    if split == "train" and not paired:
        raise PolyditError(f"{root}: DressCode's training set has no unpaired list; take split test")
    name = "train_pairs.txt" if split == "train" else f"test_pairs_{'paired' if paired else 'unpaired'}.txt"
    pairs = []
    for folder in categories:
        base = root / folder
        for person, garment in _lines(base, [name]):
            stem = Path(person).stem
            number = stem.rpartition("_")[0]
            pairs.append(
                TryOnPair(
                    base / "images" / person,
                    base / "images" / garment,
                    worn=paired,
                    mask=_first(base / "agnostic_masks" / f"{stem}.png"),
                    parse=_first(base / "label_maps" / f"{number}_4.png"),
                    scheme="atr",
                    category=DRESSCODE_CATEGORIES[folder],
                )
            )
    return pairs


def usable(
    pairs: Sequence[TryOnPair], where: Path, strict: bool = False
) -> tuple[list[TryOnPair], list[str]]:
    """Pairs whose files are there, and a line for each of the others.

    Args:
        pairs: as a list of the data set gives them.
        where: the data set, for the message.
        strict: refuse the first pair that lacks something.

    Raises:
        PolyditError: no pair is complete, or one is not and `strict`.
    """
    good, lines = [], []
    for pair in pairs:
        gap = pair.missing()
        if gap is None:
            good.append(pair)
            continue
        line = (
            f"{gap}: has neither an agnostic mask nor a parse map; make masks first, or leave it out"
            if gap.is_file()
            else f"{gap}: is in the list but not on the disk; download it again, or leave its line out"
        )
        if strict:
            raise PolyditError(line)
        lines.append(line)
    if not good:
        raise PolyditError(
            f"{where}: none of {len(pairs)} pairs is complete; {lines[0]}"
            if lines
            else f"{where}: has no pairs"
        )
    return good, lines


def mask_of(pair: TryOnPair) -> NDArray[np.bool_]:
    """The agnostic mask of a pair, read or made from its parse map.

    Raises:
        PolyditError: it cannot be read or made.
    """
    if pair.mask is not None:
        return read_mask(pair.mask)
    assert pair.parse is not None  # as `usable` made sure
    try:
        return from_parse(read_labels(pair.parse), pair.scheme, pair.category)
    except PolyditError as error:
        raise PolyditError(f"{pair.parse}: {error}") from error


def _folder(root: str | Path, name: str, parts: tuple[str, ...]) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise PolyditError(f"{root}: no such folder; give the one of {name}")
    for part in parts:
        if not (root / part).is_dir():
            raise PolyditError(f"{root}: is not {name}, there is no folder {part} in it; give its root")
    return root


def _lines(folder: Path, names: list[str]) -> list[tuple[str, str]]:
    """Person and garment of each line of the first list that exists."""
    for name in names:
        path = folder / name
        if not path.is_file():
            continue
        found = []
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PolyditError(f"{path}: cannot be read; replace it") from error
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) < 2:
                raise PolyditError(f"{path}: line {number} is {line!r}; it must name a person and a garment")
            found.append((words[0], words[1]))
        if not found:
            raise PolyditError(f"{path}: is empty; it must list pairs of person and garment")
        return found
    raise PolyditError(f"{folder / names[0]}: no such file; the list of pairs belongs there")


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
