"""Writes linear.npz: `flash-linear-attention`'s feature maps and naive forms, run on a CPU."""

from pathlib import Path

import fla
import numpy as np
import torch
from fla.modules.feature_map import HedgehogFeatureMap, TaylorFeatureMap
from fla.ops.based.naive import naive_parallel_based
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.simple_gla.naive import naive_parallel_simple_gla

BATCH, LENGTH, WIDTH, HEADS, TAYLOR_DIM = 2, 11, 8, 2, 3

generator = torch.Generator().manual_seed(0)


def normal(*shape, scale=1.0):
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).float()


def elu1(q, k, v, x):
    features = [torch.nn.functional.elu(a) + 1 for a in (q, k)]
    return naive_recurrent_linear_attn(*features, v, scale=1.0, normalize=True)[0]


def decayed(features, log_decay):
    """The decayed sums of values and of ones, and their quotient."""
    q, k, v = features
    v1 = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    y1, _ = naive_parallel_simple_gla(q, k, v1, log_decay, scale=1.0)
    return y1[..., :-1] / y1[..., -1:]


def exp(q, k, v, x):
    """RetNet's decays, in the form of `naive_retention`."""
    hedgehog = HedgehogFeatureMap(q.shape[-1])
    # The library scales by 2 in its map.
    torch.nn.init.eye_(hedgehog.layer.weight).data.mul_(0.5)
    log_decay = (1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float32))).log()
    return decayed((hedgehog(q), hedgehog(k), v), log_decay.expand(BATCH, LENGTH, HEADS))


def taylor2(q, k, v, x):
    head_first = (a.transpose(1, 2) for a in (q, k, v))
    return naive_parallel_based(*head_first).transpose(1, 2)


def taylor2_gated(q, k, v, x):
    taylor = TaylorFeatureMap(q.shape[-1])
    gate = torch.nn.functional.logsigmoid(x @ weights["gate"] + weights["gate_bias"]) / 16
    return decayed((taylor(q), taylor(k), v), gate)


head_dim = WIDTH // HEADS
arrays = {}
for form in (elu1, exp, taylor2, taylor2_gated):
    key_dim = TAYLOR_DIM if "taylor2" in form.__name__ else head_dim
    weights = {
        "q": normal(WIDTH, HEADS, key_dim, scale=WIDTH**-0.5),
        "k": normal(WIDTH, HEADS, key_dim, scale=WIDTH**-0.5),
        "v": normal(WIDTH, HEADS, head_dim, scale=WIDTH**-0.5),
        "out": normal(HEADS, head_dim, WIDTH, scale=WIDTH**-0.5),
    }
    if form is taylor2_gated:
        weights |= {"gate": normal(WIDTH, HEADS), "gate_bias": normal(HEADS)}
    inputs = {"x": normal(BATCH, LENGTH, WIDTH), **weights}
    for array in inputs.values():
        array.requires_grad_()
    x, weight = inputs["x"], normal(BATCH, LENGTH, WIDTH)
    q, k, v = (torch.einsum("bld,dhk->blhk", x, weights[name]) for name in "qkv")
    y = torch.einsum("blhp,hpd->bld", form(q, k, v, x), weights["out"])
    (y * weight).sum().backward()
    found = {"weight": weight, "y": y} | inputs | {f"d{n}": a.grad for n, a in inputs.items()}
    arrays |= {f"{form.__name__}/{n}": array.detach().numpy() for n, array in found.items()}
np.savez_compressed(
    Path(__file__).with_name("linear.npz"),
    versions=f"torch {torch.__version__}, flash-linear-attention {fla.__version__}",
    **arrays,
)
