"""Argument parsing whose complaints are one line with the nearest valid word."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import PolyditError
from ..task import Option, nearest

__all__ = ["Menu", "Parser", "add_options"]


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `PolyditError` and never guesses abbreviated options."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        # `main` looks at it too.
        self.add_argument("--debug", action="store_true", help="show the stack trace of a failure")

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found, in this project's words.

        Raises:
            PolyditError: always.
        """
        raise PolyditError(f"{self._rephrase(message)}; `{self.prog} --help` shows what there is")

    def _rephrase(self, message: str) -> str:
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            word = match[1]
            if word.startswith("-"):
                flag = word.partition("=")[0]
                return f"{flag}: no such option{nearest(flag, self._option_string_actions)}"
            return f"{word}: one word too many; quote names with spaces"
        if match := re.match(r"the following arguments are required: (.+)", message):
            return f"{match[1]}: required"
        if match := re.match(r"argument (\S+?)(?:/\S+)*: expected .*argument", message):
            return f"{match[1]}: a value must follow"
        if match := re.match(r"argument (\S+?)(?:/\S+)*: (.+)", message, re.DOTALL):
            return f"{match[1]}: {match[2]}"
        return message


class _HelpFormatter(argparse.HelpFormatter):
    """Room for long flags; defaults shown where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required or action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return text
        if "default:" in text:
            return text
        return f"{text} (default: %(default)s)"


@dataclass(frozen=True)
class Menu:
    """A word followed by one of several commands.

    Attributes:
        prog: what stands before the command, ``"polydit super-resolution"``.
        summary: one line.
        sections: titles, each with its commands and what they do.
        epilog: shown last.
    """

    prog: str
    summary: str
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    epilog: str = ""

    def help(self) -> str:
        """The text of ``--help``."""
        width = max(len(name) for _, rows in self.sections for name, _ in rows) + 2
        lines = [f"usage: {self.prog} COMMAND ...", "", self.summary]
        for title, rows in self.sections:
            lines += ["", f"{title}:", *(f"  {name:<{width}}{text}" for name, text in rows)]
        lines += ["", f"`{self.prog} COMMAND --help` shows the options of a command."]
        if self.epilog:
            lines += ["", self.epilog]
        return "\n".join(lines)

    def choose(self, argv: Sequence[str]) -> tuple[str, list[str]] | None:
        """The command and what follows it, or ``None`` when help was asked for (or nothing at all).

        Raises:
            PolyditError: an option stands where a command must, or there is no such command.
        """
        if not argv or argv[0] in ("-h", "--help", "--debug"):
            return None
        first, rest = argv[0], list(argv[1:])
        names = [name for _, rows in self.sections for name, _ in rows]
        if first.startswith("-"):
            option, example = (
                first.partition("=")[0],
                next((word for word in rest if word in names), names[-1]),
            )
            if option == "--config" and "fit" in names:
                value = first.partition("=")[2] or (rest[0] if rest and rest[0] not in names else "FILE")
                example = example if example in ("fit", "validate", "test", "check") else "fit"
                raise PolyditError(
                    f"--config: options follow the command: {self.prog} {example} --config {value}"
                )
            raise PolyditError(f"{option}: options follow the command: {self.prog} {example} {option} ...")
        if first not in names:
            raise PolyditError(
                f"{first}: no such command{nearest(first, names)}; `{self.prog} --help` shows what there is"
            )
        return first, rest


def add_options(parser: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """Declare `options` on `parser`."""
    for option in options:
        if option.type == "bool":
            parser.add_argument(
                option.flag, action=argparse.BooleanOptionalAction, default=option.default, help=option.help
            )
            continue
        metavar = option.metavar
        if metavar is None:
            metavar = (
                "{" + ",".join(map(str, option.choices)) + "}" if option.choices else _METAVARS[option.type]
            )
        parser.add_argument(
            option.flag,
            type=reader(option),
            default=option.default,
            metavar=metavar,
            help=option.help,
            nargs="+" if option.many else None,
        )


_METAVARS = {"int": "N", "float": "X", "str": "NAME", "path": "PATH"}
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "a word"),
    "path": (lambda text: Path(text).expanduser(), "a path"),
}


def reader(option: Option) -> Callable[[str], Any]:
    """The function that reads the value of `option` from its text; it explains what it refuses."""
    read, what = _READERS[option.type]

    def value(text: str) -> Any:
        try:
            result = read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if option.type == "float" and not math.isfinite(result):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if option.choices is not None and result not in option.choices:
            words = [str(choice) for choice in option.choices]
            raise argparse.ArgumentTypeError(f"{text} is not one of {', '.join(words)}{nearest(text, words)}")
        if option.minimum is not None and result < option.minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {option.minimum:g}")
        if option.maximum is not None and result > option.maximum:
            raise argparse.ArgumentTypeError(f"{text} is greater than {option.maximum:g}")
        return result

    return value
