"""npm packages: fetch through npm, read the archive, find the licence. No package is installed and no script is run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import PolyditError

__all__ = ["Tarball", "download", "newest_version"]

_LICENCE_FILE = re.compile(r"[^/]+/(licen[cs]e|copying)(\.\w+)?", re.IGNORECASE)


def _npm(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str] | None:
    if shutil.which("npm") is None:
        return None
    command = ["npm", "--loglevel=error", *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=cwd)


def newest_version(package: str) -> str | None:
    """The newest released version, or None without npm, without network, or for an unknown name."""
    result = _npm("view", package, "version")
    return result.stdout.strip() or None if result is not None and result.returncode == 0 else None


def download(package: str, folder: Path) -> Path:
    """Fetch the archive of `package` into `folder`.

    Raises:
        PolyditError: no npm, or npm failed.
    """
    result = _npm("pack", "--ignore-scripts", package, cwd=folder)
    found = sorted(folder.glob("*.tgz"))
    if result is not None and result.returncode == 0 and found:
        return found[-1]
    last = "npm: not found" if result is None else (result.stderr.strip().splitlines() or ["npm failed"])[-1]
    raise PolyditError(f"{package}: cannot be downloaded ({last}); give the .tgz of `npm pack` with --from")


class Tarball:
    """The .tgz file of an npm package, as `npm pack` writes it. Nothing is unpacked to the disk.

    A scope becomes the first part of the name: ``@tabler/preview`` is ``tabler-preview``.

    Raises:
        PolyditError: the file is not such a package, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.package = self.version = self.copyright_file = ""
        for name, data in self._members(
            lambda name: (
                name.count("/") == 1
                and (name.endswith("/package.json") or bool(_LICENCE_FILE.fullmatch(name)))
            )
        ):
            if not name.endswith("/package.json"):
                self.copyright_file = name.partition("/")[2]
                continue
            try:
                described = json.loads(data)
                self.package = described["name"].lstrip("@").replace("/", "-").lower()
                self.version = str(described["version"])
                self._licence = str(described.get("license", ""))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise PolyditError(f"{path}: its package.json cannot be read; download it again") from error
        if not re.fullmatch(r"[a-z0-9][a-z0-9+._-]*", self.package):
            raise PolyditError(
                f"{path}: not an npm package (no package.json inside); give .tgz files of `npm pack`"
            )

    def _members(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        try:
            with tarfile.open(self.path, "r|gz") as tar:
                for member in tar:
                    if member.isfile() and wanted(member.name) and (file := tar.extractfile(member)):
                        yield member.name, file.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise PolyditError(f"{self.path}: damaged ({error}); download it again") from error

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield (path, content) of the files whose path (without the top folder) is `wanted`."""
        for name, data in self._members(lambda name: wanted(name.partition("/")[2])):
            yield name.partition("/")[2], data

    def licence(self, path: str, copyright_text: str) -> str:
        """The licence that package.json names for the whole package."""
        return self._licence or "see licences/" if self.copyright_file else self._licence or "not stated"
