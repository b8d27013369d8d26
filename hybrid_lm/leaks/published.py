"""Four efficient attentions in the form of their papers, put into a causal model as they are.

Each computes something over the whole row (a projection, landmarks, a sort, a maximum), so that an
output knows of later tokens. None is registered: they stand on the leak board beside the causal
forms of `hybrid_lm.mixers`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.layers import fan_in, param, project
from hybrid_lm.mixers import Context, MixerConfig


@dataclass(frozen=True)
class Published(MixerConfig):
    """Attention of one head whose weights see the row as the paper has it."""

    length: int
    """Tokens of a row."""
    slots: int = 8
    """Projected rows, landmarks, random features, or tokens of a sorted chunk."""

    form: ClassVar[type["PublishedMixer"]]

    def build(self, width: int, rngs: nnx.Rngs) -> "PublishedMixer":
        return self.form(self, width, rngs)


class PublishedMixer(nnx.Module):
    """Stateless: `attend` sees the row as a whole, and no document in it."""

    def __init__(self, config: Published, width: int, rngs: nnx.Rngs):
        self.config = config
        self.qkv = param(rngs, (width, 3, width), ("embed", None, "inner"), fan_in(width))
        self.out = param(rngs, (width, width), ("inner", "embed"), fan_in(width))

    def __call__(self, x_BLD: jax.Array, ctx: Context, state: Any = None) -> tuple[jax.Array, Any]:
        del ctx, state
        q_BLD, k_BLD, v_BLD = jnp.moveaxis(project("bld,dse->blse", x_BLD, self.qkv), 2, 0)
        y_BLD = jax.vmap(self.attend)(q_BLD / q_BLD.shape[-1] ** 0.5, k_BLD, v_BLD)
        return project("ble,ed->bld", y_BLD, self.out), ()

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> Any:
        del batch, dtype, capacity
        return ()

    def attend(self, q_LD: jax.Array, k_LD: jax.Array, v_LD: jax.Array) -> jax.Array:
        raise NotImplementedError


class LinformerMixer(PublishedMixer):
    """``softmax(q (E k)^T) F v``: E and F reach over the row (arXiv 2006.04768, equation 7)."""

    def __init__(self, config: Published, width: int, rngs: nnx.Rngs):
        super().__init__(config, width, rngs)
        shape = (config.slots, config.length)
        self.project_k = param(rngs, shape, (None, None), fan_in(config.slots))
        self.project_v = param(rngs, shape, (None, None), fan_in(config.slots))

    def attend(self, q_LD, k_LD, v_LD):
        weights_LR = jax.nn.softmax(q_LD @ (self.project_k[...] @ k_LD).T)
        return weights_LR @ (self.project_v[...] @ v_LD)


class NystromMixer(PublishedMixer):
    """Landmarks are means of all segments, later ones too (arXiv 2102.03902, equation 13)."""

    def attend(self, q_LD, k_LD, v_LD):
        landmarks = self.config.slots
        q_RD = q_LD.reshape(landmarks, -1, q_LD.shape[-1]).mean(axis=1)
        k_RD = k_LD.reshape(landmarks, -1, k_LD.shape[-1]).mean(axis=1)
        middle_RR = jax.nn.softmax(q_RD @ k_RD.T)
        inverse_RR = middle_RR.T / jnp.abs(middle_RR).sum(0).max() / jnp.abs(middle_RR).sum(1).max()
        one = jnp.eye(landmarks)
        for _ in range(6):
            product = middle_RR @ inverse_RR
            product = 15 * one - product @ (7 * one - product)
            inverse_RR = 0.25 * inverse_RR @ (13 * one - middle_RR @ inverse_RR @ product)
        return jax.nn.softmax(q_LD @ k_RD.T) @ inverse_RR @ (jax.nn.softmax(q_RD @ k_LD.T) @ v_LD)


class ReformerMixer(PublishedMixer):
    """Buckets are cut in chunks after a sort of the whole row: which earlier tokens share a chunk
    depends on how many later ones fall in the same bucket (arXiv 2001.04451, section 2.3).
    """

    def attend(self, q_LD, k_LD, v_LD):
        length, size = self.config.length, self.config.slots
        rotation = jax.random.normal(jax.random.key(0), (q_LD.shape[-1], 2))
        turned = q_LD @ rotation
        bucket_L = jnp.argmax(jnp.concatenate([turned, -turned], axis=-1), axis=-1)
        order_L = jnp.argsort(bucket_L, stable=True)

        def chunks(x):
            """The sorted row in chunks, each behind the one before it."""
            cut = x[order_L].reshape(-1, size, *x.shape[1:])
            return cut, jnp.concatenate([jnp.roll(cut, 1, axis=0), cut], axis=1)

        place_L = jnp.arange(length)
        q_nCD = chunks(q_LD)[0]
        unit_LD = q_LD / jnp.linalg.norm(q_LD, axis=-1, keepdims=True)  # keys are the queries
        place_nC, place_nS = chunks(place_L)
        bucket_nC, bucket_nS = chunks(bucket_L)
        seen = (place_nS[:, None] <= place_nC[..., None]) & (
            bucket_nS[:, None] == bucket_nC[..., None]
        )
        own = place_nS[:, None] == place_nC[..., None]
        scores = jnp.einsum("ncd,nsd->ncs", q_nCD, chunks(unit_LD)[1])
        scores = jnp.where(seen, jnp.where(own, -1e5, scores), -1e9)
        y_nCD = jnp.einsum("ncs,nsd->ncd", jax.nn.softmax(scores), chunks(v_LD)[1])
        return jnp.zeros_like(v_LD).at[order_L].set(y_nCD.reshape(v_LD.shape))


class PerformerMixer(PublishedMixer):
    """Causal sums, but the features of keys are stabilised by the maximum over the whole row
    (arXiv 2009.14794, appendix; the stabiliser of the published code).
    """

    def attend(self, q_LD, k_LD, v_LD):
        directions = jax.random.normal(jax.random.key(0), (q_LD.shape[-1], self.config.slots))

        def features(x_LD, axis):
            logits = x_LD @ directions - 0.5 * jnp.sum(x_LD**2, axis=-1, keepdims=True)
            return jnp.exp(logits - jnp.max(logits, axis=axis, keepdims=True)) + 1e-4

        weights_LL = jnp.tril(features(q_LD, 1) @ features(k_LD, None).T)
        return weights_LL @ v_LD / weights_LL.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Linformer(Published):
    form = LinformerMixer


@dataclass(frozen=True)
class Nystrom(Published):
    form = NystromMixer


@dataclass(frozen=True)
class Reformer(Published):
    slots: int = 4
    form = ReformerMixer


@dataclass(frozen=True)
class Performer(Published):
    form = PerformerMixer


FORMS: dict[str, type[Published]] = {
    "linformer": Linformer,
    "nystrom": Nystrom,
    "reformer": Reformer,
    "performer": Performer,
}
"""By the key of the causal form that stands in their place."""
