"""The model card of an exported pipeline, and what is refused without one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from toy import CONFIG, TOY

from polydit.core.data.corpus.manifest import Record, save_manifest
from polydit.core.errors import PolyditError
from polydit.core.training.card import Card, CardOptions, corpus_summary, read_figures
from polydit.core.training.cli import run
from polydit.core.training.export import export


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs ``fit`` for two steps in an empty folder; returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def go(*words: str) -> Path:
        run(TOY, "fit", ["--config", "toy.yaml", "--name", "run", "--trainer.max_steps=2", *words])
        return tmp_path / "runs/toy/run"

    return go


def header(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_fit_writes_a_card_that_says_what_it_lacks(fit, capsys):
    pipeline = fit() / "pipeline"
    text = (pipeline / "README.md").read_text()
    assert "**This card is incomplete.** It lacks the licence and the training data." in text
    assert "polydit toy export --pipeline FOLDER --output NEW --license ... --data-source ..." in text
    said = capsys.readouterr().err
    assert "its model card is incomplete; before you hand it on: polydit toy export --pipeline" in said
    assert "license" not in header(pipeline)


def test_data_and_licence_in_the_config_make_the_card_complete(fit, capsys):
    folder = fit("--card.license=CC-BY-4.0", "--card.data_source", "eight grey squares: drawn by hand")
    pipeline = folder / "pipeline"
    assert "incomplete" not in capsys.readouterr().err
    top = header(pipeline)
    assert top["license"] == "cc-by-4.0"
    assert top["polydit"]["data_source"] == "eight grey squares: drawn by hand"
    text = (pipeline / "README.md").read_text()
    assert "incomplete" not in text
    assert "- optimiser steps: 2\n" in text
    assert "- parameters: 14,836\n" in text
    assert (
        "polydit toy fit --config toy.yaml --name run --trainer.max_steps=2 --card.license=CC-BY-4.0" in text
    )
    assert "| val/loss | " in text
    weights = pipeline / "transformer/diffusion_pytorch_model.safetensors"
    assert f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`" in text
    # and `export` asks for nothing more
    again = export(TOY, folder / "checkpoints/last.ckpt", "again", may_lack=False)
    assert header(again)["license"] == "cc-by-4.0"
    assert Card.read(TOY, again).missing == []
    assert not [file for file in again.rglob("*.json") if "_name_or_path" in file.read_text()]


def test_export_refuses_what_nobody_may_know_how_to_use(fit, tmp_path):
    checkpoint = fit("--export=false") / "checkpoints/last.ckpt"
    with pytest.raises(PolyditError) as caught:
        export(TOY, checkpoint, "new", may_lack=False)
    assert str(caught.value) == (
        "--license and --data-source: required; who gets this model must know what it was trained on and what they "
        "may do with it: add --license apache-2.0 --data-source 'my 200 photos of birds'"
    )
    with pytest.raises(PolyditError, match=r"^--data-source: required; "):
        export(TOY, checkpoint, "new", card=CardOptions(license="mit", data_source=" "), may_lack=False)
    assert not (tmp_path / "new").exists()
    made = export(TOY, checkpoint, "new", card=CardOptions("squares", "My own licence 1.0"), may_lack=False)
    assert header(made)["license"] == "other"
    assert header(made)["license_name"] == "My own licence 1.0"
    assert Card.read(TOY, made).options == CardOptions("squares", "My own licence 1.0")


def test_figures_come_from_what_evaluate_wrote(tmp_path):
    file = tmp_path / "figures.json"
    result = {"degradation": "bicubic", "scale": 4, "mean": {"psnr": 30.5, "gain": 1.25}, "pictures": []}
    file.write_text(json.dumps(result))
    assert read_figures(file) == {
        "psnr (degradation bicubic, scale 4)": 30.5,
        "gain (degradation bicubic, scale 4)": 1.25,
    }
    file.write_text('{"fid": 3, "note": "good", "done": true}')
    assert read_figures(file) == {"fid": 3.0}
    card = Card(TOY, CardOptions("squares", "mit"), figures={"fid": 3.0})
    assert "| fid | 3 |" in card.text(tmp_path, "title")
    for content, message in (("{", "cannot be read as JSON"), ('{"a": "b"}', "holds no numbers")):
        file.write_text(content)
        with pytest.raises(PolyditError, match=message):
            read_figures(file)


def test_a_corpus_tells_its_data_and_their_licences(tmp_path):
    sizes = {"version": "1", "source": "", "width": 9, "height": 9, "size": 1, "sha256": ""}
    records = [
        Record(f"photos/{n}.png", "photos", split, "photo", "birds-data", licence=licence, **sizes)
        for n, (split, licence) in enumerate(
            (("train", "CC0"), ("train", "GPL-3"), ("train", "CC0"), ("val", "X"))
        )
    ]
    save_manifest(tmp_path, records)
    assert corpus_summary({"data": {"path": str(tmp_path)}}) == (
        "3 photos from Debian packages (birds-data), gathered by `polydit corpus build`; licences: CC0 (2), GPL-3 (1)"
    )
    assert corpus_summary({"data": {"path": str(tmp_path / "none")}}) is None
    assert corpus_summary({}) is None


@pytest.mark.parametrize(
    "text", ["", "no header", "---\n[]\n---\n", "---\nlicense: mit\n---\n", "---\n: :\n---\n"]
)
def test_a_card_that_is_not_ours_is_an_empty_one(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert Card.read(TOY, tmp_path) == Card(TOY, CardOptions())


def test_facts_are_found_in_a_config_with_class_paths():
    from polydit.core.training.card import training_facts

    settings = {"ema": {"decay": 0.99}, "adapter": {"rank": 4}, "init_weights": "weights/base/transformer"}
    named = {"class_path": "toy.Toy", "init_args": settings}
    facts = [training_facts({"polydit": {"config": {"model": m}}}, "average")[0] for m in (settings, named)]
    assert facts[0] == facts[1]
    assert facts[0]["weights"] == "average over the training"
    assert facts[0]["adapter"] == "LoRA of rank 4"
