"""Programs compiled side by side, in processes of their own, and run in this one.

Compiling takes far longer than running, and threads of one process wait for each other. On GPUs,
XLA takes products from cuBLAS alone.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
from jax.experimental import serialize_executable

from hybrid_lm.errors import UserError

Program = tuple[Any, ...]
"""What another process can load."""


def program(function: Callable[..., Any], *operands: Any) -> Program:
    """``function`` compiled for ``operands``, arrays or their shapes."""
    return serialize_executable.serialize(jax.jit(function).lower(*operands).compile())


def load(program: Program) -> Any:
    """A program of another process, for the first device: what it was compiled for."""
    device = jax.devices()[:1]
    return serialize_executable.deserialize_and_load(*program, execution_devices=device)


def in_processes(function: Callable[..., Any], cases: list[tuple[Any, ...]]) -> list[Any]:
    """``function`` of each case, in processes side by side; an exception in place of what failed.

    Where a process dies, and all that it shares its pool with, each of them gets one of its own.
    What found too little memory beside the others, for products to choose among are run, is tried
    again one by one.

    Raises:
        UserError: if a case did.
    """
    workers = min(os.cpu_count() or 1, len(cases))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share the device

    def pool(workers: int) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(workers, spawn, _without_triton_products)

    def outcome(future: Future[Any]) -> Any:
        try:
            return future.result()
        except UserError:
            raise
        except Exception as error:
            return error

    def alone(case: tuple[Any, ...]) -> Any:
        with pool(1) as own:
            return outcome(own.submit(function, *case))

    with pool(workers) as shared:
        outcomes = [outcome(f) for f in [shared.submit(function, *case) for case in cases]]
    died = [i for i, found in enumerate(outcomes) if isinstance(found, BrokenProcessPool)]
    with ThreadPoolExecutor(workers) as threads:
        for i, found in zip(died, threads.map(alone, [cases[i] for i in died]), strict=True):
            outcomes[i] = found
    return [
        alone(case) if out_of_memory(found) else found
        for case, found in zip(cases, outcomes, strict=True)
    ]


def out_of_memory(found: Any) -> bool:
    """Whether it is an exception that says so."""
    return isinstance(found, Exception) and "RESOURCE_EXHAUSTED" in str(found)


def _without_triton_products() -> None:
    # XLA compiles each product in dozens of ways, to choose: 75 s of processor time for one layer.
    # By cuBLAS alone, which needs no compiling, it is 7 s.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()
