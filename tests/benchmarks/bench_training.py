"""Training: a step's speed and memory per layer, pictures per second from disk, and the time a resume takes.

    python tests/benchmarks/bench_training.py [--quick] [--parts step loader resume] [--layers 2 4] [--clock cpu]

``step``: a transformer of PixArt-Sigma's shape (28 layers, 0.6 B parameters) is measured at two small depths; the cost
of a layer is the difference, and the last columns are what 28 of them would take. ``loader``: the same pictures from
files, from shards and as cached latents. ``resume``: writing and reading a checkpoint, and the way to the next batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise
DEPTH = 28  # of PixArt-Sigma XL/2
TOKENS = 120  # of the text
OPTIONS: dict[str, dict[str, Any]] = {
    "full, float32": {},
    "full, no average": {"ema": None},
    "full, bfloat16": {"precision": "bf16-mixed"},
    "full, bfloat16, checkpointing": {"precision": "bf16-mixed", "gradient_checkpointing": True},
    "full, bfloat16, 8-bit AdamW": {"precision": "bf16-mixed", "kind": "adamw_8bit", "needs": "bitsandbytes"},
    "full, bfloat16, compiled": {"precision": "bf16-mixed", "compile": True, "slow": True},
    "LoRA 16, bfloat16": {"precision": "bf16-mixed", "lora": 16},
    "LoRA 16, bfloat16, offload": {"precision": "bf16-mixed", "lora": 16, "offload": True},
    "LoRA 16, bfloat16, int8 base": {
        "precision": "bf16-mixed",
        "lora": 16,
        "quantize": "int8",
        "needs": "torchao",
    },
    "LoRA 16, bfloat16, nf4 base": {
        "precision": "bf16-mixed",
        "lora": 16,
        "quantize": "nf4",
        "needs": "bitsandbytes",
    },
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="narrow layers, few pictures, few options")
    parser.add_argument("--parts", nargs="+", default=["step", "loader", "resume"])
    parser.add_argument(
        "--layers",
        type=int,
        nargs=2,
        default=(2, 4),
        help="the two depths; of LoRA, one block alone has another worst moment than two",
    )
    parser.add_argument("--batch", type=int, default=16 if torch.cuda.is_available() else 4)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts the steps' own seconds on a busy machine",
    )
    parser.add_argument("--steps", type=int, default=None, help="timed steps")
    parser.add_argument("--pictures", type=int, default=None)
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    console = Console(width=130)
    console.print(
        f"{machine}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}"
    )
    for part in options.parts:
        console.print({"step": step_table, "loader": loader_table, "resume": resume_table}[part](options))


# -- a training step -----------------------------------------------------------------------------------------


def step_table(options: argparse.Namespace) -> Table:
    """Speed and memory of a step, per layer."""
    table = Table(title=f"One training step, batch {options.batch}, 256 tokens" + " (narrow)" * options.quick)
    for column in (
        "option",
        "ms/layer",
        "ms besides",
        "MiB/layer",
        "MiB besides",
        "samples/s, 28",
        "GiB, 28",
    ):
        table.add_column(column, justify="left" if column == "option" else "right", no_wrap=True)
    steps = options.steps or (2 if options.quick else 4)
    for name, settings in OPTIONS.items():
        needs = settings.get("needs")
        if needs and importlib.util.find_spec(needs) is None:
            table.add_row(name, f"needs {needs}", *[""] * 5)
            continue
        if settings.get("slow") and (options.quick or not torch.cuda.is_available()):
            continue
        low, high = (
            in_a_process(measure_step, settings, layers, options.batch, steps, options.quick, options.clock)
            for layers in options.layers
        )
        print(f"{name}: {low}, {high}", file=sys.stderr, flush=True)  # it takes minutes
        if isinstance(high, str):
            table.add_row(name, high, *[""] * 5)
            continue
        between = options.layers[1] - options.layers[0]
        seconds, size = ((high[i] - low[i]) / between for i in (0, 1))
        besides = [low[i] - each * options.layers[0] for i, each in enumerate((seconds, size))]
        whole = [rest + DEPTH * each for rest, each in zip(besides, (seconds, size), strict=True)]
        table.add_row(
            name,
            f"{1e3 * seconds:.0f}",
            f"{1e3 * besides[0]:.0f}",
            f"{size / 2**20:.0f}",
            f"{besides[1] / 2**20:.0f}",
            f"{options.batch / whole[0]:.3g}",
            f"{whole[1] / 2**30:.2f}",
        )
    return table


def pixart(layers: int, narrow: bool) -> torch.nn.Module:
    """PixArt-Sigma XL/2 at 256 pixels, with fewer layers and random weights."""
    from diffusers import PixArtTransformer2DModel

    from polydit.core.backbones.pretrained.pixart import PretrainedPixArt

    heads = 4 if narrow else 16
    model = PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=72, cross_attention_dim=72 * heads, in_channels=4, out_channels=8,
        num_layers=layers, sample_size=32, patch_size=2, caption_channels=4096, use_additional_conditions=False,
    )  # fmt: skip
    model.register_to_config(_name_or_path="random")
    return PretrainedPixArt(model)


def measure_step(
    settings: dict[str, Any], layers: int, batch: int, steps: int, narrow: bool, clock: str
) -> tuple[float, float] | str:
    """Seconds of a step and the most bytes that were allocated at once; or why it does not run here."""
    from polydit.core.adapters import LoraOptions
    from polydit.core.diffusion import Objective
    from polydit.core.diffusion.parameterization import Parameterization
    from polydit.core.errors import PolyditError
    from polydit.core.training import EMA, DiffusionModule, EmaOptions, OptimizerOptions
    from polydit.core.training.optim import build_optimizer

    class Latents(DiffusionModule):
        """Trains on what it is given."""

        def target(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
            return given["latents"]

        def condition(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"encoder_hidden_states": given["text"]}

    now = time.process_time if clock == "cpu" else time.perf_counter
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    given = {
        "latents": torch.randn(batch, 4, 32, 32, generator=generator),
        "text": torch.randn(batch, TOKENS, 4096, generator=generator),
    }

    def run(meter: Callable[[], int]) -> tuple[float, float]:
        backbone = pixart(layers, narrow)
        published = Parameterization.from_config(backbone.parameterization_config)
        module = Latents(
            backbone,
            Objective(published.path, published.prediction, time=published.time),
            optimizer=OptimizerOptions(kind=settings.get("kind", "adamw")),
            ema=settings.get("ema", EmaOptions()),
            adapter=LoraOptions(rank=settings["lora"], targets="linear") if "lora" in settings else None,
            gradient_checkpointing=settings.get("gradient_checkpointing", False),
            compile=settings.get("compile", False),
            quantize=settings.get("quantize"),
            offload=settings.get("offload", False),
        )
        module.prepare()
        module.to(device).train()
        optimizer = build_optimizer(module, module.optimizer_options)
        average = EMA(module.ema_options) if module.ema_options else None
        trainer = type("Steps", (), {"global_step": 0})()
        if average:
            average.on_fit_start(trainer, module)
        moved = {name: value.to(device) for name, value in given.items()}
        autocast = torch.autocast(device.type, torch.bfloat16, enabled="precision" in settings)
        times = []
        for _ in range(steps + 1):  # the first one allocates and compiles
            synchronize(device)
            began = now()
            with autocast:
                terms, _ = module.losses(moved)
            sum(terms.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            trainer.global_step += 1
            if average:
                average.on_train_batch_end(trainer, module, None, None, 0)
            synchronize(device)
            times.append(now() - began)
        return min(times[1:]), float(meter())  # the least: neighbours on the machine only add

    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return run(torch.cuda.max_memory_allocated)
        seconds, _ = run(lambda: 0)
        return seconds, float(allocated(lambda: run(lambda: 0)))
    except (PolyditError, NotImplementedError, RuntimeError) as error:
        return str(error).splitlines()[0][:70]


def synchronize(device: torch.device) -> None:
    """Empty the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def allocated(action: Callable[[], Any]) -> int:
    """The most bytes that torch's allocator had given out at once on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    now = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def in_a_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a process of its own: what one option leaves allocated must not burden the next."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["polydit.core.training", "diffusers.models.transformers.pixart_transformer_2d"]
    )
    with context.Pool(1) as pool:
        return pool.apply(call, arguments)


# -- pictures from disk --------------------------------------------------------------------------------------


def loader_table(options: argparse.Namespace) -> Table:
    """Pictures per second, each way to read them."""
    count = options.pictures or (16 if options.quick else 96)
    table = Table(title=f"Loader: {count} pictures of about 1.5 megapixels, buckets around 512, one worker")
    for column in ("source", "pictures/s", "MiB on disk"):
        table.add_column(column, justify="left" if column == "source" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for name, rate, size in loaders(Path(folder), count):
            table.add_row(name, f"{rate:.1f}", f"{size / 2**20:.1f}")
    return table


def loaders(folder: Path, count: int) -> Iterator[tuple[str, float, int]]:
    """Name, pictures per second and bytes on disk of each source."""
    from diffusers import AutoencoderKL

    from polydit.core.autoencoders import DiffusersAutoencoder
    from polydit.core.data.buckets import BucketedPictures, bucket_loader
    from polydit.core.data.latents import cache_latents

    write_pictures(folder / "pictures", count)
    pictures = BucketedPictures(folder / "pictures", 512, 64)

    def rate(data: Any) -> float:
        loader = bucket_loader(data, pictures.bucket_of, None, 4, num_workers=1)
        began = time.perf_counter()
        seen = sum(4 for _ in loader)
        return seen / (time.perf_counter() - began)

    yield "files: decode, scale, cut", rate(pictures), size_of(folder / "pictures")
    torch.manual_seed(0)
    channels = (16, 32, 32, 32)  # of an autoencoder far smaller than a real one, which would only be slower
    vae = AutoencoderKL(
        block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * 4, norm_num_groups=8,
        up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4,
    )  # fmt: skip
    autoencoder = DiffusersAutoencoder(vae.eval())
    began = time.perf_counter()
    latents = cache_latents(pictures, autoencoder, folder / "cache")
    first = len(pictures) / (time.perf_counter() - began)
    yield "the same and a small autoencoder, filling the cache", first, size_of(folder / "cache")
    yield "cached latents", rate(latents), size_of(folder / "cache")
    if importlib.util.find_spec("litdata") is not None:
        from torch.utils.data import DataLoader

        from polydit.core.data.streaming import ShardedPictures, build_shards

        shards = ShardedPictures(build_shards(folder / "pictures", folder / "shards"))
        loader = DataLoader(shards, None, sampler=shards.order(0, 0), num_workers=1)
        began = time.perf_counter()
        seen = sum(1 for _ in loader)
        yield "shards: decode only", seen / (time.perf_counter() - began), size_of(folder / "shards")


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files with the detail of a photograph: pictures of scikit-image, enlarged."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    sources = [
        Image.fromarray(picture)
        for picture in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    ]
    for number in range(count):
        picture = sources[number % len(sources)]
        factor = (1.5e6 / (picture.width * picture.height)) ** 0.5
        size = (round(picture.width * factor) + number, round(picture.height * factor))
        picture.resize(size, Image.Resampling.LANCZOS).save(folder / f"{number:04d}.jpg", quality=92)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -- going on ------------------------------------------------------------------------------------------------


def resume_table(options: argparse.Namespace) -> Table:
    """Seconds that a checkpoint and the place in the data take."""
    table = Table(title="Resume")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("", justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for row in in_a_process(measure_resume, folder, options.quick):
            table.add_row(*row)
    return table


def measure_resume(folder: str, quick: bool) -> list[tuple[str, str, str]]:
    """Write and read the checkpoint of a run through the Trainer, and find its place in ten million samples."""
    from lightning.pytorch import LightningDataModule, Trainer
    from torch.utils.data import Dataset

    from polydit.core.backbones import make_dit
    from polydit.core.training import EMA, DiffusionModule
    from polydit.core.training.checkpoints import Checkpoints
    from polydit.core.training.cli import quiet
    from polydit.core.training.resume import RandomState, resumable_loader

    class Noise(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 10_000 if quick else 10_000_000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"latents": torch.zeros(4, 8, 8), "label": torch.tensor(index % 1000)}

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return resumable_loader(Noise(), self.trainer, 1)

    class Latents(DiffusionModule):
        def target(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
            return given["latents"]

        def condition(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"class_labels": given["label"]}

    def fit(steps: int, checkpoint: Path | None) -> float:
        torch.manual_seed(0)
        module = Latents(make_dit("SiT-S/2" if quick else "SiT-B/2", input_size=8))
        runner = Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[EMA(), RandomState(), saver],
        )  # fmt: skip
        began = time.perf_counter()
        runner.fit(module, datamodule=Data(), ckpt_path=checkpoint, weights_only=True)
        return time.perf_counter() - began

    quiet()
    warnings.filterwarnings("ignore", ".*but have no `val_dataloader`.*")
    rows: list[tuple[str, str, str]] = []
    saver = Checkpoints(folder, every_minutes=None)
    saves: list[float] = []
    save = saver.save

    def timed(trainer: Any, path: Path) -> None:
        began = time.perf_counter()
        save(trainer, path)
        saves.append(time.perf_counter() - began)

    saver.save = timed  # type: ignore[method-assign]
    fit(1, None)  # first of all: what is imported and allocated once
    size = saver.last.stat().st_size
    speed = size / 2**20 / saves[-1]
    rows.append(("write a checkpoint", f"{saves[-1]:.2f}", f"{size / 2**20:.0f} MiB, {speed:.0f} MiB/s"))
    fresh = fit(1, None)
    rows.append(("a run of one step, fresh", f"{fresh:.2f}", ""))
    resumed = fit(2, saver.last)
    rows.append(
        ("the same, resumed from the checkpoint", f"{resumed:.2f}", f"{resumed - fresh:+.2f} for reading it")
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(("", "", f"{peak:.1f} GiB at most, {size / 2**30:.1f} GiB of them the state"))
    return rows


if __name__ == "__main__":
    main()
