"""A pipeline, a batch and a corpus small enough for a test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from layer_scenes import scene, small_dit, wake

from polydit.core.diffusion import Objective, Terminal, make_scheduler
from polydit.tasks.layer_decomposition.formulation import Formulation
from polydit.tasks.layer_decomposition.pipeline import LayerDecompositionPipeline
from polydit.tasks.layer_decomposition.simulated import as_sample


@pytest.fixture
def objective() -> Objective:
    return Objective(prediction="x0", loss="l1", timesteps=Terminal(probability=1.0))


@pytest.fixture
def tiny(objective: Objective) -> Callable[..., LayerDecompositionPipeline]:
    """A pipeline in pixel space; asleep, it answers the cheap guess."""

    def build(awake: bool = True, **settings: Any) -> LayerDecompositionPipeline:
        model = small_dit()
        formulation = Formulation(**{"residual_scale": 0.2, "size": 64, "signal_gain": True, **settings})
        return LayerDecompositionPipeline(
            transformer=wake(model).eval() if awake else model.eval(),
            scheduler=make_scheduler("euler", objective),
            formulation=formulation.config(),
            parameterization=objective.config(),
        )

    return build


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two labelled scenes and one without a true foreground."""
    parts = [scene(seed=s) for s in range(3)]
    samples = [
        as_sample(p["image"], p["mask"], p["background"], p["foreground"] if i < 2 else None)
        for i, p in enumerate(parts)
    ]
    return torch.utils.data.default_collate(samples)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus with two photographs and three cut-outs in each split."""
    from polydit.core.data.corpus.manifest import Record, save_manifest

    rng, root, records = np.random.default_rng(0), tmp_path / "corpus", []
    for split in ("train", "val", "reserved"):
        for kind, count in (("photos", 2), ("cutouts", 3)):
            place = f"reserved/{kind}" if split == "reserved" else f"{kind}/{split}"
            (root / place).mkdir(parents=True)
            for number in range(count):
                side = 160 if kind == "photos" else 80
                low = rng.integers(60, 200, (side // 20, side // 20, 3), dtype=np.uint8)
                picture = Image.fromarray(low).resize((side, side), Image.Resampling.BICUBIC)
                if kind == "cutouts":
                    y, x = np.mgrid[:side, :side]
                    disc = (np.hypot(y - side / 2, x - side / 2) < side * (0.3 + 0.06 * number)) * 255
                    picture.putalpha(Image.fromarray(disc.astype(np.uint8)))
                file = f"{place}/{number}.png"
                picture.save(root / file)
                records.append(
                    Record(
                        file,
                        kind,
                        split,
                        "photo",
                        "test",
                        "1",
                        file,
                        "CC0-1.0",
                        side,
                        side,
                        1,
                        f"{split}{number}",
                    )
                )
    save_manifest(root, records)
    assert json.loads((root / "manifest.jsonl").read_text().splitlines()[0])
    return root
