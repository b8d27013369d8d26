"""A language model whose every number is known: layers that copy from a fixed distance."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid_lm.config import Config, EvaluationConfig, TrainConfig
from hybrid_lm.layers import param, project
from hybrid_lm.mixers import MixerConfig
from hybrid_lm.model import Model, ModelConfig

VOCAB = 32
PERIOD = 700
"""Documents repeat themselves after so many tokens."""
GAIN = 4.0
"""Of what is copied, relative to the token itself in the residual stream."""


@dataclass(frozen=True)
class Delay(MixerConfig):
    """``y_t = out(x_{t - distance})``."""

    key = "delay"
    distance: int = PERIOD - 1

    def build(self, width, rngs):
        return DelayMixer(self.distance, width, rngs)

    def flops_per_token(self, width, length):
        return 2 * width * width


class DelayMixer(nnx.Module):
    def __init__(self, distance, width, rngs):
        self.distance, self.width = distance, width
        self.out = param(rngs, (width, width), ("inner", "embed"), nnx.initializers.zeros)

    def __call__(self, x_BLD, ctx, state=None):
        if state is None:
            state = self.initial_state(len(x_BLD), x_BLD.dtype)
        x_BSD = jnp.concatenate([state, x_BLD], axis=1)
        y_BLD = project("bld,de->ble", x_BSD[:, : x_BLD.shape[1]], self.out)
        return y_BLD, x_BSD[:, x_BLD.shape[1] :]

    def initial_state(self, batch, dtype, capacity=0):
        return jnp.zeros((batch, self.distance, self.width), dtype)


class MemorySplit:
    """Documents in memory."""

    def __init__(self, documents):
        self.lengths = np.array([len(tokens) for tokens in documents])
        self.names = [f"document {i}" for i in range(len(documents))]
        self._documents = documents

    def tokens(self, index, start, stop):
        return self._documents[index][start:stop]


def memory_corpus(splits, vocab_size=VOCAB):
    """A corpus of ``{split: documents}``; ids are bytes from 64 on, 0 starts a document."""
    token_bytes_V = np.ones(vocab_size, int)
    token_bytes_V[0] = 0
    memory = {name: MemorySplit(documents) for name, documents in splits.items()}
    return SimpleNamespace(
        split=memory.__getitem__,
        tokenizer=SimpleNamespace(
            document_id=0,
            token_bytes_V=token_bytes_V,
            decode=lambda tokens: "".join(chr(64 + t) for t in tokens if t),
        ),
        manifest={
            "source": {"name": "memory", "fingerprint": "f" * 64},
            "tokenizer": {"kind": "letters", "vocab_size": vocab_size, "sha256": "a" * 64},
            "splits": {name: {"sha256": name * 10} for name in splits},
        },
    )


def repeating_documents(count, length, seed, period=PERIOD):
    """Random tokens, over and over."""
    rng = np.random.default_rng(seed)
    return [
        np.resize(rng.integers(1, VOCAB, period), length).astype(np.int32) for _ in range(count)
    ]


def copying_model(layers="before: copy; copying: copy; after: copy", **evaluation):
    """A model of ``Delay`` layers of which only those of group ``copying`` have weights."""
    config = Config(
        model=ModelConfig(layers, {"copy": Delay()}, width=VOCAB, mlp_width=0),
        train=TrainConfig(length=512, dtype="float32"),
        evaluation=EvaluationConfig(length=4096, batch_size=3, resamples=200, **evaluation),
    )
    model = Model(config.model, VOCAB)
    params = model.init(jax.random.key(0))
    params["embedding"] = jnp.eye(VOCAB)
    out = params["groups"]["copying"]["0"]["mixer"]["out"]
    params["groups"]["copying"]["0"]["mixer"]["out"] = (
        jnp.zeros_like(out).at[0].set(GAIN * jnp.eye(VOCAB))
    )
    return config, model, params
