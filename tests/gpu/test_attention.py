"""Attention on the GPU, cuDNN and kernels: values and gradients against float64, packed rows too.

Run by ``make test-gpu`` on a machine with a GPU; `make test` does not collect this folder.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.attention import attention, gpu
from hybrid_lm.kernels.attention.gpu_forward import forward

LENGTH = 512


def layouts(kind: str, rng: np.random.Generator, batch: int) -> np.ndarray | None:
    """First key of each token's document, [B, L]; None for rows of one document."""
    if kind == "dense":
        return None
    rows = []
    for row in range(batch):
        cuts = {"even": 3, "uneven": 5, "full": 7}[kind] if row else 0
        places = np.sort(rng.choice(np.arange(1, LENGTH), size=cuts, replace=False))
        starts = np.concatenate([[0], places])
        rows.append(starts[np.searchsorted(starts, np.arange(LENGTH), side="right") - 1])
    return np.stack(rows).astype(np.int32)


def truth(q, k, v, starts, window):
    """Masked softmax attention in float64."""
    share = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, share, axis=2) for x in (k, v))
    place = np.arange(q.shape[1])
    first = np.zeros(q.shape[:2], int) if starts is None else starts
    if window is not None:
        first = np.maximum(first, place - window + 1)
    seen = (place >= first[..., None]) & (place <= place[:, None])
    scores = np.einsum("blhk,bshk->bhls", q, k) / q.shape[-1] ** 0.5
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights, np.einsum("bhls,bshk->blhk", weights, v)


def truth_gradients(q, k, v, weights, y, dy):
    """Gradients of ``sum(y * dy)`` for q, k, v in float64."""
    heads, kv_heads, scale = q.shape[2], k.shape[2], q.shape[-1] ** -0.5
    k_H, v_H = (np.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    dweights = np.einsum("blhk,bshk->bhls", dy, v_H)
    delta = np.einsum("blhk,blhk->bhl", dy, y)[..., None]
    dscores = weights * (dweights - delta) * scale
    per_head = (
        np.einsum("bhls,blhk->bshk", dscores, q),
        np.einsum("bhls,blhk->bshk", weights, dy),
    )
    fold = (*k.shape[:2], kv_heads, heads // kv_heads, k.shape[3])
    return np.einsum("bhls,bshk->blhk", dscores, k_H), *(x.reshape(fold).sum(3) for x in per_head)


def wide(*arrays):
    return [np.asarray(x.astype(jnp.float32), np.float64) for x in arrays]


def relative_rmse(got, want):
    (got,) = wide(got)
    return np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))


def check(attend, q, k, v, dy, starts, window=None):
    """``attend(q, k, v)`` and its gradients against float64."""
    y, pull = jax.vjp(attend, q, k, v)
    q64, k64, v64, dy64 = wide(q, k, v, dy)
    weights, want = truth(q64, k64, v64, starts, window)
    assert relative_rmse(y, want) <= 0.005
    wants = truth_gradients(q64, k64, v64, weights, want, dy64)
    for got, want in zip(pull(dy), wants, strict=True):
        assert relative_rmse(got, want) <= 0.005


@pytest.mark.parametrize("kind", ["dense", "even", "uneven", "full"])
@pytest.mark.parametrize("window", [None, 64, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 128), (2, 1, 32)])
def test_cudnn_matches_float64(kind, window, heads, kv_heads, dim):
    rng = np.random.default_rng(0)
    shapes = [(3, LENGTH, heads, dim), (3, LENGTH, kv_heads, dim), (3, LENGTH, kv_heads, dim)]
    q, k, v = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes)
    dy = jnp.asarray(rng.normal(size=shapes[0]), jnp.bfloat16)
    starts = layouts(kind, rng, 3)

    options = {"window": window, "max_segments": 8, "implementation": "cudnn"}
    attend = partial(attention, starts_BL=starts, **options)
    check(attend, q, k, v, dy, starts, window)


def cut(documents: int | None, rng: np.random.Generator, batch: int, length: int):
    """First key of each token's document, one of them of one token, one from a block's edge."""
    if documents is None:
        return None
    is_start = rng.random((batch, length)) < documents / length
    is_start[:, [0, 5, 6, length - 128, length - 1]] = True
    starts = np.maximum.accumulate(np.where(is_start, np.arange(length), 0), axis=1)
    return starts.astype(np.int32)


# Tiles of 192 queries and blocks of 128 keys: the last tile has 128 queries, 192, 192, 128 and 64.
SHAPES = [(3, 128, 4), (1, 384, 2), (2, 1152, 3), (2, 2048, 3), (1, 2176, 2)]


@pytest.mark.parametrize("documents", [None, 3, 100])
@pytest.mark.parametrize(("batch", "length", "heads"), SHAPES)
def test_kernels_match_float64(batch, length, heads, documents):
    rng = np.random.default_rng(0)
    shape = batch, length, heads, 64
    q, k, v, dy = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4))
    starts = cut(documents, rng, batch, length)
    check(lambda *qkv: gpu.attention(*qkv, starts), q, k, v, dy, starts)


@pytest.mark.parametrize("documents", [None, 3])
@pytest.mark.parametrize(("batch", "length", "heads"), SHAPES)
@pytest.mark.parametrize("louder", [0, 60, 200, -200])
def test_outputs_and_log_masses(batch, length, heads, documents, louder):
    """Whatever the scores: some keys are ``louder`` than those next to a query, or quieter.

    60 and 200 nats are beyond what a sum of weights may reach by its first reference.
    """
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(batch, length, heads, 64)) for _ in range(3))
    is_loud = np.arange(length) % 300 // 20 == 2
    q += 3
    k[:, is_loud] += louder / 24
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    starts = cut(documents, rng, batch, length)
    y, log_mass = forward(q, k, v, starts)
    q64, k64, v64 = wide(q, k, v)
    weights, want = truth(q64, k64, v64, starts, None)
    assert relative_rmse(y, want) <= 0.005
    # A query's own score less the log-sum-exp is the log of its weight for itself.
    own = np.einsum("blhk,blhk->bhl", q64, k64) / 8
    place = np.arange(length)
    own_weights = np.exp(own - np.asarray(log_mass, np.float64))
    np.testing.assert_allclose(own_weights, weights[:, :, place, place], rtol=1e-3, atol=1e-30)


def test_a_broken_promise_on_segments_is_nan():
    starts = jnp.arange(LENGTH, dtype=jnp.int32)[None] // 16 * 16
    q = jnp.ones((1, LENGTH, 2, 64), jnp.bfloat16)
    y = attention(q, q, q, starts, max_segments=8, implementation="cudnn")
    assert bool(jnp.isnan(y).all())
