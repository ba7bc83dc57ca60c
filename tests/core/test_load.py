"""`polydit.load` on folders that are right, wrong, damaged or hostile."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import polydit
from polydit.core.errors import PolyditError
from polydit.core.load import locate, read_index
from polydit.core.task import System, find_tasks


@pytest.fixture
def folder(dummy_weights: Path, tmp_path: Path) -> Path:
    """A copy of a saved pipeline that a test may spoil."""
    return Path(shutil.copytree(dummy_weights, tmp_path / "dusk"))


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def edit_json(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(file: Path, change: Callable[[dict], None]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def test_a_saved_pipeline_comes_back_as_it_was(folder: Path):
    pipe = polydit.load(folder)
    assert type(pipe).__name__ == "DuskPipeline"
    state = pipe.transformer.state_dict()
    saved = load_file(folder / WEIGHTS)
    assert state.keys() == saved.keys()
    assert all(state[name].equal(value) for name, value in saved.items())


@pytest.mark.parametrize("shown", [True, False])
def test_loading_shows_no_bar_and_leaves_diffusers_setting_alone(
    folder: Path, shown: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from diffusers.utils import logging

    monkeypatch.setattr(logging, "_tqdm_active", shown)
    polydit.load(folder)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() is shown


def test_precision_can_be_chosen(folder: Path):
    assert polydit.load(folder, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16


def test_index_names_task_and_components(folder: Path):
    index = read_index(folder)
    assert index.task.name == "dummy"
    assert index.components == {"transformer": ("polydit.core.backbones.dit", "DiT")}


def spoil_nan(folder: Path) -> None:
    edit_weights(folder / WEIGHTS, lambda state: next(iter(state.values())).view(-1)[:1].fill_(float("nan")))


def spoil_infinity_in_half(folder: Path) -> None:
    def change(state: dict) -> None:
        name = max(state, key=lambda name: state[name].numel())
        state[name] = state[name].half()
        state[name].view(-1)[-1] = float("-inf")

    edit_weights(folder / WEIGHTS, change)


def spoil_truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def spoil_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "transformer/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def spoil_other_backbone(folder: Path) -> None:
    def change(state: dict) -> None:
        for name in [name for name in state if name.startswith("blocks.1.")]:
            del state[name]
        state["unet.weight"] = torch.zeros(1)

    edit_weights(folder / WEIGHTS, change)


def spoil_shape(folder: Path) -> None:
    edit_json(folder / "transformer/config.json", lambda config: config.update(hidden_size=32))


def spoil_foreign_import(folder: Path) -> None:
    edit_json(folder / "model_index.json", lambda index: index.update(transformer=["os", "system"]))


def spoil_unknown_class(folder: Path) -> None:
    edit_json(
        folder / "model_index.json",
        lambda index: index.update(transformer=["polydit.core.backbones.dit", "Nothing"]),
    )


def spoil_diffusers_pipeline(folder: Path) -> None:
    edit_json(folder / "model_index.json", lambda index: index.update(_class_name="FluxPipeline"))


def spoil_custom_code(folder: Path) -> None:
    edit_json(
        folder / "model_index.json", lambda index: index.update(_class_name=["pipeline", "DuskPipeline"])
    )


def spoil_component_gone(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")


def spoil_weights_gone(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def spoil_shard_gone(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"pos_embed": "part-2-of-2.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")


def spoil_json(folder: Path) -> None:
    (folder / "model_index.json").write_text("{", encoding="utf-8")


def spoil_only_backbone(folder: Path) -> None:
    for file in (folder / "transformer").iterdir():
        file.rename(folder / file.name)
    (folder / "transformer").rmdir()
    (folder / "model_index.json").unlink()


def spoil_run_folder(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last.ckpt").write_bytes(b"")


def spoil_empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


SPOILS = {
    spoil_nan: r"transformer/diffusion_pytorch_model.safetensors: weight \S+ of transformer holds NaN or infinity",
    spoil_infinity_in_half: r"weight \S+ of transformer holds NaN or infinity",
    spoil_truncate: r"transformer/diffusion_pytorch_model.safetensors: damaged",
    spoil_pickle: r"diffusion_pytorch_model.bin: pickled weights, which could run code, are refused",
    spoil_other_backbone: r"transformer: lacks \d+ weights of DiT \(blocks.1.*of another backbone",
    spoil_shape: r"dusk: weight \S+ is \[\d[\d, ]*\], and its config makes it \[\d.*\]; .* another backbone",
    spoil_foreign_import: r"transformer would be imported from os, which is neither PolyDiT nor an installed task",
    spoil_unknown_class: r"transformer is a Nothing of polydit.core.backbones.dit, which this version does not have",
    spoil_diffusers_pipeline: r"holds a FluxPipeline, which is no pipeline of an installed task",
    spoil_custom_code: r"no pipeline of an installed task",
    spoil_component_gone: r"transformer: missing; .* is incomplete",
    spoil_weights_gone: r"transformer: holds no \*.safetensors; .* is incomplete",
    spoil_shard_gone: r"part-2-of-2.safetensors: missing",
    spoil_json: r"model_index.json: cannot be read as JSON",
    spoil_only_backbone: r"a saved DiT alone, not a pipeline; train from it with --model.init_weights",
    spoil_run_folder: r"holds training checkpoints; `polydit <task> export --ckpt_path \S+last.ckpt",
    spoil_empty: r"holds no model_index.json",
}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__.removeprefix("spoil_"))
def test_what_is_wrong_with_a_folder_is_said(spoil: Callable[[Path], None], folder: Path):
    spoil(folder)
    with pytest.raises(PolyditError, match=SPOILS[spoil]) as caught:
        polydit.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not BOOM


def test_the_folder_above_names_the_pipeline_inside(folder: Path):
    with pytest.raises(PolyditError, match=f"but {folder} is one; give that folder"):
        polydit.load(folder.parent)


def test_another_task_is_named(folder: Path):
    with pytest.raises(PolyditError, match="these are weights of dummy, not of super-resolution"):
        polydit.load(folder, task="super-resolution")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("last.ckpt", "a pickled checkpoint, which could run code; .* export --ckpt_path"),
        ("lora.safetensors", "a single file of weights; .*--lora"),
        ("notes.txt", "a file, and a folder with a model_index.json is needed"),
    ],
)
def test_a_file_is_not_a_pipeline(name: str, line: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PolyditError, match=line):
        polydit.load(tmp_path / name)


def test_a_missing_folder_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for path in (tmp_path / "gone", str(tmp_path / "gone"), "./gone", "gone"):
        with pytest.raises(PolyditError, match="no such folder; give a folder"):
            polydit.load(path)


def test_a_hub_id_is_fetched_without_pickles_or_code(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert type(polydit.load("someone/dusk-1.0")).__name__ == "DuskPipeline"
    assert asked["repository"] == "someone/dusk-1.0"
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["patterns"])


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        PolyditError, match=r"someone/dusk: no such folder here, and not to be had from the hub"
    ):
        locate("someone/dusk")


BOOM: list[str] = []


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return BOOM.append, ("boom",)


def test_a_system_may_have_a_pipeline_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch):
    tasks = find_tasks()[0]
    dummy = tasks["dummy"]
    own = System("dawn", "Dawn", None, "dawn.yaml", pipeline="polydit_dummy.dawn:DawnPipeline")
    changed = {**tasks, "dummy": replace(dummy, systems=(*dummy.systems, own))}
    monkeypatch.setattr("polydit.core.load.find_tasks", lambda: (changed, []))
    assert read_index(folder).pipeline == dummy.pipeline
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "DawnPipeline"}))
    assert read_index(folder).pipeline == own.pipeline
    assert read_index(folder).task.name == "dummy"
