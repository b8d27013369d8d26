"""Writes linear.npz: `flash-linear-attention`'s feature maps and naive forms, run on a CPU.

Run ``python -m tests.oracles.make_linear`` with the extra `oracles`.
"""

import torch
from fla.modules.feature_map import HedgehogFeatureMap, TaylorFeatureMap
from fla.ops.based.naive import naive_parallel_based
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.simple_gla.naive import naive_parallel_simple_gla

from tests.oracles.freeze import Heads, save, values_and_gradients

BATCH, LENGTH, WIDTH, HEADS, TAYLOR_DIM = 2, 11, 8, 2, 3

generator = torch.Generator().manual_seed(0)


def normal(*shape, scale=1.0):
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).float()


def elu1(layer, x, q, k, v):
    features = [torch.nn.functional.elu(a) + 1 for a in (q, k)]
    return naive_recurrent_linear_attn(*features, v, scale=1.0, normalize=True)[0]


def decayed(features, log_decay):
    """The decayed sums of values and of ones, and their quotient."""
    q, k, v = features
    v1 = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    y1, _ = naive_parallel_simple_gla(q, k, v1, log_decay, scale=1.0)
    return y1[..., :-1] / y1[..., -1:]


def exp(layer, x, q, k, v):
    """RetNet's decays, in the form of `naive_retention`."""
    hedgehog = HedgehogFeatureMap(q.shape[-1])
    # The library scales by 2 in its map.
    torch.nn.init.eye_(hedgehog.layer.weight).data.mul_(0.5)
    log_decay = (1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float32))).log()
    return decayed((hedgehog(q), hedgehog(k), v), log_decay.expand(BATCH, LENGTH, HEADS))


def taylor2(layer, x, q, k, v):
    head_first = (a.transpose(1, 2) for a in (q, k, v))
    return naive_parallel_based(*head_first).transpose(1, 2)


def taylor2_gated(layer, x, q, k, v):
    taylor = TaylorFeatureMap(q.shape[-1])
    gate = torch.nn.functional.logsigmoid(x @ layer.gate + layer.gate_bias) / 16
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
    x_BLD, weight_BLD = normal(BATCH, LENGTH, WIDTH), normal(BATCH, LENGTH, WIDTH)
    found = {"x": x_BLD, "weight": weight_BLD} | weights
    found |= values_and_gradients(Heads(form, weights), x_BLD, weight_BLD)
    arrays |= {f"{form.__name__}/{name}": array for name, array in found.items()}
save("linear", ["flash-linear-attention"], arrays)
