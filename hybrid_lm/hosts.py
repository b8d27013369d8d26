"""Several processes that train one model together, each with its own devices."""

import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hybrid_lm.errors import UserError


def connect(distributed: bool) -> None:
    """Join the other processes if ``distributed`` or JAX_COORDINATOR_ADDRESS is set.

    JAX finds them by itself under Slurm, Open MPI, Kubernetes and on Cloud TPUs; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.

    Raises:
        UserError: if they cannot be found.
    """
    if not distributed and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        return
    try:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID")
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes cannot be found: {' '.join(str(error).split())}; outside a "
            "cluster that JAX knows, set JAX_COORDINATOR_ADDRESS (host:port of process 0), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gather(value: Any) -> list[Any]:
    """The JSON-ready ``value`` of every process, in order, on all of them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: len(text)] = text
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def _number(variable: str) -> int | None:
    return int(os.environ[variable]) if variable in os.environ else None
