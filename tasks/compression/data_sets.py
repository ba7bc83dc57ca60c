"""Where the pictures of data sets lie: Kodak, CLIC, DIV2K, a corpus, or any folder."""

from __future__ import annotations

from pathlib import Path

from ...core.data.images import list_images
from ...core.data.picture_lists import pictures_of
from ...core.errors import PolyditError

__all__ = ["pictures_in"]

LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "DIV2K": {"train": ("DIV2K_train_HR",), "val": ("DIV2K_valid_HR",)},
    "CLIC": {
        "train": ("train", "professional_train", "mobile_train"),
        "val": ("valid", "test", "professional_valid", "mobile_valid", "professional_test", "mobile_test"),
    },
}
"""Folders of the parts, by data set; those that are there are taken."""


def pictures_in(path: str | Path, part: str | None) -> list[Path]:
    """The pictures of a data set's part.

    A folder with ``DIV2K_valid_HR`` is DIV2K and one with ``valid`` or ``professional_valid`` (or ``test``, ...) is
    CLIC; Kodak is 24 files ``kodim01.png`` in a folder, all of them held out. Of a corpus, its manifest decides; of any
    other folder a tenth is held out, chosen by name.

    Args:
        path: folder, file or pattern.
        part: ``train``, ``val``, or None for all that is there.

    Raises:
        PolyditError: nothing is there, or not the part.
    """
    root = Path(path).expanduser()
    if part is not None and root.is_dir() and not (root / "manifest.jsonl").is_file():
        for name, folders in LAYOUTS.items():
            if not any((root / folder).is_dir() for folder in folders["val"]):
                continue
            found = [root / folder for folder in folders[part] if (root / folder).is_dir()]
            if not found:
                raise PolyditError(
                    f"{path}: {name} without its part for {'training' if part == 'train' else 'validation'}; put "
                    f"{' or '.join(folders[part][:2])} beside the others"
                )
            return [file for folder in found for file in list_images(folder)]
        if sorted(root.glob("kodim*.png")) and part == "train":
            raise PolyditError(f"{path}: Kodak is for evaluation only; give other pictures for training")
        if sorted(root.glob("kodim*.png")):
            return list_images(root)
    if part is None:
        return list_images(root)
    return [file for file, _ in pictures_of(root, part)]
