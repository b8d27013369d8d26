"""What the scripts that make the fixtures share (extra `oracles`; tests do not import it)."""

import importlib.util
import runpy
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent


def values_and_gradients(
    layer: torch.nn.Module, x_BLD: torch.Tensor, weight_BLD: torch.Tensor
) -> dict[str, torch.Tensor]:
    """y of a mixer layer, and the gradients of ``sum(y * weight)`` under "d" + name."""
    layer.zero_grad()
    x_BLD = x_BLD.clone().requires_grad_()
    y_BLD = layer(x_BLD)
    (y_BLD * weight_BLD).sum().backward()
    gradients = {f"d{name}": parameter.grad.clone() for name, parameter in layer.named_parameters()}
    return {"y": y_BLD, "dx": x_BLD.grad, **gradients}


class Heads(torch.nn.Module):
    """``out(core(layer, x, q, k, v))`` for parameters q, k, v and out, and more for the core.

    q, k, v and what the core returns are [B, L, H, channels].
    """

    def __init__(self, core: Callable[..., torch.Tensor], weights: dict[str, torch.Tensor]):
        super().__init__()
        self.core = core
        for name, weight in weights.items():
            self.register_parameter(name, torch.nn.Parameter(weight))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        qkv = (torch.einsum("bld,dhk->blhk", x_BLD, self.get_parameter(name)) for name in "qkv")
        y_BLHP = self.core(self, x_BLD, *qkv)
        return torch.einsum("blhp,hpd->bld", y_BLHP, self.get_parameter("out"))


def of_operation(
    operation: Callable[..., tuple[torch.Tensor, torch.Tensor]], operands: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """y and final state of an operation, weights, and gradients of the weighted sum of both."""
    operands = {name: operand.requires_grad_() for name, operand in operands.items()}
    y, final = operation(**operands)
    weights = {"weight_y": torch.randn_like(y), "weight_final": torch.randn_like(final)}
    ((y * weights["weight_y"]).sum() + (final * weights["weight_final"]).sum()).backward()
    gradients = {f"d{name}": operand.grad for name, operand in operands.items()}
    return {"y": y, "final": final, **weights, **operands, **gradients}


def fla_naive(operation: str) -> dict[str, Any]:
    """Names in a naive reference of flash-linear-attention, whose packages import Triton."""
    spec = importlib.util.find_spec("fla")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return runpy.run_path(str(folder / "ops" / operation / "naive.py"))


def save(name: str, packages: list[str], arrays: dict[str, torch.Tensor]) -> None:
    """Write ``name``.npz beside this file, with the versions of the packages that made it."""
    versions = ", ".join(f"{package} {version(package)}" for package in ["torch", *packages])
    values = {key: array.detach().numpy() for key, array in arrays.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", versions=versions, **values)
