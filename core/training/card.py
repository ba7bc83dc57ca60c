"""The card of a saved pipeline: what it was trained on, under which licence it may be used, how good it is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PolyditError

if TYPE_CHECKING:
    from ..task import TaskSpec

__all__ = ["Card", "CardOptions", "corpus_summary", "read_figures", "training_facts"]

LICENSES = (
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "gpl-3.0", "agpl-3.0", "lgpl-3.0", "openrail", "openrail++", "creativeml-openrail-m", "unlicense", "other",
)  # fmt: skip
"""Names that model hubs know; another one is kept beside ``other``."""

MISSING = "**This card is incomplete.** It lacks {what}. Complete it before handing the folder on:"


@dataclass
class CardOptions:
    """What only the person who trained knows about a model; ``export`` asks for both.

    Attributes:
        data_source: What it was trained on and where that comes from, in a few words.
        license: Under which licence the weights may be used, such as ``apache-2.0`` or ``cc-by-nc-4.0``.
    """

    data_source: str | None = None
    license: str | None = None


@dataclass
class Card:
    """All that a card says.

    Attributes:
        task: The task.
        options: Data and licence.
        facts: Of the training: see :func:`training_facts`.
        figures: What was measured, by name.
    """

    task: TaskSpec
    options: CardOptions
    facts: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The options of ``export`` that are still to be given."""
        given = {"--license": self.options.license, "--data-source": self.options.data_source}
        return [option for option, value in given.items() if not (value and value.strip())]

    def refuse_incomplete(self) -> None:
        """Refuse to hand on what nobody may know how to use.

        Raises:
            PolyditError: data or licence is not given.
        """
        examples = {
            "--license": "--license apache-2.0",
            "--data-source": "--data-source 'my 200 photos of birds'",
        }
        if self.missing:
            raise PolyditError(
                f"{' and '.join(self.missing)}: required; who gets this model must know what it was trained on and "
                f"what they may do with it: add {' '.join(examples[option] for option in self.missing)}"
            )

    def entries(self) -> dict[str, str]:
        """Data and licence, as far as they are given, for the header of a file."""
        given = {"data_source": self.options.data_source, "license": self.options.license}
        return {name: value for name, value in given.items() if value}

    def write(self, folder: Path, title: str) -> None:
        """Write ``README.md`` into a pipeline folder; its files of weights are named with their checksums."""
        (folder / "README.md").write_text(self.text(folder, title), encoding="utf-8")

    def text(self, folder: Path, title: str) -> str:
        """The card of a folder: a YAML header as model hubs read it, and Markdown."""
        import yaml

        head = yaml.safe_dump(self.header(), sort_keys=False, allow_unicode=True, width=1000)
        return f"---\n{head}---\n\n" + "\n".join(self.body(folder, title)).rstrip() + "\n"

    def header(self) -> dict[str, Any]:
        """What model hubs read, and what :meth:`read` needs."""
        license_ = (self.options.license or "").strip()
        header: dict[str, Any] = {"library_name": "polydit", "tags": ["polydit", self.task.name, "diffusion"]}
        if license_.lower() in LICENSES:
            header["license"] = license_.lower()
        elif license_:
            header |= {"license": "other", "license_name": license_}
        header["polydit"] = {
            "task": self.task.name,
            "data_source": self.options.data_source,
            "facts": self.facts,
            "figures": self.figures,
        }
        return header

    def body(self, folder: Path, title: str) -> Iterator[str]:
        """The lines below the header."""
        yield from (f"# {title}", "")
        yield from (f"A model for PolyDiT's task {self.task.name}: {self.task.summary}", "")
        if self.missing:
            words = {"--license": "the licence", "--data-source": "the training data"}
            yield MISSING.format(what=" and ".join(words[option] for option in self.missing))
            asked = " ".join(f"{option} ..." for option in self.missing)
            command = f"polydit {self.task.name} export --pipeline FOLDER --output NEW {asked}"
            yield from ("", "```bash", command, "```", "")
        yield from ("## Use", "", "```bash")
        yield f"polydit {self.task.name} predict --weights FOLDER --input PATH --output DIR"
        yield from ("```", "")
        yield from ("## Licence", "", self.options.license or "Not said.", "")
        yield from ("## Training data", "", self.options.data_source or "Not said.", "")
        yield from ("## Training", "")
        names = {
            "steps": "optimiser steps",
            "samples": "samples seen",
            "parameters": "parameters",
            "trained": "of them trained",
            "adapter": "adapter, merged",
            "base": "started from",
            "precision": "precision",
            "weights": "weights",
            "version": "PolyDiT",
        }
        yield from (
            f"- {label}: {_number(self.facts[name])}" for name, label in names.items() if self.facts.get(name)
        )
        if self.facts.get("command"):
            yield from ("", "```bash", str(self.facts["command"]), "```")
        yield from ("", "## Figures", "")
        if self.figures:
            yield from ("| what | value |", "| --- | --- |")
            yield from (f"| {name} | {value:.6g} |" for name, value in self.figures.items())
        else:
            yield "None were measured."
        yield from ("", "## Limits", "")
        yield "Trained on the data above and measured as above; on other material nothing is promised."
        yield from ("", "## Files", "", "| file | bytes | sha256 |", "| --- | --- | --- |")
        for file in sorted(folder.rglob("*.safetensors")):
            name = file.relative_to(folder).as_posix()
            yield f"| {name} | {file.stat().st_size:,} | `{checksum(file)}` |"

    @classmethod
    def read(cls, task: TaskSpec, folder: Path) -> Card:
        """The card of a folder as far as it has one of ours; an empty one otherwise."""
        import yaml

        try:
            text = (folder / "README.md").read_text(encoding="utf-8")
            header = yaml.safe_load(text.split("---", 2)[1])
            ours = header["polydit"]
            license_ = header.get("license_name") or header.get("license")
            return cls(
                task, CardOptions(ours["data_source"], license_), dict(ours["facts"]), dict(ours["figures"])
            )
        except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, ValueError):
            return cls(task, CardOptions())


def training_facts(checkpoint: Mapping[str, Any], weights: str) -> tuple[dict[str, Any], dict[str, float]]:
    """What a checkpoint tells about its training, and what was measured in it.

    Args:
        checkpoint: As ``fit`` wrote it.
        weights: ``average`` or ``raw``.
    """
    record = checkpoint["polydit"]
    config = record.get("config", {})
    model = config.get("model", {})
    model = model.get("init_args", model)  # of a task whose modules are named by class path
    adapter = model.get("adapter")
    facts = {
        "steps": checkpoint.get("global_step"),
        "samples": record.get("samples_seen"),
        "base": "/".join(Path(model["init_weights"]).parts[-2:]) if model.get("init_weights") else None,
        "adapter": f"LoRA of rank {adapter['rank']}" if adapter else None,
        "precision": config.get("trainer", {}).get("precision"),
        "weights": "average over the training" if weights == "average" and model.get("ema") else "last step",
        "version": record.get("version"),
        "command": record.get("command"),
    }
    figures: dict[str, float] = {}
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("Checkpoints") and isinstance(state.get("best_score"), float):
            figures["least held-out loss of the run"] = state["best_score"]
    return {name: value for name, value in facts.items() if value is not None}, figures


def corpus_summary(config: Mapping[str, Any]) -> str | None:
    """Data and their licences, if a run was trained on a corpus that knows them."""
    from ..data.corpus.manifest import load_manifest

    path = config.get("data", {}).get("path")
    if not path or not (Path(path).expanduser() / "manifest.jsonl").is_file():
        return None
    try:
        records = [r for r in load_manifest(Path(path).expanduser()) if r.split == "train"]
    except PolyditError:
        return None
    kinds = Counter(r.kind for r in records)
    licences = Counter(r.licence for r in records)
    packages = sorted({r.package for r in records})
    return (
        f"{', '.join(f'{count} {kind}' for kind, count in kinds.most_common())} from Debian packages "
        f"({', '.join(packages)}), gathered by `polydit corpus build`; licences: "
        f"{', '.join(f'{name} ({count})' for name, count in licences.most_common())}"
    )


def read_figures(path: Path) -> dict[str, float]:
    """Numbers of a JSON file, such as the one that ``evaluate`` writes: those of ``mean``, or all at its top.

    Raises:
        PolyditError: it cannot be read or holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PolyditError(
            f"--figures {path}: cannot be read as JSON ({error}); give what evaluate wrote"
        ) from error
    numbers = content.get("mean", content) if isinstance(content, dict) else {}
    found = {
        str(name): float(value)
        for name, value in (numbers.items() if isinstance(numbers, dict) else ())
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if not found:
        raise PolyditError(
            f"--figures {path}: holds no numbers; give what evaluate wrote, or {{'name': number}}"
        )
    about = [f"{name} {content[name]}" for name in ("degradation", "scale") if name in content]
    return {f"{name} ({', '.join(about)})" if about else name: value for name, value in found.items()}


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
