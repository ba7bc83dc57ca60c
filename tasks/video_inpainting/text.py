"""The few texts that a video transformer reads here, embedded once with the T5 encoder of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...core.backbones.pretrained import PretrainedTransformer
from ...core.errors import PolyditError

__all__ = ["NEGATIVE", "PromptEmbeddings", "texts_for"]

NEGATIVE = "an object, a person, a shadow, blur, noise, flicker, a seam, a watermark, worst quality"


class PromptEmbeddings(ModelMixin, ConfigMixin):
    """T5 embeddings of named texts with the mask of their padding; a component of a pipeline.

    Args:
        texts: what was embedded, by name; the embeddings are in the order of the names' letters.
        tokens: of each text, padding included.
        width: of the embeddings.
        masked: whether the transformer is told which tokens are padding (LTX-Video is, CogVideoX is not).
    """

    @register_to_config
    def __init__(self, texts: dict[str, str], tokens: int, width: int, masked: bool = True) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.zeros(len(texts), tokens, width), requires_grad=False)
        self.real = nn.Parameter(torch.ones(len(texts), tokens), requires_grad=False)

    def forward(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What the transformer reads: the text of that name for each sample."""
        known = sorted(self.config.texts)
        rows = torch.tensor([known.index(name) for name in names], device=self.embeddings.device)
        found = {"encoder_hidden_states": self.embeddings[rows]}
        if self.config.masked:
            found["encoder_attention_mask"] = self.real[rows]
        return found


def texts_for(
    network: PretrainedTransformer, folder: str | None, texts: dict[str, str], on_meta: bool = False
) -> PromptEmbeddings | None:
    """The texts in the embedding of the folder that a transformer is from.

    Args:
        network: the transformer.
        folder: of the pipeline, with ``text_encoder`` and ``tokenizer``; or of the transformer in it.
        texts: by name.
        on_meta: shapes without values.

    Returns:
        None for a transformer that reads no text. Without a folder of encoders the embeddings are zeros where every
        text is empty.

    Raises:
        PolyditError: there are texts and no encoder.
    """
    reads = network.text_inputs
    if reads is None:
        return None
    made = PromptEmbeddings(dict(texts), reads.length or 128, reads.width, reads.masked)
    if on_meta:
        return made
    root = _pipeline_folder(folder)
    if root is None:
        if any(texts.values()):
            raise PolyditError(
                f"{folder or '--model.backbone'}: has no text_encoder and tokenizer beside the transformer; give the "
                "folder of the whole pipeline, or leave the prompts empty"
            )
        return made
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    encoder = T5EncoderModel.from_pretrained(root / "text_encoder", dtype=torch.float32).eval()
    order = [texts[name] for name in sorted(texts)]
    tokens = tokenizer(
        order, padding="max_length", max_length=made.config.tokens, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        # The released pipelines mask the padding inside the encoder only where the transformer is told of it.
        mask = tokens.attention_mask if reads.masked else None
        hidden = encoder(tokens.input_ids, attention_mask=mask)[0]
        made.embeddings.copy_(hidden)
        made.real.copy_(tokens.attention_mask)
    return made


def _pipeline_folder(folder: str | None) -> Path | None:
    if not folder:
        return None
    for root in (Path(folder), Path(folder).parent):
        if (root / "text_encoder").is_dir() and (root / "tokenizer").is_dir():
            return root
    return None
