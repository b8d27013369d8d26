"""Lowering for a GPU on a machine without one."""

from collections.abc import Callable
from typing import Any

import jax


def count_triton_kernels(function: Callable[..., Any], *operands: Any) -> int:
    """Pallas kernels in ``function``, lowered for CUDA."""
    h100 = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=h100)
    with jax.sharding.use_abstract_mesh(mesh):
        exported = jax.export.export(
            jax.jit(function),
            platforms=["cuda"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
        )(*operands)
    return exported.mlir_module().count("__gpu$xla.gpu.triton")
