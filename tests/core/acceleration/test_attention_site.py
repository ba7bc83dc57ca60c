"""What sites of sparse attention keep for each branch is counted and forgotten."""

import pytest
import torch
from torch import nn

from polydit.core.acceleration import AdaSpa, Rettention


@pytest.mark.parametrize("policy", [AdaSpa(), Rettention()], ids=["adaspa", "rettention"])
def test_a_site_forgets_what_it_kept(policy):
    site = policy.site("blocks.0.attn", nn.Identity())
    assert len(site.kept) == 2
    for kept in site.kept:
        kept.update({branch: torch.zeros(3) for branch in (0, 1)})
    assert site.bytes == 2 * 2 * 3 * 4
    site.forget(1)
    assert [list(kept) for kept in site.kept] == [[0], [0]]
    site.forget()
    assert site.bytes == 0
