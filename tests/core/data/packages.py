"""Makes small Debian packages out of Python, for the tests of the corpus."""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pictures

Files: nature/*
       special.jpg
Copyright: 2020, Someone
License: CC-BY-SA-4.0

Files: *
Copyright: 2020, Others
License: GPL-2+

License: GPL-2+
 Text of the licence.
"""


def noise_picture(seed: int, size: tuple[int, int] = (600, 450)) -> Image.Image:
    """A picture with detail at every scale, different for each seed; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((size[1], size[0], 3), np.float32)
    for cells in (6, 24, 96):
        coarse = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), np.uint8))
        canvas += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32) / 3
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def cutout(seed: int, side: int = 128) -> Image.Image:
    """A disc with transparent surroundings."""
    picture = noise_picture(seed, (side, side)).convert("RGBA")
    y, x = np.mgrid[0:side, 0:side] - side / 2
    picture.putalpha(Image.fromarray(((x * x + y * y < (side / 3) ** 2) * 255).astype(np.uint8)))
    return picture


def data(image: Image.Image, suffix: str, **options: object) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix], **options)
    return buffer.getvalue()


def make_deb(
    folder: Path,
    package: str,
    files: dict[str, bytes],
    version: str = "1.0-1",
    compression: str = "xz",
    copyright_text: str = COPYRIGHT,
) -> Path:
    """Write PACKAGE_VERSION_all.deb with these files."""

    def tar(members: dict[str, bytes], kind: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w" if kind == "zst" else f"w:{kind}") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        if kind == "zst":
            return subprocess.run(
                ["zstd", "-qc"], input=buffer.getvalue(), stdout=subprocess.PIPE, check=True
            ).stdout
        return buffer.getvalue()

    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    control = f"Package: {package}\nVersion: {version}\nArchitecture: all\n".encode()
    everything = {f"usr/share/doc/{package}/copyright": copyright_text.encode(), **files}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package}_{version}_all.deb"
    path.write_bytes(
        b"!<arch>\n"
        + member("debian-binary", b"2.0\n")
        + member("control.tar.xz", tar({"control": control}, "xz"))
        + member(f"data.tar.{compression}", tar(everything, compression))
    )
    return path


def make_sh3f(name: str, models: list[str]) -> bytes:
    """A furniture catalogue with an icon, an OBJ, an MTL and a texture for each model."""
    lines, buffer = [], io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, model in enumerate(models, 1):
            base = f"{name}/{model}"
            lines += [
                f"name#{number}=A {model} caf\\u00e9", f"category#{number}=Living room", f"icon#{number}=/{base}.png",
                f"model#{number}=/{base}/{model}.obj", f"width#{number}=50.5", f"depth#{number}=40",
                f"height#{number}=30", f"creator#{number}=Ann",
            ]  # fmt: skip
            archive.writestr(f"{base}.png", data(cutout(number + len(name) * 100), "png"))
            archive.writestr(f"{base}/{model}.obj", f"mtllib {model}.mtl\n# {base}\nv 0 0 0\n")
            archive.writestr(f"{base}/{model}.mtl", "newmtl wood\n")
            archive.writestr(f"{base}/wood.jpg", data(noise_picture(number, (64, 64)), "jpg"))
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
    return buffer.getvalue()


def make_rcc(files: dict[str, tuple[bytes, bool]]) -> bytes:
    """Qt resources in one folder ``res``: name to (content, whether to compress it)."""
    names, contents = b"", b""

    def add_name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    rows = [(0, 2, 1, 1), (add_name("res"), 2, len(files), 2)]
    for name, (content, compress) in files.items():
        raw = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
        rows.append((add_name(name), int(compress), 0, len(contents)))
        contents += struct.pack(">I", len(raw)) + raw
    tree = b""
    for at, flags, first, second in rows:
        tree += struct.pack(">IH", at, flags)
        tree += struct.pack(">II", first, second) if flags == 2 else struct.pack(">HHI", 0, 0, second)
        tree += b"\0" * 8
    start = 20
    header = b"qres" + struct.pack(">4I", 2, start, start + len(tree), start + len(tree) + len(contents))
    return header + tree + contents + names
