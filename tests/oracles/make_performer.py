"""Writes performer.npz: `performer-pytorch`'s FAVOR+, causal and not, run on a CPU.

Run ``python -m tests.oracles.make_performer`` with the extra `oracles`.
"""

import torch
from performer_pytorch.performer_pytorch import (
    causal_linear_attention_noncuda,
    gaussian_orthogonal_random_matrix,
    linear_attention,
    softmax_kernel,
)

from tests.oracles.freeze import Heads, save, values_and_gradients

BATCH, LENGTH, WIDTH, HEADS, FEATURES = 2, 11, 8, 2, 10

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
head_dim = WIDTH // HEADS
projection = gaussian_orthogonal_random_matrix(FEATURES, head_dim)
x_BLD = torch.randn(BATCH, LENGTH, WIDTH)
weights = {
    "q": torch.randn(WIDTH, HEADS, head_dim) * WIDTH**-0.5,
    "k": torch.randn(WIDTH, HEADS, head_dim) * WIDTH**-0.5,
    "v": torch.randn(WIDTH, HEADS, head_dim) * WIDTH**-0.5,
    "out": torch.randn(HEADS, head_dim, WIDTH) * WIDTH**-0.5,
}
weight_BLD = torch.randn(BATCH, LENGTH, WIDTH)


def favor(attention):
    def core(layer, x, q, k, v):
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        # Without the library's addition to every feature, which makes the estimate biased.
        q = softmax_kernel(q, projection_matrix=projection, is_query=True, eps=0.0)
        k = softmax_kernel(k, projection_matrix=projection, is_query=False, eps=0.0)
        return attention(q, k, v).transpose(1, 2)

    return core


def causal_attention(q, k, v):
    return causal_linear_attention_noncuda(q, k, v, chunk_size=1, eps=0.0)


arrays = {}
for form, attention in (("causal", causal_attention), ("both ways", linear_attention)):
    layer = Heads(favor(attention), weights)
    found = {"x": x_BLD, "weight": weight_BLD, "projection": projection} | weights
    found |= values_and_gradients(layer, x_BLD, weight_BLD)
    arrays |= {f"{form}/{name}": array for name, array in found.items()}
save("performer", ["performer-pytorch"], arrays)
