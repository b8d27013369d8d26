"""What all instruments measure with: one compiled program per layer group, and the NLL of an exit.

A group runs by itself on the residual stream that enters it, so that what lies before a change is
computed once. Whole, knocked out and mean-ablated groups run the same program, so that a difference
between two of them is never one of compilation.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hybrid_lm import declared, sharding
from hybrid_lm.block import Absence
from hybrid_lm.config import Config
from hybrid_lm.errors import UserError
from hybrid_lm.instruments.cut import cut_field
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.loss import token_nll
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, Params, State
from hybrid_lm.pattern import Group

LARGEST_NLL = 700.0
"""Nats per token: exp of it is still a float64."""


class Batch(NamedTuple):
    """Rows on the devices.

    Attributes:
        documents: that the rows are of.
        places: of the rows among the documents; the last may come several times.
    """

    documents: Documents
    places: np.ndarray
    tokens_BL: jax.Array
    targets_BL: jax.Array


class Bench:
    """The programs that score ``documents``, and the settings they run in.

    Attributes:
        layers: group of every layer of the stack and its place [repeat, unit] there.
        costs: of every group on such a document.
        mixers: what those of the pattern declare.
    """

    def __init__(self, model: Model, config: Config, mesh: Mesh, documents: Documents):
        self.model, self.config, self.mesh, self.documents = model, config, mesh, documents
        self.groups = model.plan.groups
        self.layers = [
            (g, repeat, place)
            for g, group in enumerate(self.groups)
            for repeat in range(group.repeats)
            for place in range(len(group.unit))
        ]
        self.dtype = jnp.dtype(config.train.dtype)
        length = documents.length
        self.costs = [model.group_cost(group, length, self.dtype) for group in self.groups]
        self.mixers = declared.mixers(model, length, self.dtype)
        self.flops_per_token = model.flops_per_token(length, self.dtype)
        whole = NamedSharding(mesh, PartitionSpec())
        self.embed = jax.jit(self._embed)
        self.run_group = jax.jit(self._run_group, static_argnames="group")
        self.observe_group = jax.jit(self._observe_group, static_argnames="group")
        self.cut_group = jax.jit(self._cut_group, static_argnames=("group", "width"))
        self.stream = jax.jit(self._stream, static_argnames=("model", "capacity"))
        self.nll = jax.jit(self._nll, out_shardings=whole)

    @cached_property
    def whole(self) -> list[Absence]:
        """Per group: no layer is absent."""
        return self.absences()

    @property
    def resamples(self) -> int:
        """Bootstrap resamples behind an interval."""
        return self.config.evaluation.resamples

    def layers_of(self, g: int) -> list[int]:
        """Places in the stack of the layers of a group."""
        return [layer for layer, (group, *_) in enumerate(self.layers) if group == g]

    def put(self, documents: Documents, places: np.ndarray, start: int, end: int) -> Batch:
        """Tokens [start, end) of the documents at ``places``."""
        shape = (len(places), end - start)
        spec = sharding.spec(("batch", "length"), shape, self.mesh)
        cut = np.s_[places, start:end]
        pair = (documents.tokens_BL[cut], documents.targets_BL[cut])
        return Batch(documents, places, *jax.device_put(pair, NamedSharding(self.mesh, spec)))

    def absences(
        self, absent: Collection[int] = (), instead_ND: np.ndarray | None = None
    ) -> list[Absence]:
        """Per group: layers ``absent``, places in the stack, give ``instead_ND``, or nothing."""
        of_groups = []
        for g, group in enumerate(self.groups):
            own = self.layers_of(g)
            shape = (group.repeats, len(group.unit))
            keep_RU = np.array([layer not in absent for layer in own]).reshape(shape)
            instead_RUD = np.zeros((*shape, self.model.config.width), np.float32)
            if instead_ND is not None:
                instead_RUD[...] = instead_ND[own].reshape(instead_RUD.shape)
            of_groups.append((keep_RU, instead_RUD))
        whole = NamedSharding(self.mesh, PartitionSpec())
        return [Absence(*jax.device_put(pair, whole)) for pair in of_groups]

    def context(self, rows: jax.Array, start: jax.Array | int = 0) -> Context:
        """Rows [B, L, ...] that are one document each, from position ``start`` of it on."""
        return Context.of_documents(
            rows.shape[0],
            rows.shape[1],
            start,
            dtype=self.dtype,
            implementation=self.config.train.implementation,
        )

    def _embed(self, params: Params, tokens_BL: jax.Array) -> jax.Array:
        return self.model.embed(params, tokens_BL, self.context(tokens_BL))

    def _run_group(
        self, params: Params, x_BLD: jax.Array, absence: Absence, *, group: Group
    ) -> jax.Array:
        ctx = self.context(x_BLD)
        return self.model.run_group(group, params, x_BLD, ctx, absence=absence)[0]

    def _observe_group(
        self, params: Params, x_BLD: jax.Array, *, group: Group
    ) -> tuple[jax.Array, jax.Array]:
        ctx = self.context(x_BLD)
        x_BLD, _, mean_RUBD = self.model.run_group(group, params, x_BLD, ctx, observe=True)
        assert mean_RUBD is not None
        return x_BLD, mean_RUBD

    def _cut_group(
        self, params: Params, x_BLD: jax.Array, *, group: Group, width: int
    ) -> jax.Array:
        def run(x_BLD: jax.Array, start_B1: jax.Array) -> jax.Array:
            ctx = self.context(x_BLD, start_B1)
            return self.model.run_group(group, params, x_BLD, ctx)[0]

        return cut_field(run, x_BLD, width)

    def _stream(
        self,
        params: Params,
        tokens_BL: jax.Array,
        start: jax.Array,
        state: State,
        *,
        model: Model,
        capacity: int,
    ) -> tuple[jax.Array, State]:
        ctx = dataclasses.replace(self.context(tokens_BL, start), capacity=capacity)
        output = model.apply(params, tokens_BL, ctx, state)
        assert output.state is not None
        return output.exits[-1], output.state

    def _nll(self, params: Params, x_BLD: jax.Array, targets_BL: jax.Array) -> jax.Array:
        return token_nll(self.model.readout(params, x_BLD), params["embedding"], targets_BL)


class Session:
    """One set of parameters on a bench.

    Attributes:
        advance: called with the passes over a batch that are done since the last call.
    """

    def __init__(
        self,
        bench: Bench,
        params: Params,
        *,
        step: int,
        advance: Callable[[float], None] = lambda passes: None,
    ):
        self.bench, self.params, self.step, self.advance = bench, params, step, advance

    def batches(self, documents: Documents | None = None) -> Iterator[Batch]:
        """The bench's documents, or others, whole and batch by batch."""
        documents = documents or self.bench.documents
        for places in documents.batches(self.bench.config.evaluation.batch_size):
            yield self.bench.put(documents, places, 0, documents.length)

    def embed(self, batch: Batch) -> jax.Array:
        """The residual stream that enters the first group."""
        return self.bench.embed(self.params, batch.tokens_BL)

    def group(self, g: int, x_BLD: jax.Array, absence: Absence) -> jax.Array:
        """The residual stream that leaves group ``g``."""
        group = self.bench.groups[g]
        own = self.params["groups"][group.name]
        return self.bench.run_group(own, x_BLD, absence, group=anonymous(group))

    def exits(self, x_BLD: jax.Array, absences: list[Absence], start: int = 0) -> list[jax.Array]:
        """The residual stream as it leaves each group from group ``start`` on."""
        exits = []
        for g in range(start, len(self.bench.groups)):
            x_BLD = self.group(g, x_BLD, absences[g])
            exits.append(x_BLD)
        return exits

    def nll_BL(self, x_BLD: jax.Array, batch: Batch, where: str) -> np.ndarray:
        """NLL of the targets read off ``x_BLD``.

        Raises:
            UserError: if it is not finite, saying ``where`` and in which document.
        """
        nll_BL = jax.device_get(self.bench.nll(self.params, x_BLD, batch.targets_BL))
        for nll, place in zip(nll_BL.mean(axis=1, dtype=np.float64), batch.places, strict=True):
            if not nll < LARGEST_NLL:
                raise UserError(
                    f"evaluation at step {self.step}: the NLL {where} is {nll} nats per token in "
                    f"document {batch.documents.names[place]!r}; evaluate an earlier checkpoint or "
                    "a lower learning rate"
                )
        return nll_BL


def anonymous(group: Group) -> Group:
    """The group without its name: groups of one structure share a program."""
    return dataclasses.replace(group, name="")
