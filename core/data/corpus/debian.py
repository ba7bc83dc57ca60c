"""Debian packages without root: download through apt-get, read the archive, find the licence of a file."""

from __future__ import annotations

import contextlib
import lzma
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from ...errors import PolyditError

__all__ = ["Deb", "candidate_version", "download", "licence_of"]

_OFFLINE = (
    "could not resolve",
    "temporary failure",
    "connection",
    "failed to fetch",
    "network is unreachable",
)


def _apt(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
    if shutil.which(command[0]) is None:
        raise PolyditError(
            f"{command[0]}: not found on this system; download the packages elsewhere and give them with --from"
        )
    # The messages are read below, so they must be in English.
    env = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=env, check=False, **kwargs
    )  # type: ignore[call-overload]


def candidate_version(package: str) -> str | None:
    """The version that apt would install, or None if apt does not know the package."""
    result = _apt(["apt-cache", "show", "--no-all-versions", "--", package])
    found = re.search(r"^Version: (\S+)$", result.stdout, re.MULTILINE)
    return found[1] if found else None


def download(package: str, folder: Path) -> Path:
    """Fetch the .deb of `package` into `folder` (no root needed).

    Raises:
        PolyditError: no apt, unknown package, no network, or no room.
    """
    result = _apt(["apt-get", "download", "-q", "--", package], cwd=folder)
    found = sorted(folder.glob(f"{package}_*.deb"))
    if result.returncode == 0 and found:
        return found[-1]
    message = result.stderr.strip()
    low = message.lower()
    if "unable to locate" in low or "no candidate" in low or "can't select" in low:
        raise PolyditError(f"{package}: apt knows no such package; run 'apt-get update', or check the name")
    if "no space left" in low or "not enough free space" in low or "enough free space" in low:
        raise PolyditError(f"{folder}: disk full while downloading {package}; free some space and run again")
    last = message.splitlines()[-1] if message else f"exit code {result.returncode}"
    if any(word in low for word in _OFFLINE):
        raise PolyditError(
            f"{package}: cannot be downloaded ({last}); is the network up? .deb files can be given with --from"
        )
    raise PolyditError(
        f"{package}: apt-get download failed ({last}); try it by hand, or give the .deb with --from"
    )


class Deb:
    """A .deb file: an `ar` archive of two tar archives. Nothing is unpacked to the disk.

    Raises:
        PolyditError: the file is not a Debian package, or is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = self._index()
        control = self._control()
        self.package = control.get("Package", "")
        self.version = control.get("Version", "")
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", self.package):
            raise PolyditError(
                f"{path}: not a Debian package (no package name inside); remove it or download it again"
            )
        self.copyright_file = f"usr/share/doc/{self.package}/copyright"

    def _index(self) -> dict[str, tuple[int, int]]:
        members: dict[str, tuple[int, int]] = {}
        try:
            total = self.path.stat().st_size
            with self.path.open("rb") as file:
                if file.read(8) != b"!<arch>\n":
                    raise PolyditError(f"{self.path}: not a Debian package; give .deb files")
                while len(header := file.read(60)) == 60:
                    name, size = (
                        header[:16].decode("ascii", "replace").strip().rstrip("/"),
                        int(header[48:58]),
                    )
                    if file.tell() + size > total:
                        raise PolyditError(f"{self.path}: cut short; download it again")
                    members[name] = (file.tell(), size)
                    file.seek(size + size % 2, 1)
        except (OSError, ValueError) as error:
            raise PolyditError(f"{self.path}: cannot be read ({error}); download it again") from error
        return members

    @contextlib.contextmanager
    def _tar(self, stem: str) -> Iterator[tarfile.TarFile]:
        name = next((m for m in self._members if m == stem or m.startswith(stem + ".")), None)
        if name is None:
            raise PolyditError(f"{self.path}: holds no {stem}; download it again")
        offset, size = self._members[name]
        try:
            with self.path.open("rb") as file:
                if name.endswith(".zst"):
                    with (
                        self._zstd(stem, file, offset, size) as stream,
                        tarfile.open(fileobj=stream, mode="r|") as tar,
                    ):
                        yield tar
                else:
                    window: Any = _Window(file, offset, size)
                    with tarfile.open(fileobj=window, mode="r|*") as tar:
                        yield tar
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise PolyditError(f"{self.path}: damaged ({error}); download it again") from error

    @contextlib.contextmanager
    def _zstd(self, stem: str, file: IO[bytes], offset: int, size: int) -> Iterator[IO[bytes]]:
        # Python reads zstd only from 3.14 on; dpkg-deb and zstd do it everywhere else.
        if shutil.which("dpkg-deb"):
            option = "--fsys-tarfile" if stem == "data.tar" else "--ctrl-tarfile"
            process = subprocess.Popen(["dpkg-deb", option, str(self.path)], stdout=subprocess.PIPE)
        elif shutil.which("zstd"):
            part = subprocess.Popen(["tail", "-c", f"+{offset + 1}", str(self.path)], stdout=subprocess.PIPE)
            process = subprocess.Popen(
                ["zstd", "-dcq"], stdin=part.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        else:
            raise PolyditError(f"{self.path}: is zstd-compressed; install dpkg or zstd, or repack it with xz")
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.stdout.close()
            process.wait()

    def _control(self) -> dict[str, str]:
        with self._tar("control.tar") as tar:
            for member in tar:
                if member.name.lstrip("./") == "control" and (file := tar.extractfile(member)):
                    text = file.read().decode("utf-8", "replace")
                    return dict(re.findall(r"^([A-Z][A-Za-z-]*): *(.*)$", text, re.MULTILINE))
        return {}

    def files(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield (path, content) of the regular files whose path (without the leading ``./``) is `wanted`."""
        with self._tar("data.tar") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted(name) and (file := tar.extractfile(member)):
                    yield name, file.read()

    def licence(self, path: str, copyright_text: str) -> str:
        """The short licence name of a file (see `licence_of`)."""
        return licence_of(path, copyright_text)


class _Window:
    """A read-only view of a part of a file, enough for a streaming tar reader."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        file.seek(offset)
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        self._left -= len(data)
        return data


def licence_of(path: str, copyright_text: str) -> str:
    """The short licence name of a file, as well as the package's copyright file tells it.

    In the machine-readable format the last matching ``Files:`` paragraph counts. Its patterns are paths in the source
    tree, so each trailing part of the installed path is tried. Free-form files are searched for licence names.
    """
    if not copyright_text.startswith("Format:"):
        known = re.findall(
            r"CC[- ]BY(?:-SA)?[- ]\d\.\d|CC0|public domain|GPL-\d|General Public License", copyright_text
        )
        return f"{known[0]} (see licences/)" if known else "see licences/"
    parts = path.split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    licence = ""
    for paragraph in re.split(r"\n\s*\n", copyright_text):
        fields = re.findall(r"^(\S+?):[ \t]*((?:.*)(?:\n[ \t]+.*)*)", paragraph, re.MULTILINE)
        values = {key.lower(): value for key, value in fields}
        if "files" not in values or "license" not in values:
            continue
        for pattern in values["files"].split():
            # A paragraph for the whole tree never overrides one that names the file.
            if any(fnmatchcase(tail, pattern) for tail in tails) and (pattern != "*" or not licence):
                licence = values["license"].split("\n")[0].strip()
                break
    return licence or "see licences/"
