"""One optimizer step: loss, gradients summed over the parts of a batch, and a guarded update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_lm.config import Config
from hybrid_lm.kernels.dispatch import on_gpu
from hybrid_lm.loss import summed_nll
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, Params
from hybrid_lm.optimizer import learning_rate, norms
from hybrid_lm.sharding import constrain, shardings, spec

Batch = dict[str, Any]
"""Arrays tokens_BL, targets_BL, segment_ids_BL, positions_BL (see `hybrid_lm.data.pipeline`)."""

GPU_OPTIONS = {
    # By cuBLAS alone: a product then takes in the addition behind it. Where Triton's products are
    # among the choices, XLA makes that a pass over memory of its own.
    "xla_gpu_enable_triton_gemm": False,
    # Products of the same x stay apart: the result of merged ones is cut up by copying it.
    "xla_gpu_dot_merger_threshold_mb": 0,
}

BATCH_KEYS = ("tokens_BL", "targets_BL", "segment_ids_BL", "positions_BL")


class TrainState(NamedTuple):
    """All that training carries from step to step.

    Attributes:
        step: number of updates so far, int32.
        finite: False from the first step on whose loss, gradient or update is not finite; that
            step and all later ones change nothing.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    finite: jax.Array


class Metrics(NamedTuple):
    """What one step measured, scalars on the device.

    Attributes:
        loss: mean NLL in nats of the tokens that are not padding.
        tokens: their number.
        grad_norm: global norm before clipping; update_norm: of the change of the parameters.
        grad_norms: by part of the model (see `hybrid_lm.optimizer.norms`).
    """

    loss: jax.Array
    tokens: jax.Array
    learning_rate: jax.Array
    grad_norm: jax.Array
    update_norm: jax.Array
    finite: jax.Array
    grad_norms: dict[str, jax.Array]


def init_state(model: Model, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = model.init(key)
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.bool(True))


def abstract_state(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shape, dtype and sharding of every leaf of the state."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    whole = NamedSharding(mesh, PartitionSpec())
    by_param = shardings(model.axes, shapes.params, mesh)
    in_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        shapes.opt_state,
        by_param,
        transform_non_params=lambda _: whole,
    )
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tuple(shapes),
        (by_param, in_optimizer, whole, whole),
    )
    return TrainState(*placed)


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
    """Shape, dtype and sharding of a batch: rows over ``data``, positions over ``seq``."""
    shape = (config.train.batch_size, config.train.length)
    sharding = NamedSharding(mesh, spec(("batch", "length"), shape, mesh))
    return {key: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for key in BATCH_KEYS}


def context(config: Config, batch: Batch) -> Context:
    """The context in which the model sees a training batch.

    Padding goes on with the last document of its row, so rows that are not packed are one document.
    Where it begins need not be said: mixers are causal, and what it itself costs is not counted.
    """
    is_packed = config.data.pack and config.data.max_segments > 1
    ids_BL = batch["segment_ids_BL"]
    last_B1 = jnp.max(ids_BL, axis=1, keepdims=True)
    return Context(
        positions_BL=batch["positions_BL"],
        segment_ids_BL=jnp.where(ids_BL == 0, last_B1, ids_BL) if is_packed else None,
        dtype=config.train.dtype,
        implementation=config.train.implementation,
        max_segments=config.data.max_segments,
    )


def total_nll(model: Model, config: Config, params: Params, batch: Batch) -> jax.Array:
    """NLL in nats, summed over the tokens that are not padding."""
    output = model.apply(
        params,
        batch["tokens_BL"],
        context(config, batch),
        remat=config.train.remat,
        unroll=config.train.unroll,
    )
    with jax.named_scope("head"):
        readout_BLD = model.readout(params, output.exits[-1])
        return summed_nll(
            readout_BLD,
            params["embedding"],
            batch["targets_BL"],
            batch["segment_ids_BL"] != 0,
            config.train.implementation.cross_entropy,
            config.train.unroll,
        )


def split(batch: Batch, parts: int) -> Batch:
    """The rows of a batch as ``parts`` batches, stacked in front.

    Every part takes rows from all over the batch, so that no row leaves its device.
    """

    def cut(x_BL: jax.Array) -> jax.Array:
        x_PBL = jnp.swapaxes(x_BL.reshape(-1, parts, x_BL.shape[1]), 0, 1)
        return constrain(x_PBL, (None, "batch", "length"))

    return jax.tree.map(cut, batch)


def make_step(
    model: Model, optimizer: optax.GradientTransformation, config: Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function ``(state, batch) -> (state, metrics)``, to be jitted.

    The loss is the mean over all tokens of the batch, however the padding falls on its parts. A
    step that is not finite returns the state it was given, with ``finite`` False.
    """
    schedule = learning_rate(config.optimizer, config.train.steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def add_part(total, part: Batch):
            nll_and_grads = jax.value_and_grad(
                lambda params: total_nll(model, config, params, part)
            )(state.params)
            return jax.tree.map(jnp.add, total, nll_and_grads), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), state.params))
        (nll, grads), _ = jax.lax.scan(add_part, zeros, split(batch, config.train.accumulate))
        tokens = jnp.sum(batch["segment_ids_BL"] != 0)
        loss = nll / tokens
        grads = jax.tree.map(lambda grad: grad / tokens, grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
            finite = state.finite
            for number in (loss, grad_norm, update_norm):
                finite &= jnp.isfinite(number)
            params: Any = optax.apply_updates(state.params, updates)
            updated = TrainState(params, opt_state, state.step + 1, finite)
            kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        metrics = Metrics(
            loss=loss,
            tokens=tokens,
            learning_rate=jnp.asarray(schedule(state.step)),
            grad_norm=grad_norm,
            update_norm=update_norm,
            finite=finite,
            grad_norms=norms(grads),
        )
        return kept._replace(finite=finite), metrics

    return step


def jitted_step(
    model: Model, optimizer: optax.GradientTransformation, config: Config, state_like: TrainState
) -> jax.stages.Wrapped:
    """`make_step` as training runs it: compiled for the device, in place of the state it is given.

    ``state_like`` is of `abstract_state`.
    """
    placed = jax.tree.map(lambda leaf: leaf.sharding, state_like)
    return jax.jit(
        make_step(model, optimizer, config),
        donate_argnums=0,
        out_shardings=(placed, None),
        compiler_options=GPU_OPTIONS if on_gpu() else None,
    )
