"""One device mesh (data, seq, model) and the rules that map logical axes to it.

Parameters are sharded over ``data`` (fully sharded data parallelism) and ``model`` (tensor
parallelism), activations over ``data`` (rows) and ``seq`` (positions). A dimension that an axis
does not divide stays whole.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybrid_lm.errors import UserError

RULES: Mapping[str, str] = {
    "batch": "data",
    "length": "seq",
    "embed": "data",
    "heads": "model",
    "inner": "model",
    "mlp": "model",
    "vocab": "model",
}
"""Logical axis -> mesh axis; a logical axis not named here is never sharded."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices used."""

    data: int = -1
    """Rows of the batch and shards of the parameters. -1: all devices the others leave."""
    seq: int = 1
    """Pieces of each row."""
    model: int = 1
    """Pieces of heads, inner channels, feed-forward and vocabulary."""

    def __post_init__(self):
        if min(self.seq, self.model) < 1 or (self.data < 1 and self.data != -1):
            raise UserError(
                f"mesh data={self.data} seq={self.seq} model={self.model}: an axis has at least 1 "
                "device (data may be -1 for all that are left)"
            )

    def build(self) -> Mesh:
        """The mesh over the devices of all hosts; with ``data`` given, over a single host's first.

        Raises:
            UserError: if there are not as many devices, or some would be left over.
        """
        devices = jax.devices()
        data = len(devices) // (self.seq * self.model) if self.data == -1 else self.data
        shape, names = (data, self.seq, self.model), ("data", "seq", "model")
        used = math.prod(shape)
        must_fill = self.data == -1 or jax.process_count() > 1
        if not 0 < used <= len(devices) or (must_fill and used < len(devices)):
            raise UserError(
                f"mesh data={self.data} seq={self.seq} model={self.model} does not fit "
                f"{len(devices)} device(s)"
            )
        axis_types = (AxisType.Auto,) * len(names)
        return jax.make_mesh(shape, names, axis_types=axis_types, devices=devices[:used])


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Mesh axis of each dimension of an array; None where the rules or the size say whole."""
    entries = []
    for axis, size in zip(axes, shape, strict=True):
        name = RULES.get(axis) if axis else None
        entries.append(name if name and size % mesh.shape[name] == 0 else None)
    return PartitionSpec(*entries)


def shardings(axes_tree: Any, shape_tree: Any, mesh: Mesh) -> Any:
    """`NamedSharding` for every leaf of a tree of arrays and the matching tree of logical axes."""
    return jax.tree.map(
        lambda leaf, axes: NamedSharding(mesh, spec(axes, leaf.shape, mesh)), shape_tree, axes_tree
    )


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Pin an activation to the mesh in use; nothing without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))
