"""What a run would be, without compiling, allocating or writing anything."""

import math
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Group
from rich.table import Table

from hybrid_lm.config import Config
from hybrid_lm.data.corpus import Corpus
from hybrid_lm.data.prepare import find_prepared
from hybrid_lm.data.tokenizers import ByteTokenizer
from hybrid_lm.kernels.dispatch import recorded
from hybrid_lm.model import Model, count
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.step import abstract_batch, abstract_state, total_nll

STATE_LENGTH = 8192
"""Tokens after which states are measured."""


def describe(config: Config, mesh: Mesh) -> Group:
    """The plan, its costs, memory, devices, kernels and data, to be printed.

    Raises:
        UserError: for a config that cannot be built, or an implementation that cannot run here.
    """
    corpus = find_prepared(config.data)
    model = Model(config.model, vocab_size(config, corpus))
    with jax.set_mesh(mesh), recorded() as implementations:
        memory = _memory(model, config, mesh)
    return Group(
        _plan(model, config),
        "",
        memory,
        "",
        f"mesh: {', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}; "
        f"{mesh.size} of {jax.device_count()} x {mesh.devices.flat[0].device_kind}",
        *implementations,
        _data(config, corpus),
        _batch(config),
    )


def vocab_size(config: Config, corpus: Corpus | None) -> int:
    """Of the corpus, or where it is None as the config says it will be."""
    if corpus is not None:
        return corpus.vocab_size
    return {"bytes": ByteTokenizer.vocab_size, "bpe": config.data.bpe_vocab_size}[
        config.data.tokenizer
    ]


def _plan(model: Model, config: Config) -> Table:
    length, dtype = config.train.length, config.train.dtype
    params = model.abstract_params()
    table = Table(title=str(model.plan), title_justify="left", box=None)
    table.add_column("group")
    table.add_column("pattern")
    for column in ("layers", "params", "FLOPs/token", f"state@{STATE_LENGTH // 1024}k"):
        table.add_column(column, justify="right")
    for group in model.plan.groups:
        table.add_row(
            group.name,
            group.pattern,
            str(group.layers),
            f"{count(params['groups'][group.name]):,}",
            f"{model.group_cost(group, length, dtype).flops_per_token:.4g}",
            _bytes(model.group_cost(group, STATE_LENGTH, dtype).state_bytes),
        )
    states = [model.group_cost(g, STATE_LENGTH, dtype).state_bytes for g in model.plan.groups]
    table.add_row(
        "all",
        "with embedding",
        str(model.plan.layers),
        f"{count(params):,}",
        f"{model.flops_per_token(length, dtype):.4g}",
        _bytes(sum(states)),
        style="bold",
    )
    table.caption = f"FLOPs: forward, mean over a row of {length:,} tokens"
    return table


def _memory(model: Model, config: Config, mesh: Mesh) -> Table:
    """Bytes on each device; traces the forward pass, which also chooses the implementations."""
    optimizer = make_optimizer(config.optimizer, config.train.steps, model.decays)
    state, batch = abstract_state(model, optimizer, mesh), abstract_batch(config, mesh)
    rows = {
        "parameters": _bytes_on_a_device(state.params),
        "optimizer": _bytes_on_a_device(state.opt_state),
        "gradients": _bytes_on_a_device(state.params),
        f"activations kept for the backward pass, remat {config.train.remat} (traced)": (
            _saved_bytes(model, config, state.params, batch)
            // (config.train.accumulate * mesh.shape["data"] * mesh.shape["seq"])
        ),
    }
    table = Table(box=None, caption="more is needed while a layer computes; the compiler decides")
    table.add_column("memory of each device")
    table.add_column("bytes", justify="right")
    for name, size in rows.items():
        table.add_row(name, _bytes(size))
    table.add_row("together", _bytes(sum(rows.values())), style="bold")
    return table


def _bytes_on_a_device(tree: Any) -> int:
    """Bytes of one device's shards of a tree of abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _saved_bytes(model: Model, config: Config, params: Any, batch: Any) -> int:
    """Bytes that the forward pass of a whole batch hands to the backward pass, on all devices.

    They are the results of the traced program that are not among its inputs.
    """

    def forward(params, batch):
        return jax.vjp(lambda params: total_nll(model, config, params, batch), params)[1]

    program = jax.make_jaxpr(forward)(params, batch).jaxpr
    inputs = {id(variable) for variable in program.invars}
    saved: dict[int, Any] = {id(variable): variable.aval for variable in program.outvars}
    return sum(
        math.prod(aval.shape) * aval.dtype.itemsize
        for key, aval in saved.items()
        if key not in inputs
    )


def _data(config: Config, corpus: Corpus | None) -> str:
    if corpus is None:
        return f"data: {config.data.source}, to be prepared under {config.data.cache_dir}"
    splits = (
        f"{name} {split['documents']:,} documents, {split['tokens']:,} tokens"
        for name, split in corpus.manifest["splits"].items()
    )
    return f"data: {config.data.source}: {'; '.join(splits)}"


def _batch(config: Config) -> str:
    train = config.train
    tokens = train.batch_size * train.length
    return (
        f"{train.steps:,} steps of {train.batch_size} rows x {train.length:,} = {tokens:,} tokens, "
        f"{train.accumulate} part(s) a step; {train.steps * tokens:,} tokens in all"
    )


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
