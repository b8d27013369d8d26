"""Lowering for accelerators on a machine without one."""

from collections.abc import Callable
from typing import Any

import jax

_TRITON = "__gpu$xla.gpu.triton"
_MOSAIC_TPU = "tpu_custom_call"


def count_triton_kernels(function: Callable[..., Any], *operands: Any) -> int:
    """Pallas kernels in ``function``, lowered for CUDA."""
    return _lowered(function, operands, "NVIDIA H100 80GB HBM3", "cuda").count(_TRITON)


def count_tpu_kernels(function: Callable[..., Any], *operands: Any) -> int:
    """Pallas kernels in ``function``, lowered for a TPU."""
    return _lowered(function, operands, "TPU v5p", "tpu").count(f"@{_MOSAIC_TPU}(")


def _lowered(function, operands, device: str, platform: str) -> str:
    abstract = jax.sharding.AbstractDevice(device, None, platform)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), auto, abstract_device=abstract)
    with jax.sharding.use_abstract_mesh(mesh):
        exported = jax.export.export(
            jax.jit(function),
            platforms=[platform],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(_TRITON)],
        )(*operands)
    return exported.mlir_module()
