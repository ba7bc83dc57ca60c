"""The loop of ``predict``, with a task from outside the repository that does next to nothing."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core import predict as predict_module
from polydit.core.adapters import LoraOptions, inject, save_lora
from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.errors import PolyditError
from polydit.core.load import load


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "c.PNG")):
        Image.new("RGB", (6, 4), (200, 100, 40 * number)).save(folder / name, format="PNG")
    return folder


@pytest.fixture
def run(dummy_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """``run(input, ..., "--seed", 1)`` gives the exit code and the lines on standard error."""

    def call(*words: object, weights: object = dummy_weights) -> tuple[int, list[str]]:
        code = main(
            [
                "dummy",
                "predict",
                "--output",
                str(tmp_path / "out"),
                "--weights",
                str(weights),
                *map(str, words),
            ]
        )
        return code, capsys.readouterr().err.strip().splitlines()

    return call


def results(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))


def test_a_folder_gives_one_result_each_and_a_record(run: Any, photos: Path, tmp_path: Path):
    (photos / "notes.txt").write_text("no picture")
    (photos / ".hidden.png").write_bytes(b"")
    code, lines = run("--input", photos, "--seed", 7)
    assert code == 0
    assert lines == [f"polydit: 3 done, in {tmp_path / 'out'}; 1 files of other kinds skipped (1 .txt)"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "c.png", "results.json"}
    assert Image.open(tmp_path / "out/a.png").getpixel((0, 0)) == (100, 50, 0)
    report = results(tmp_path)
    assert report["task"] == "dummy"
    assert report["settings"]["seed"] == 7
    assert report["settings"]["device"] == "cpu"
    assert report["settings"]["dtype"] == "float32"
    assert report["settings"]["amount"] == 0.5
    assert report["versions"]["torch"] == torch.__version__
    assert [record["status"] for record in report["inputs"]] == ["done"] * 3
    assert all(record["seconds"] >= 0 for record in report["inputs"])


def test_a_seed_means_the_same_for_a_file_alone_or_in_a_folder(run: Any, photos: Path, tmp_path: Path):
    run("--input", photos, "--seed", 3)
    together = {record["input"]: record["noise"] for record in results(tmp_path)["inputs"]}
    run("--input", photos / "b.jpg", "--seed", 3, "--overwrite")
    assert results(tmp_path)["inputs"][0]["noise"] == together[str(photos / "b.jpg")]
    run("--input", photos / "b.jpg", "--seed", 4, "--overwrite")
    assert results(tmp_path)["inputs"][0]["noise"] != together[str(photos / "b.jpg")]


def test_results_are_kept_unless_overwrite(run: Any, photos: Path, tmp_path: Path):
    run("--input", photos / "a.png")
    written = (tmp_path / "out/a.png").stat().st_mtime_ns
    code, lines = run("--input", photos, "--amount", 0.25)
    assert code == 0
    assert "2 done" in lines[-1]
    assert "1 kept as they were (--overwrite replaces them)" in lines[-1]
    assert "made with other settings: --amount 0.25 (was 0.5); --overwrite makes them anew" in lines[0]
    assert (tmp_path / "out/a.png").stat().st_mtime_ns == written
    statuses = {Path(record["input"]).stem: record["status"] for record in results(tmp_path)["inputs"]}
    assert statuses == {"a": "kept", "b": "done", "c": "done"}
    assert "noise" in results(tmp_path)["inputs"][0]  # the record of the run that made it
    code, lines = run("--input", photos, "--amount", 0.25, "--overwrite")
    assert "3 done" in lines[-1]
    assert Image.open(tmp_path / "out/a.png").getpixel((0, 0)) == (50, 25, 0)


def test_one_bad_file_among_several_is_told_and_the_others_go_on(run: Any, photos: Path, tmp_path: Path):
    (photos / "b.jpg").write_bytes(b"")
    code, lines = run("--input", photos)
    assert code == 2
    assert lines[0] == f"polydit: {photos / 'b.jpg'}: not a picture"
    assert "2 done" in lines[-1]
    assert "1 of 3 failed" in lines[-1]
    records = {Path(record["input"]).stem: record for record in results(tmp_path)["inputs"]}
    assert records["b"] == {
        "input": str(photos / "b.jpg"),
        "status": "failed",
        "error": f"{photos / 'b.jpg'}: not a picture",
    }
    assert (tmp_path / "out/c.png").is_file()


def test_what_a_failed_input_had_written_is_not_there(
    run: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def half(task: Any, pipe: Any, source: Path, writer: Any, options: Any) -> dict[str, Any]:
        writer.image(f"{source.stem}.png", Image.open(source).convert("RGB"))
        if source.stem == "b":
            raise PolyditError(f"{source}: the second half failed")
        return {"files": [f"{source.stem}.png"]}

    monkeypatch.setattr(predict_module, "run_one", half)
    assert run("--input", photos)[0] == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "c.png", "results.json"}


def test_a_bad_file_alone_is_the_error(run: Any, photos: Path, tmp_path: Path):
    (photos / "b.jpg").write_bytes(b"")
    code, lines = run("--input", photos / "b.jpg")
    assert code == 2
    assert lines == [f"polydit: error: {photos / 'b.jpg'}: not a picture"]
    assert list((tmp_path / "out").iterdir()) == []


def test_equal_stems_do_not_write_over_each_other(run: Any, photos: Path, tmp_path: Path):
    Image.new("RGB", (2, 2)).save(photos / "a.webp")
    code, lines = run("--input", photos)
    assert code == 2
    assert lines[0].startswith(f"polydit: {photos / 'a.webp'}: its results would have the names of those of")
    assert Image.open(tmp_path / "out/a.png").size == (6, 4)


def test_ctrl_c_keeps_what_is_complete_and_nothing_else(run: Any, photos: Path, tmp_path: Path):
    code, lines = run("--input", photos, "--fail-at", "b")
    assert code == 130
    assert lines == ["polydit: interrupted"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "results.json"}
    report = results(tmp_path)
    assert report["settings"]["interrupted"] is True
    assert [record["status"] for record in report["inputs"]] == ["done"]
    code, lines = run("--input", photos)
    assert code == 0
    assert "2 done" in lines[-1]


def test_a_full_disk_ends_the_run(run: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    code, lines = run("--input", photos)
    assert code == 2
    assert lines == [
        f"polydit: error: {tmp_path / 'out/a.png'}: the disk is full; free space or choose another --output"
    ]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_folder_of_the_inputs_is_no_place_for_results(
    photos: Path, dummy_weights: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "dummy",
        "predict",
        "--input",
        photos,
        "--output",
        photos,
        "--weights",
        dummy_weights,
        "--overwrite",
    ]
    assert main(list(map(str, words))) == 2
    assert f"--output {photos}: is the folder of a.png" in capsys.readouterr().err
    assert Image.open(photos / "a.png").getpixel((0, 0)) == (200, 100, 0)


def test_lora_changes_the_weights_in_use_and_says_how_much_matched(
    run: Any, photos: Path, dummy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    transformer = load(dummy_weights).transformer
    inject(transformer, LoraOptions(rank=2))
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    lora = save_lora(transformer, tmp_path / "l.safetensors")
    before = (dummy_weights / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    pipes = []
    monkeypatch.setattr("polydit_dummy.pipeline.DuskPipeline.to", lambda self, *_: pipes.append(self) or self)
    code, lines = run("--input", photos / "a.png", "--lora", lora, "--lora-scale", 0.5)
    assert code == 0, lines
    assert "keys matched, scale 0.5" in lines[0]
    assert results(tmp_path)["settings"]["lora_report"] in lines[0]
    plain = load(dummy_weights).transformer.state_dict()
    changed = [
        name for name, value in pipes[0].transformer.state_dict().items() if not value.equal(plain[name])
    ]
    assert changed
    assert (dummy_weights / "transformer/diffusion_pytorch_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("taylorseer", [0, 1, 4]),
        ("fora", [0, 2, 4]),
        ("fora:interval=3", [0, 3]),
        ("taylorseer:interval=2,first_enhance=1,order=2", [0, 2, 4]),
    ],
)
def test_a_cache_is_on_while_the_task_runs(
    run: Any, photos: Path, tmp_path: Path, name: str, full: list[int], monkeypatch: pytest.MonkeyPatch
):
    steps = 6

    def ask(self: Any, image: Any, amount: float) -> Any:
        for step in range(steps):
            self.transformer(torch.zeros(1, 3, 4, 4), torch.full((1,), 900.0 - 100 * step))
        return image

    monkeypatch.setattr("polydit_dummy.pipeline.DuskPipeline.__call__", ask)
    code, lines = run("--input", photos / "a.png", "--cache", name)
    assert code == 0, lines
    cache = results(tmp_path)["inputs"][0]["cache"]
    assert (cache["steps"], cache["full_steps"]) == (6, full)
    assert cache["computed"] == 4 * len(full) < cache["of"] == 24
    assert "left nothing out" not in lines[-1]
    if name == "taylorseer":
        steps = 2  # both of them full
        code, lines = run("--input", photos / "a.png", "--cache", name, "--overwrite")
        assert (code, "--cache taylorseer left nothing out; " in lines[-1]) == (0, True)
    steps = 1
    code, lines = run("--input", photos / "a.png", "--cache", name, "--overwrite")
    assert code == 2
    assert lines[0].startswith(f"polydit: error: --cache {name}: ")
    assert "in one step only" in lines[0]
    code, lines = run("--input", photos / "a.png", "--cache", "fora", "--cache=taylorseer", "--overwrite")
    assert (code, "given twice" in lines[0]) == (2, True)


def test_a_plan_from_a_study_is_a_cache(
    run: Any, photos: Path, tmp_path: Path, dummy_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    steps = 6

    def ask(self: Any, image: Any, amount: float) -> Any:
        for step in range(steps):
            self.transformer(torch.ones(1, 3, 4, 4), torch.full((1,), 900.0 - 100 * step))
        return image

    monkeypatch.setattr("polydit_dummy.pipeline.DuskPipeline.__call__", ask)
    words = ["--input", photos / "a.png", "--output", tmp_path / "study", "--weights", dummy_weights]
    assert main(list(map(str, ["dummy", "redundancy", *words, "--share", 0.5]))) == 0
    assert "1 runs of 6 steps" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "study").iterdir()}
    assert written == {"redundancy.json", "redundancy.png", "plan.json"}
    code, lines = run("--input", photos / "a.png", "--cache", tmp_path / "study" / "plan.json")
    assert code == 0, lines
    cache = results(tmp_path)["inputs"][0]["cache"]
    assert 4 <= cache["computed"] <= 12
    assert cache["of"] == 24
    steps = 8
    code, lines = run("--input", photos / "a.png", "--cache", tmp_path / "study" / "plan.json", "--overwrite")
    assert code == 2
    assert "plan: has 6 steps" in lines[0]
    from polydit.core.acceleration import Router

    steps = 6
    router = Router(steps, [f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "mlp")])
    with torch.no_grad():
        router.logits[1:] = -5.0
        router.logits[3] = 5.0
    router.save(tmp_path / "router.safetensors")
    code, lines = run("--input", photos / "a.png", "--cache", tmp_path / "router.safetensors", "--overwrite")
    assert code == 0, lines
    assert results(tmp_path)["inputs"][0]["cache"]["full_steps"] == [0, 3]
    steps = 8
    code, lines = run("--input", photos / "a.png", "--cache", tmp_path / "router.safetensors", "--overwrite")
    assert (code, "6 steps" in lines[0]) == (2, True), lines
    code, lines = run("--input", photos / "a.png", "--cache", tmp_path / "gone.json", "--overwrite")
    assert (code, "no such file" in lines[0]) == (2, True)
    code, lines = run("--input", photos / "a.png", "--cache", "tailor", "--overwrite")
    assert "tailor is not one of none, taylorseer" in lines[0]
    assert "did you mean taylorseer?" in lines[0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fora:intervall=2", "fora has no setting intervall; it has interval (did you mean interval?)"),
        ("fora:interval=two", "interval is a whole number, as in fora:interval=2"),
        ("fora:interval=1.5", "interval is a whole number, as in fora:interval=2"),
        ("first-block:threshold=x", "threshold is a number, as in first-block:threshold=0.08"),
        ("fora:interval", "interval is a whole number, as in fora:interval=2"),
        ("fora:interval=0", "interval 0"),
        ("tailor:interval=2", "did you mean taylorseer?"),
    ],
)
def test_mistakes_in_a_cache_s_settings_are_named(run: Any, photos: Path, name: str, said: str):
    code, lines = run("--input", photos / "a.png", "--cache", name)
    assert code == 2
    assert said in lines[0]


def test_missing_lora_and_absent_device_are_named(run: Any, photos: Path):
    assert run("--input", photos, "--lora", "gone.safetensors") == (
        2,
        ["polydit: error: --lora gone.safetensors: no such file"],
    )
    if not torch.cuda.is_available():
        code, lines = run("--input", photos, "--device", "cuda:3")
        assert code == 2
        assert lines[0].startswith("polydit: error: --device cuda:3: not on this machine")
        assert "there is cpu" in lines[0]


def test_weights_of_another_task_are_refused_before_anything_is_loaded(
    photos: Path, dummy_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [
        "super-resolution",
        "predict",
        "--input",
        photos,
        "--output",
        tmp_path / "o",
        "--weights",
        dummy_weights,
    ]
    assert main(list(map(str, words))) == 2
    assert f"{dummy_weights}: these are weights of dummy, not of super-resolution" in capsys.readouterr().err


def test_a_task_without_weights_says_how_to_get_some(
    eighth_task: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["dummy", "predict", "--input", str(photos), "--output", str(tmp_path / "o")]) == 2
    assert "--weights: dummy comes without weights in this installation" in capsys.readouterr().err


def test_nan_in_the_weights_is_refused(run: Any, photos: Path, tmp_path: Path, eighth_task: Path):
    from polydit_dummy.pipeline import DuskPipeline

    transformer = DiT(input_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2)
    with torch.no_grad():
        next(iter(transformer.blocks.parameters())).view(-1)[0] = np.nan
    DuskPipeline(transformer).save_pretrained(tmp_path / "nan")
    code, lines = run("--input", photos, weights=tmp_path / "nan")
    assert code == 2
    assert "diffusion_pytorch_model.safetensors: weight blocks.0" in lines[0]
    assert "holds NaN or infinity" in lines[0]


def test_results_of_other_inputs_are_not_taken_for_ones_own(
    eighth_task: Path, tmp_path: Path, dummy_weights: Path
):
    from argparse import Namespace
    from dataclasses import replace

    from polydit.core.results import existing_results
    from polydit.core.task import find_task

    for name in ("a.png", "a.b.png", "a_x2.png", "a_x4.png", "[a].png", "results.json"):
        (tmp_path / name).touch()

    def found(stem: str, *outputs: str, by_kind: dict | None = None, suffix: str = "jpg") -> list[str]:
        task = replace(find_task("dummy"), outputs=by_kind or outputs)
        source = Path(f"{stem}.{suffix}")
        return [p.name for p in existing_results(task, source, Namespace(output=tmp_path, scale=2))]

    assert found("a", "{stem}.*") == ["a.png"]
    assert found("a.b", "{stem}.*") == ["a.b.png"]
    assert found("[a]", "{stem}.*") == ["[a].png"]
    assert found("a", "{stem}_x{scale}.*") == ["a_x2.png"]
    assert found("a", "{stem}_*") == ["a_x2.png", "a_x4.png"]
    assert found("results", "{stem}.*") == []
    by_kind = {"image": ("{stem}.png",), "video": ("{stem}_x2.png",), ".glb": ("{stem}_x4.png",)}
    kinds = {"JPG": "a.png", "mp4": "a_x2.png", "glb": "a_x4.png", "unknown": "a.png"}
    assert all(found("a", by_kind=by_kind, suffix=suffix) == [name] for suffix, name in kinds.items())


@pytest.mark.parametrize("method", ["harmonica", "inner-loop", "mag-cache"])
def test_a_learned_cache_is_a_cache(
    run: Any,
    photos: Path,
    tmp_path: Path,
    dummy_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    method: str,
):
    steps = 6

    @torch.no_grad()
    def ask(self: Any, image: Any, amount: float) -> Any:
        for step in range(steps):
            answer = self.transformer(torch.ones(1, 3, 4, 4), torch.full((1,), 900.0 - 100 * step))
        assert not answer.sample.requires_grad
        return image

    monkeypatch.setattr("polydit_dummy.pipeline.DuskPipeline.__call__", ask)
    words = ["--input", photos / "a.png", "--output", tmp_path / "cache", "--weights", dummy_weights]
    words = ["dummy", "learn-cache", *words, "--passes", 3, "--method", method]
    assert main(list(map(str, words))) == 0
    told = capsys.readouterr().out
    assert "6 steps; relative error of the last state and answer" in told
    (file,) = (tmp_path / "cache").iterdir()
    assert f"--cache {file} --steps 6" in told
    code, lines = run("--input", photos / "a.png", "--cache", file)
    assert code == 0, lines
    cache = results(tmp_path)["inputs"][0]["cache"]
    assert cache["steps"] == 6
    assert (
        cache["computed"] < cache["of"] or method == "mag-cache"
    )  # whose ratios may say that nothing is alike
    assert main(list(map(str, words))) == 2  # the file is there
    assert "--overwrite" in capsys.readouterr().err
    steps = 1
    assert main(list(map(str, [*words, "--overwrite"]))) == 2
    assert "in one step only" in capsys.readouterr().err
    assert file.is_file()
    assert len(list(file.parent.iterdir())) == 1  # nothing half written
