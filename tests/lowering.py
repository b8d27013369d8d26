"""Lowering for accelerators on a machine without one."""

from collections.abc import Callable
from typing import Any

import jax

_TRITON = "__gpu$xla.gpu.triton"
_MOSAIC_GPU = "mosaic_gpu_v2"
_MOSAIC_TPU = "tpu_custom_call"


def count_triton_kernels(function: Callable[..., Any], *operands: Any) -> int:
    """Pallas kernels of Triton in ``function``, lowered for CUDA."""
    return _lowered(function, operands, "NVIDIA H100 80GB HBM3", "cuda").count(_TRITON)


def count_mosaic_gpu_kernels(function: Callable[..., Any], *operands: Any) -> int:
    """Pallas kernels for Hopper in ``function``, lowered for CUDA."""
    return _lowered(function, operands, "NVIDIA H100 80GB HBM3", "cuda").count(f"@{_MOSAIC_GPU}(")


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
            disabled_checks=[
                jax.export.DisabledSafetyCheck.custom_call(kind) for kind in (_TRITON, _MOSAIC_GPU)
            ],
        )(*operands)
    return exported.mlir_module()
