"""Writes performer.npz: `performer-pytorch`'s FAVOR+, causal and not, run on a CPU."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from performer_pytorch.performer_pytorch import (
    causal_linear_attention_noncuda,
    gaussian_orthogonal_random_matrix,
    linear_attention,
    softmax_kernel,
)

BATCH, LENGTH, WIDTH, HEADS, FEATURES = 2, 11, 8, 2, 10

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
head_dim = WIDTH // HEADS
projection = gaussian_orthogonal_random_matrix(FEATURES, head_dim)
inputs = {
    "x": torch.randn(BATCH, LENGTH, WIDTH),
    "q": torch.randn(WIDTH, HEADS, head_dim) * WIDTH**-0.5,
    "k": torch.randn(WIDTH, HEADS, head_dim) * WIDTH**-0.5,
    "v": torch.randn(WIDTH, HEADS, head_dim) * WIDTH**-0.5,
    "out": torch.randn(HEADS, head_dim, WIDTH) * WIDTH**-0.5,
}
weight = torch.randn(BATCH, LENGTH, WIDTH)


def causal_attention(q, k, v):
    return causal_linear_attention_noncuda(q, k, v, chunk_size=1, eps=0.0)


arrays = {}
for form, attention in (("causal", causal_attention), ("both ways", linear_attention)):
    leaves = {name: array.clone().requires_grad_() for name, array in inputs.items()}
    q, k, v = (torch.einsum("bld,dhk->bhlk", leaves["x"], leaves[name]) for name in "qkv")
    # Without the library's addition to every feature, which makes the estimate biased.
    q = softmax_kernel(q, projection_matrix=projection, is_query=True, eps=0.0)
    k = softmax_kernel(k, projection_matrix=projection, is_query=False, eps=0.0)
    y = torch.einsum("bhlp,hpd->bld", attention(q, k, v), leaves["out"])
    (y * weight).sum().backward()
    found = {"weight": weight, "projection": projection, "y": y} | leaves
    found |= {f"d{name}": array.grad for name, array in leaves.items()}
    arrays |= {f"{form}/{name}": array.detach().numpy() for name, array in found.items()}
np.savez_compressed(
    Path(__file__).with_name("performer.npz"),
    versions=f"torch {torch.__version__}, performer-pytorch {version('performer-pytorch')}",
    **arrays,
)
