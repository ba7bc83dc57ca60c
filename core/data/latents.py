"""Latents and text embeddings that were computed before the training: in DiT4SR's layout, or cached by us."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import PolyditError
from .cache import CachedTensors, Content, TensorCache, fill, fingerprint
from .pictures import sample_generator

if TYPE_CHECKING:
    from ..autoencoders import Autoencoder
    from .buckets import BucketedPictures

__all__ = ["CachedCaptions", "LatentPairs", "cache_latents", "cache_texts"]


def cache_latents(
    pictures: BucketedPictures,
    autoencoder: Autoencoder,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 4,
    rank: int = 0,
    world: int = 1,
) -> CachedTensors:
    """Encode what a cache lacks of these pictures; one ``latents`` (C, h, w) for each.

    Args:
        pictures: The pictures.
        autoencoder: On the device that is to do the work.
        folder: Of the cache; it may hold other caches too.
        dtype: Of the latents on disk.
        batch_size: Pictures at once.
        rank: Number of this process, which encodes its share.
        world: How many processes fill the cache; wait for all of them before reading.

    Returns:
        The latents as a data set, in the order of the pictures.
    """
    settings = {
        "kind": "latents",
        "autoencoder": fingerprint(autoencoder),  # type: ignore[arg-type]
        "dtype": str(dtype),
        **pictures.settings,
    }
    cache = TensorCache(folder, settings)
    sizes = [pictures.sizes[bucket] for bucket in pictures.bucket_of]
    contents: list[list[Content]] = [
        [path, f"{h}x{w}"] for path, (h, w) in zip(pictures.paths, sizes, strict=True)
    ]
    device = next((p.device for p in autoencoder.parameters()), torch.device("cpu"))  # type: ignore[attr-defined]

    def encode(numbers: list[int]) -> list[dict[str, Tensor]]:
        pixels = torch.stack([pictures.pixels(number) for number in numbers]).to(device)
        return [{"latents": latents.to(dtype)} for latents in autoencoder.encode(pixels)]

    options = {"batch_size": batch_size, "rank": rank, "world": world, "title": "latents"}
    fill(cache, contents, encode, group=lambda number: sizes[number], **options)  # type: ignore[arg-type]
    return CachedTensors(cache, contents)


def cache_texts(
    texts: Sequence[str],
    encode: Callable[[list[str]], Mapping[str, Tensor]],
    encoder: str,
    folder: str | Path,
    *,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
    **settings: Any,
) -> CachedTensors:
    """Embed what a cache lacks of these texts; equal texts are embedded once.

    Args:
        texts: One for each sample.
        encode: The embeddings of several texts: tensors by name, each (B, ...).
        encoder: What tells this encoder from others, such as its `fingerprint`.
        folder: Of the cache; it may hold other caches too.
        batch_size: Texts at once.
        rank: Number of this process, which embeds its share.
        world: How many processes fill the cache; wait for all of them before reading.
        settings: What else the embeddings depend on, such as the longest text.

    Returns:
        The embeddings as a data set, in the order of the texts.
    """
    cache = TensorCache(folder, {"kind": "texts", "encoder": encoder, **settings})
    different = sorted(set(texts))

    def compute(numbers: list[int]) -> list[dict[str, Tensor]]:
        made = encode([different[number] for number in numbers])
        return [{name: value[row] for name, value in made.items()} for row in range(len(numbers))]

    fill(cache, different, compute, batch_size=batch_size, rank=rank, world=world, title="texts")
    return CachedTensors(cache, list(texts))


class CachedCaptions(Dataset[dict[str, Any]]):
    """Cached latents with the cached embeddings of their captions.

    Args:
        latents: Of `cache_latents`.
        texts: Of `cache_texts`, in the same order; the empty text must be cached too if captions are dropped.
        drop_caption: How often the caption is replaced by the empty one.
        seed: Of these draws; sample number ``epoch * len(dataset) + i`` draws anew in each epoch.
    """

    def __init__(
        self, latents: CachedTensors, texts: CachedTensors, *, drop_caption: float = 0.0, seed: int = 0
    ) -> None:
        if len(latents) != len(texts):
            raise ValueError(f"{len(latents)} latents and {len(texts)} captions do not belong together")
        self.latents, self.texts, self.drop_caption, self.seed = latents, texts, drop_caption, seed

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = index % len(self)
        drop = torch.rand((), generator=sample_generator(self.seed, index)).item() < self.drop_caption
        embeddings = self.texts.cache.get("") if drop else self.texts[item]
        return {**embeddings, **self.latents[item]}


class LatentPairs(Dataset[dict[str, Any]]):
    """Precomputed latents and text embeddings in DiT4SR's layout (arXiv:2503.23580), paired by stem.

    ``latent_hr/NAME.pt`` and ``latent_lr/NAME.pt`` (16, 64, 64), already shifted and scaled; if they are there, also
    ``prompt_embeds/NAME.pt`` (154, 4096), ``pooled_prompt_embeds/NAME.pt`` (2048,), and for dropped captions
    ``NULL_prompt_embeds.pt`` and ``NULL_pooled_prompt_embeds.pt`` in the root.

    Args:
        root: the folder.
        drop_caption: how often the caption is replaced by the empty one.
        seed: of these draws.

    Raises:
        PolyditError: no latents, a file without partner, or a file that is not a tensor.
    """

    _NULL = ("prompt_embeds", "pooled_prompt_embeds")

    def __init__(self, root: str | Path, *, drop_caption: float = 0.0, seed: int = 0) -> None:
        self.root, self.drop_caption, self.seed = Path(root).expanduser(), drop_caption, seed
        self.stems = sorted(path.stem for path in (self.root / "latent_hr").glob("*.pt"))
        if not self.stems:
            raise PolyditError(
                f"{self.root}: no latents (latent_hr/*.pt) in this folder; give a precomputed data set"
            )
        self.captioned = (self.root / "prompt_embeds").is_dir()
        folders = ["latent_lr", *(self._NULL if self.captioned else ())]
        for folder in folders:
            for stem in self.stems:
                if not (self.root / folder / f"{stem}.pt").is_file():
                    raise PolyditError(
                        f"{self.root / 'latent_hr' / stem}.pt: has no partner in {folder}; compute it"
                    )
        if drop_caption and not all((self.root / f"NULL_{name}.pt").is_file() for name in self._NULL):
            raise PolyditError(
                f"{self.root}: drop_caption needs NULL_prompt_embeds.pt and its pooled twin; compute them"
            )

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stem = self.stems[index % len(self.stems)]
        sample: dict[str, Any] = {"stem": stem}
        for folder in ("latent_hr", "latent_lr"):
            sample[folder] = self._tensor(self.root / folder / f"{stem}.pt")
        if self.captioned:
            chance = torch.rand((), generator=sample_generator(self.seed, index)).item()
            for name in self._NULL:
                empty = self.root / f"NULL_{name}.pt"
                sample[name] = self._tensor(
                    empty if chance < self.drop_caption else self.root / name / f"{stem}.pt"
                )
        return sample

    @staticmethod
    def _tensor(path: Path) -> Tensor:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged files
            raise PolyditError(
                f"{path}: is not a saved tensor ({type(error).__name__}); compute it again"
            ) from error
        if not isinstance(value, Tensor):
            raise PolyditError(f"{path}: holds a {type(value).__name__}, not a tensor; compute it again")
        return value
