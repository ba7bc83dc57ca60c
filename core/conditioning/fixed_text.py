"""Texts that are chosen once for a whole model: their embeddings, kept beside it, so that no text encoder is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import PolyditError

__all__ = ["FixedText"]

CLIP_TOKENS = 77


class FixedText(ModelMixin, ConfigMixin):
    """Embeddings of a few texts, by name; a component of a pipeline like any other.

    A model whose condition is a picture reads the same words every time: a description of what is wanted, one of what
    is not (for guidance), and the empty text.

    Args:
        texts: What was embedded, by name; ``prompt``, ``negative`` and ``empty`` in what :meth:`from_pipeline` makes.
            The embeddings are in the order of the names' letters, as a saved configuration is.
        tokens: Tokens of each.
        width: Of the tokens' embeddings.
        pooled_width: Of the pooled embedding; None for none.
    """

    @register_to_config
    def __init__(
        self, texts: dict[str, str], tokens: int, width: int, pooled_width: int | None = None
    ) -> None:
        super().__init__()
        count = len(texts)
        self.encoder_hidden_states = nn.Parameter(torch.zeros(count, tokens, width), requires_grad=False)
        self.pooled_projections = None
        if pooled_width is not None:
            self.pooled_projections = nn.Parameter(torch.zeros(count, pooled_width), requires_grad=False)

    def forward(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What a transformer reads, a text for each sample.

        Args:
            names: Which text each sample has.

        Returns:
            ``encoder_hidden_states`` (B, tokens, width) and, if there are, ``pooled_projections`` (B, pooled_width).
        """
        known = sorted(self.config.texts)
        rows = torch.tensor([known.index(name) for name in names], device=self.encoder_hidden_states.device)
        found = {"encoder_hidden_states": self.encoder_hidden_states[rows]}
        if self.pooled_projections is not None:
            found["pooled_projections"] = self.pooled_projections[rows]
        return found

    @classmethod
    def from_pipeline(
        cls,
        source: str | Path,
        prompt: str = "",
        negative_prompt: str = "",
        max_sequence_length: int = 77,
        dtype: str = "bfloat16",
    ) -> FixedText:
        """Embed with the text encoders of a Stable Diffusion 3 or FLUX folder, which are then forgotten.

        A pipeline that was saved with a FixedText has no encoders any more; of it, that one is read. While the default
        device is ``meta`` only configurations are read, and there are shapes without values.

        Args:
            source: Folder in diffusers format with text encoders, tokenizers, and the transformer's configuration.
            prompt: What is wanted.
            negative_prompt: What is not.
            max_sequence_length: Tokens of T5; of Stable Diffusion 3 behind the 77 of CLIP, and as many zeros if the
                folder is without T5.
            dtype: In which the encoders compute.

        Raises:
            PolyditError: no such pipeline there, it is damaged, or it was saved with other texts.
        """
        texts = {"empty": "", "negative": negative_prompt, "prompt": prompt}
        folder = Path(source).expanduser()
        try:
            index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
            config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PolyditError(
                f"{source}: no Stable Diffusion 3 pipeline in diffusers format ({error}); give its folder"
            ) from error
        kept = index.get("text")
        if isinstance(kept, list) and kept[-1] == cls.__name__:
            return cls._saved(folder, texts)
        family = index.get("_class_name")
        if family not in ("StableDiffusion3Pipeline", "FluxPipeline"):
            raise PolyditError(
                f"{source}: a {family}, and texts are embedded with Stable Diffusion 3's encoders or FLUX's; "
                "give its folder, or a FixedText that was saved"
            )
        sizes = (
            max_sequence_length + (0 if family == "FluxPipeline" else CLIP_TOKENS),
            config["joint_attention_dim"],
            config["pooled_projection_dim"],
        )
        if torch.get_default_device().type == "meta":
            return cls(texts, *sizes)
        made = cls(texts, *sizes)
        absent = {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}
        hidden, pooled = _embed(folder, config, absent, list(texts.values()), max_sequence_length, dtype)
        with torch.no_grad():
            made.encoder_hidden_states.copy_(hidden)
            made.pooled_projections.copy_(pooled)  # type: ignore[union-attr]
        return made

    @classmethod
    def _saved(cls, folder: Path, texts: dict[str, str]) -> FixedText:
        """What a pipeline was saved with, if it is these texts."""
        try:
            config = cls.load_config(folder / "text", local_files_only=True)
            on_meta = torch.get_default_device().type == "meta"
            made = cls.from_config(config) if on_meta else cls.from_pretrained(folder / "text")
        except (OSError, ValueError, SafetensorError) as error:
            line = " ".join(str(error).split())[:200]
            raise PolyditError(f"{folder / 'text'}: cannot be used ({line}); get the folder again") from error
        if made.config.texts != texts:
            raise PolyditError(
                f"{folder}: was saved with the texts {made.config.texts} and has no encoders for {texts}; "
                "use the same, or give the folder of the model that it was trained on"
            )
        return made

    @classmethod
    def from_stable_diffusion(
        cls, source: str | Path, texts: dict[str, str], padded: bool = False, dtype: str = "float32"
    ) -> FixedText:
        """Embed with the text encoder of a Stable Diffusion 1 or 2 folder, which is then forgotten.

        While the default device is ``meta`` only configurations are read, and there are shapes without values.

        Args:
            source: Folder in diffusers format with ``text_encoder`` and ``tokenizer``.
            texts: What to embed, by name.
            padded: Fill up to the encoder's length; without it all texts must have the same number of tokens, and the
                empty one has two.
            dtype: In which the encoder computes.

        Raises:
            PolyditError: no such encoder there, it is damaged, or the texts differ in length.
        """
        folder = Path(source).expanduser()
        names = sorted(texts)
        try:
            from transformers import AutoTokenizer, CLIPTextModel
            from transformers.utils import logging

            logging.disable_progress_bar()
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            found = tokenizer(
                [texts[name] for name in names],
                padding="max_length" if padded else False,
                max_length=tokenizer.model_max_length,
                truncation=True,
            )["input_ids"]
            if torch.get_default_device().type == "meta":
                config = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))
                return cls(texts, len(found[0]), config["hidden_size"])
            encoder = CLIPTextModel.from_pretrained(
                folder / "text_encoder", local_files_only=True, dtype=getattr(torch, dtype)
            )
            with torch.no_grad():
                hidden = encoder(torch.tensor(found))[0].float()
        except Exception as error:  # of transformers and tokenizers: each has its own for a broken file
            line = " ".join(str(error).split())[:200]
            raise PolyditError(
                f"{folder}: no text encoder of Stable Diffusion that can be used ({line}); get the folder again"
            ) from error
        made = cls(texts, hidden.shape[1], hidden.shape[2])
        with torch.no_grad():
            made.encoder_hidden_states.copy_(hidden)
        return made


def _embed(
    folder: Path, config: dict[str, Any], absent: dict[str, None], texts: list[str], length: int, dtype: str
) -> tuple[Tensor, Tensor]:
    import diffusers
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    flux = config.get("_class_name") == "FluxTransformer2DModel"
    with torch.device("meta"):
        # Stable Diffusion 3's pipeline asks its transformer for a width.
        shell = None if flux else diffusers.SD3Transformer2DModel.from_config(config)
    cpu = torch.device("cpu")
    try:
        pipe = getattr(diffusers, "FluxPipeline" if flux else "StableDiffusion3Pipeline").from_pretrained(
            folder,
            **{"vae": None, "transformer": shell, **absent},
            dtype=getattr(torch, dtype),
            local_files_only=True,
        )
        with torch.no_grad():
            if flux:
                hidden, pooled, _ = pipe.encode_prompt(texts, None, device=cpu, max_sequence_length=length)
            else:
                hidden, _, pooled, _ = pipe.encode_prompt(
                    texts,
                    None,
                    None,
                    device=cpu,
                    do_classifier_free_guidance=False,
                    max_sequence_length=length,
                )
    except (
        Exception
    ) as error:  # of diffusers, transformers and tokenizers: each has its own for a broken file
        line = " ".join(str(error).split())[:200]
        raise PolyditError(
            f"{folder}: the text encoders cannot be used ({line}); get the folder again"
        ) from error
    return hidden.float(), pooled.float()
