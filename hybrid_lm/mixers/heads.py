"""Queries, keys and values of heads, and their way back to the model's width."""

import jax
from flax import nnx

from hybrid_lm.layers import fan_in, param, project
from hybrid_lm.mixers.base import per_head


class HeadsMixer(nnx.Module):
    """The projections of a mixer with as many key/value heads as query heads.

    A head has ``width / heads`` channels, or ``key_dim`` where queries and keys have a number of
    their own. With ``share_qk``, keys are the queries and have no projection.
    """

    def __init__(
        self,
        key: str,
        width: int,
        rngs: nnx.Rngs,
        *,
        heads: int,
        key_dim: int | None = None,
        share_qk: bool = False,
    ):
        self.heads, self.head_dim = heads, per_head(key, heads, width)
        self.key_dim = key_dim or self.head_dim
        axes = ("embed", "heads", None)
        self.q = param(rngs, (width, heads, self.key_dim), axes, fan_in(width))
        self.share_qk = share_qk
        if not share_qk:
            self.k = param(rngs, (width, heads, self.key_dim), axes, fan_in(width))
        self.v = param(rngs, (width, heads, self.head_dim), axes, fan_in(width))
        out = (heads, self.head_dim, width)
        self.out = param(rngs, out, ("heads", None, "embed"), fan_in(width))

    def projected(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q_BLHK, k_BLHK, v_BLHP."""
        q_BLHK = project("bld,dhk->blhk", x_BLD, self.q)
        k_BLHK = q_BLHK if self.share_qk else project("bld,dhk->blhk", x_BLD, self.k)
        return q_BLHK, k_BLHK, project("bld,dhp->blhp", x_BLD, self.v)

    def output(self, y_BLHP: jax.Array) -> jax.Array:
        """y_BLD of what the heads found."""
        return project("blhp,hpd->bld", y_BLHP, self.out)
