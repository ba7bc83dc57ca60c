"""Few-shot data sets as they lie on the disk: COCO-20i, PASCAL-5i and FSS-1000."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....core.data.images import list_images
from ....core.errors import PolyditError
from .episodes import Example

__all__ = ["FOLDS", "LAYOUTS", "coco_20i", "fss_1000", "pascal_5i"]

Classes = dict[str, list[Example]]
FOLDS = 4
PARTS = ("train", "val", "test")


def coco_20i(root: Path, part: str, fold: int) -> Classes:
    """COCO-20i: ``splits/{trn,val}/fold<i>.pkl`` (class -> pictures), ``annotations/<split>/<name>.png``.

    Class ``c`` has the grey level ``c + 1``. A fold is tested on the classes ``fold + 4 v``, v from 0 to 19, and
    trained on the others.

    Args:
        root: with ``train2014`` and ``val2014``.
        part: ``train``, or ``val`` and ``test``, which are the same.
        fold: 0 to 3.
    """
    file = root / "splits" / ("trn" if part == "train" else "val") / f"fold{fold}.pkl"
    by_class = read_plain_pickle(file)
    tested = {fold + FOLDS * v for v in range(20)}
    found: Classes = {}
    for number, names in sorted(by_class.items()):
        if (int(number) in tested) == (part == "train") or len(names) < 2:
            continue
        found[f"class {number}"] = [
            Example(root / name, (root / "annotations" / name).with_suffix(".png"), value=int(number) + 1)
            for name in names
        ]
    return found


def pascal_5i(root: Path, part: str, fold: int) -> Classes:
    """PASCAL-5i: ``JPEGImages``, ``SegmentationClassAug``, ``splits/{trn,val}/fold<i>.txt`` of ``name__class`` lines.

    Class ``c`` (from 1 to 20) has its number as grey level, and 255 does not count. The tested classes of a fold are
    ``5 i + 1`` to ``5 i + 5``.
    """
    file = root / "splits" / ("trn" if part == "train" else "val") / f"fold{fold}.txt"
    found: Classes = {}
    for line in read_lines(file):
        name, _, number = line.partition("__")
        if not number.isdigit():
            raise PolyditError(f"{file}: {line!r} is no line of the form name__class")
        if ((int(number) - 1) // 5 == fold) == (part == "train"):
            continue
        mask = root / "SegmentationClassAug" / f"{name}.png"
        example = Example(root / "JPEGImages" / f"{name}.jpg", mask, value=int(number), ignore=255)
        found.setdefault(f"class {int(number)}", []).append(example)
    return {name: found[name] for name in sorted(found) if len(found[name]) > 1}


def fss_1000(root: Path, part: str, fold: int) -> Classes:
    """FSS-1000: ``data/<class>/{1..10}.{jpg,png}``, ``splits/{trn,val,test}.txt`` of class names; it has no folds."""
    file = root / "splits" / f"{'trn' if part == 'train' else part}.txt"
    found: Classes = {}
    for name in read_lines(file):
        folder = root / "data" / name
        pictures = [path for path in list_images(folder) if path.suffix != ".png"]
        found[name] = [Example(path, path.with_suffix(".png")) for path in pictures]
    return found


LAYOUTS: dict[str, Callable[[Path, str, int], Classes]] = {
    "coco-20i": coco_20i,
    "pascal-5i": pascal_5i,
    "fss-1000": fss_1000,
}
"""Layout -> ``find(root, part, fold)``: the pictures of each class of a part."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, numbers and strings; whatever would run code is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_plain_pickle(file: Path) -> dict[Any, Any]:
    """A pickled dictionary of plain values, read without running code.

    Raises:
        PolyditError: there is no such file, or it holds something else.
    """
    try:
        with file.open("rb") as content:
            value = _PlainUnpickler(content).load()
    except FileNotFoundError as error:
        raise PolyditError(f"{file}: no such file; --data.path must hold the data set's splits") from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise PolyditError(f"{file}: refused, no list of pictures by class ({error})") from error
    if not isinstance(value, dict):
        raise PolyditError(f"{file}: no list of pictures by class, but a {type(value).__name__}")
    return value


def read_lines(file: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        PolyditError: there is no such file.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise PolyditError(f"{file}: no such file; --data.path must hold the data set's splits") from error
