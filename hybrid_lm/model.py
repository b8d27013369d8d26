"""The language model a `Plan` describes: embedding, groups of blocks, norm, tied unembedding.

Parameters, states and their logical axes are plain nested dicts. Each group is one `jax.lax.scan`
over the stacked parameters of its unit, so that the compiled program does not grow with repeats.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from hybrid_lm.block import Absence, Block
from hybrid_lm.embedding import embed
from hybrid_lm.errors import UserError
from hybrid_lm.kernels.remat import is_kept
from hybrid_lm.kernels.residual_norm.xla import rms_norm
from hybrid_lm.mixers import Context, Cost, MixerConfig
from hybrid_lm.pattern import Group, Plan
from hybrid_lm.sharding import constrain

Params = dict[str, Any]
State = dict[str, Any]
Remat = Literal["none", "dots", "block"]


@dataclass(frozen=True)
class ModelConfig:
    """The stack and its widths."""

    layers: str
    """Layer pattern, e.g. "early: attn*2; deep: (mamba*3, swa)*2"."""
    mixers: dict[str, MixerConfig] = field(default_factory=dict)
    """The mixers that the pattern may name."""
    width: int = 512
    """D, the residual stream."""
    mlp_width: int = 1408
    """Hidden width of the gated MLP after every mixer; 0 leaves the MLPs out."""


class Output(NamedTuple):
    """What the stack computes.

    Attributes:
        exits: the residual stream x_BLD as it leaves each group, in order.
        state: the state after the row, if one was given; else None.
    """

    exits: list[jax.Array]
    state: State | None


class Model:
    """A model structure; holds no arrays.

    Attributes:
        plan: the parsed layer pattern.
        axes: logical axes of every parameter, in the tree of the parameters.
        decays: whether weight decay applies to it, likewise.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        self.config = config
        self.vocab_size = vocab_size
        self.plan = Plan.parse(config.layers, config.mixers)
        if config.width < 1 or config.mlp_width < 0:
            raise UserError(f"model: width {config.width} and mlp_width {config.mlp_width}")
        used = dict.fromkeys(key for group in self.plan.groups for key in group.unit)
        for key in used:
            if not config.mixers[key].is_causal():
                raise UserError(f"mixer {key!r} is not causal: a token would see what it predicts")
        blocks = {
            key: nnx.split(nnx.eval_shape(lambda key=key: self.block(key, nnx.Rngs(0))))
            for key in used
        }
        self._graphs = {key: graph for key, (graph, _) in blocks.items()}
        self._abstract = {key: abstract for key, (_, abstract) in blocks.items()}
        self.axes = self._metadata(
            lambda leaf: (None, *leaf.axes), embedding=("vocab", "embed"), norm=(None,)
        )
        self.decays = self._metadata(lambda leaf: leaf.decay, embedding=True, norm=False)

    def _metadata(self, of_leaf, *, embedding: Any, norm: Any) -> Params:
        """A tree like the parameters' with ``of_leaf(nnx.Param)`` in the blocks."""

        def block(key: str) -> Params:
            state = jax.tree.map(
                of_leaf, self._abstract[key], is_leaf=lambda x: isinstance(x, nnx.Variable)
            )
            return nnx.to_pure_dict(state)

        groups = {
            group.name: {str(i): block(key) for i, key in enumerate(group.unit)}
            for group in self.plan.groups
        }
        return {"embedding": embedding, "groups": groups, "norm": norm}

    def block(self, mixer: str, rngs: nnx.Rngs) -> Block:
        """A block with mixer ``mixer`` of the config."""
        config = self.config
        return Block(config.width, config.mlp_width, config.mixers[mixer], rngs)

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters."""
        keys = iter(jax.random.split(key, 1 + sum(len(g.unit) for g in self.plan.groups)))

        def block(mixer: str, key: jax.Array) -> Params:
            return nnx.to_pure_dict(nnx.state(self.block(mixer, nnx.Rngs(params=key))))

        groups = {
            group.name: {
                str(i): jax.vmap(lambda key, mixer=mixer: block(mixer, key))(
                    jax.random.split(next(keys), group.repeats)
                )
                for i, mixer in enumerate(group.unit)
            }
            for group in self.plan.groups
        }
        shape = (self.vocab_size, self.config.width)
        embedding = 0.02 * jax.random.normal(next(keys), shape, jnp.float32)
        return {"embedding": embedding, "groups": groups, "norm": jnp.ones(self.config.width)}

    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        """Zero state of all layers, with room for ``capacity`` tokens."""

        def layer(mixer: str, repeats: int) -> Any:
            module = self.config.mixers[mixer].build(self.config.width, nnx.Rngs(0))
            state = module.initial_state(batch, dtype, capacity)
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (repeats, *a.shape)), state)

        return {
            group.name: {str(i): layer(key, group.repeats) for i, key in enumerate(group.unit)}
            for group in self.plan.groups
        }

    def apply(
        self,
        params: Params,
        tokens_BL: jax.Array,
        ctx: Context,
        state: State | None = None,
        *,
        keep_G: jax.Array | None = None,
        remat: Remat = "none",
        unroll: bool = False,
    ) -> Output:
        """Run the stack.

        Args:
            state: continue from it (and return the next one); None starts from zero.
            keep_G: bool per group; the mixers of a group that is False are skipped (the residual
                passes). None keeps all.
            remat: what the backward pass recomputes: "none", all but matrix products and kernels
                ("dots"), or whole blocks ("block").
            unroll: compile every repeat of a group by itself.
        """
        x_BLD = self.embed(params, tokens_BL, ctx)
        exits, next_state = [], {}
        for g, group in enumerate(self.plan.groups):
            x_BLD, next_state[group.name], _ = self.run_group(
                group,
                params["groups"][group.name],
                x_BLD,
                ctx,
                None if state is None else state[group.name],
                absence=None if keep_G is None else self.without(group, ~keep_G[g]),
                remat=remat,
                unroll=unroll,
            )
            exits.append(x_BLD)
        return Output(exits, None if state is None else next_state)

    def embed(self, params: Params, tokens_BL: jax.Array, ctx: Context) -> jax.Array:
        """The residual stream x_BLD that enters the first group."""
        # Whole along D before the look-up, as the rows it gives are sharded over the batch.
        embedding_VD = constrain(params["embedding"], ("vocab", None))
        with jax.named_scope("embedding"):
            implementation = ctx.implementation.token_sums
            x_BLD = embed(embedding_VD, tokens_BL, ctx.dtype, implementation)
            x_BLD *= self.config.width**0.5
        return constrain(x_BLD.astype(ctx.dtype), ("batch", "length", None))

    def run_group(
        self,
        group: Group,
        params: Params,
        x_BLD: jax.Array,
        ctx: Context,
        state: State | None = None,
        *,
        absence: Absence | None = None,
        remat: Remat = "none",
        unroll: bool = False,
        observe: bool = False,
    ) -> tuple[jax.Array, State | None, jax.Array | None]:
        """Run the blocks of one group, with its own ``params`` and ``state``.

        Args:
            absence: mixers to do without, arrays [R, len(group.unit), ...]. None keeps all.
            observe: also return every mixer's mean output over the row.

        Returns:
            x_BLD that leaves the group; the next state (None without one); the means
            [R, len(group.unit), B, D] in float32 (None without ``observe``).
        """

        def block(mixer, params, x_BLD, ctx, state, absence):
            abstract = jax.tree.map(lambda leaf: leaf, self._abstract[mixer])
            nnx.replace_by_pure_dict(abstract, params)
            module = nnx.merge(self._graphs[mixer], abstract)
            with jax.named_scope(mixer):
                return module(x_BLD, ctx, state, absence, observe)

        if remat != "none":
            ctx = replace(ctx, recomputes=True)
            block = jax.checkpoint(
                block,
                static_argnums=(0,),
                prevent_cse=unroll,
                policy=is_kept if remat == "dots" else None,
            )

        def unit(x_BLD, layer):
            params, state, absence = layer
            next_state, means = {}, []
            for i, mixer in enumerate(group.unit):
                here = None if absence is None else jax.tree.map(lambda a, i=i: a[i], absence)
                i = str(i)
                x_BLD, next_state[i], mean_BD = block(
                    mixer, params[i], x_BLD, ctx, None if state is None else state[i], here
                )
                means.append(mean_BD)
            mean_UBD = jnp.stack(means) if observe else None
            return x_BLD, (None if state is None else next_state, mean_UBD)

        layers = (params, state, absence)
        x_BLD, (state, mean_RUBD) = jax.lax.scan(unit, x_BLD, layers, unroll=unroll)
        return x_BLD, state, mean_RUBD

    def without(self, group: Group, absent: ArrayLike) -> Absence:
        """Skip the mixers of a group where ``absent`` (a bool, or [R, len(group.unit)]) says so."""
        shape = (group.repeats, len(group.unit))
        keep_RU = jnp.broadcast_to(jnp.logical_not(absent), shape)
        return Absence(keep_RU, jnp.zeros((*shape, self.config.width)))

    def readout(self, params: Params, x_BLD: jax.Array) -> jax.Array:
        """Final norm: what the tied embedding is multiplied with to give logits."""
        return rms_norm(x_BLD, params["norm"])

    def logits(self, params: Params, x_BLD: jax.Array) -> jax.Array:
        """float32 logits_BLV of a residual stream; only for short rows (see `hybrid_lm.loss`)."""
        readout_BLD = self.readout(params, x_BLD)
        return jnp.einsum(
            "bld,vd->blv",
            readout_BLD,
            params["embedding"].astype(x_BLD.dtype),
            preferred_element_type=jnp.float32,
        )

    def group_cost(self, group: Group, length: int, dtype: DTypeLike) -> Cost:
        """Cost of a group's blocks (mixers and MLPs) on a row of ``length``."""
        width, mlp_width = self.config.width, self.config.mlp_width
        flops, state_bytes = 0.0, 0
        for key in group.unit:
            cost = self.config.mixers[key].cost(width, length, dtype)
            flops += cost.flops_per_token + 6 * width * mlp_width
            state_bytes += cost.state_bytes
        return Cost(flops * group.repeats, state_bytes * group.repeats)

    def flops_per_token(self, length: int, dtype: DTypeLike) -> float:
        """Forward FLOPs per token of the whole model, the unembedding included."""
        groups = sum(self.group_cost(g, length, dtype).flops_per_token for g in self.plan.groups)
        return groups + 2 * self.config.width * self.vocab_size


def count(params: Params) -> int:
    """Number of parameters in a tree (of arrays or of shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
