"""What codes which files: the systems behind ``polydit compression encode`` and ``decode``.

A system is a module of this package, named in `container.CODECS`, with two functions::

    def encode_file(source: Path, output: OutputWriter, name: str, options: Namespace) -> dict
    def decode_file(source: Path, content: Container, output: OutputWriter, name: str, options: Namespace) -> dict

which write ``name`` and return what they have to say, JSON-ready, with a ``line`` for the user.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from ...core.errors import PolyditError
from .container import CODECS

__all__ = ["module_of", "system_for"]


def module_of(codec: int) -> ModuleType:
    """The module that codes and decodes files of a codec.

    Raises:
        PolyditError: this version lacks it.
    """
    name = f"{__package__}.{CODECS[codec].module}"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise PolyditError(
            f"--system {CODECS[codec].system}: this version of PolyDiT does not have it"
        ) from error


def system_for(source: Path, wanted: str | None) -> int:
    """The codec for an input: the one that was asked for, or the small one for its kind.

    Raises:
        PolyditError: there is none of this name, or it codes inputs of another kind.
    """
    from ...core.inputs import SUFFIXES

    video = source.suffix.lower() in SUFFIXES["video"]
    if wanted is None:
        return next(number for number, codec in CODECS.items() if codec.video == video)
    number = next((number for number, codec in CODECS.items() if codec.system == wanted), None)
    if number is None:
        known = ", ".join(codec.system for codec in CODECS.values())
        raise PolyditError(f"--system {wanted}: unknown; choose from {known}")
    if CODECS[number].video != video:
        kinds = ("videos", "pictures") if CODECS[number].video else ("pictures", "videos")
        raise PolyditError(f"--system {wanted}: codes {kinds[0]}, and {source} is none; leave the option out")
    return number
