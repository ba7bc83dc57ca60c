"""What the parser of configs complains about, in one line that a person can act on."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

__all__ = ["one_line", "suggestion"]

UNKNOWN_WORDS = re.compile(r"unrecognized arguments: (?P<words>.*)")
UNKNOWN_KEY = re.compile(r"Group '(?P<group>[^']*)' does not accept option '(?P<key>[^']*)'")
UNKNOWN_SETTING = re.compile(
    r"Problem with given class_path '(?P<path>[^']*)':(?:(?!class_path).)*?Option '(?P<key>[^']*)' is not accepted"
)
NO_CLASS = re.compile(r"has no attribute '(?P<name>[^']*)'|No module named '(?P<module>[^']*)'")
CLASS_PATH = re.compile(r"class_path '(?P<path>[^']*)'")
WRONG_TYPE = re.compile(
    r"Expected an? (?:<class ')?(?P<type>(?!NoneType)[^'.]*?)(?:'>)?\. Got value: (?P<value>\S*)"
)
NOT_ONE_OF = re.compile(r"Expected a (?:typing\.)?Literal\[(?P<choices>[^]]*)\]\. Got value: (?P<value>\S*)")
PARSER_KEY = re.compile(r"Parser key \"(?P<key>[^\"]*)\"")
NO_FILE = re.compile(r"File does not exist: '?(?P<path>[^']*)'?")
REQUIRED = re.compile(r"following arguments are required: (?P<key>\S+)|Key \"(?P<key2>\S+)\" is required")
UNION = re.compile(
    r"Subtypes: \[(?P<kinds>[^]]*(?:\[[^]]*\][^]]*)*)\] Errors:.* "
    r"Given value type: <class '(?:str|int|float|bool)'> Given value: (?P<value>\S*)"
)
INNER = re.compile(r"Errors:\s*-\s*(?P<reason>.*?)\s*(?:-\s*Expected a <class 'NoneType'>|Given value type)")


def suggestion(word: str, words: Iterable[str]) -> str:
    """``; did you mean X?`` where something is near, otherwise nothing."""
    near = difflib.get_close_matches(word, list(words), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def one_line(message: str, keys: Iterable[str], command: str) -> str:
    """Rewrite the parser's message.

    Args:
        message: What jsonargparse raised.
        keys: Every key that the command accepts (``model.optimizer.lr``).
        command: Words before the options, for the hint to ``--help``.
    """
    text = " ".join(message.split())
    keys = list(keys)
    if match := UNKNOWN_WORDS.search(text):
        word = match["words"].split()[0].split("=")[0]
        if not word.startswith("-"):
            return f"{word!r}: not an option of `{command}`; options start with --, see `{command} --help`"
        return f"{word}: no such option" + (
            suggestion(word, [f"--{k}" for k in keys]) or f"; see `{command} --help`"
        )
    if match := UNKNOWN_KEY.search(text):
        key = ".".join(part for part in (match["group"], match["key"]) if part)
        return f"config key {key}: unknown" + (suggestion(key, keys) or f"; see `{command} --help`")
    place = PARSER_KEY.findall(text)
    key = place[0] if place else ""
    if settings := list(UNKNOWN_SETTING.finditer(text)):
        path, name = settings[-1]["path"], settings[-1]["key"]
        where = f"{key}.{name}" if path.endswith("Options") else f"{key}.init_args.{name}"
        known = sorted(parameters(path))
        if not known:  # the bare class that a section may hold, as no config has named another
            return (
                f"config key {where}: there is no class_path that it belongs to; give a complete config with --config "
                "before this one"
            )
        return f"config key {where}: {path} has no setting {name!r}" + (
            suggestion(name, known) or f"; it has {', '.join(known[:8])}"
        )
    if match := NOT_ONE_OF.search(text):
        return f"{'.'.join(place)}: {match['value']!r} is not one of {match['choices']}"
    if (match := NO_CLASS.search(text)) and (path := CLASS_PATH.search(text)):
        return f"config key {key}.class_path: there is no {path['path']}" + suggestion(
            path["path"], siblings(path["path"])
        )
    if match := WRONG_TYPE.search(text):
        return f"{'.init_args.'.join(place)}: expected {match['type']}, got {match['value']!r}"
    if match := NO_FILE.search(text):
        return f"--{key or 'config'} {match['path']}: there is no such file"
    if match := REQUIRED.search(text):
        return f"{match['key'] or match['key2']}: is required; give a complete config with --config"
    if text.startswith("Problems parsing config"):
        return f"--config: not valid YAML ({text.split(':', 1)[1].strip()})"
    if match := UNION.search(text):
        return f"{'.init_args.'.join(place)}: expected {' or '.join(kinds(match['kinds']))}, got {match['value']!r}"
    if match := INNER.search(text):
        text = match["reason"]
    if key and not text.startswith("Parser key"):
        text = f"{key}: {text}"
    return text.replace('Parser key "', "", 1).replace('":', ":", 1) if place else text


def kinds(text: str) -> list[str]:
    """What a list of Python types reads like in a config."""
    words = []
    for literal, name in re.findall(r"Literal\[([^]]*)\]|<class '([^']*)'>", text):
        known = {"NoneType": "null", "str": "a text", "float": "a number"}
        settings = f"the settings of {name.rpartition('.')[2]}" if "." in name else name
        words.append(literal.replace(", ", " or ") or known.get(name, settings))
    return words


def parameters(path: str) -> set[str]:
    """Names that the constructor behind a class path takes, its parents' included where it passes them on."""
    try:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return set()
    names: set[str] = set()
    for kind in getattr(found, "__mro__", [found])[:-1]:
        signature = inspect.signature(kind.__init__ if inspect.isclass(kind) else kind)
        names |= {
            p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        if all(p.kind != p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return names - {"self"}


def siblings(path: str) -> list[str]:
    """Class paths that exist in the innermost module of a path that does not."""
    module = path.rpartition(".")[0]
    while module:
        try:
            names = getattr(importlib.import_module(module), "__all__", [])
            return [f"{module}.{name}" for name in names]
        except ImportError:
            module = module.rpartition(".")[0]
    return []
