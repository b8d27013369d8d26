"""What a diagonal recurrence is, apart from how it is run."""

from abc import ABC, abstractmethod

import jax


class Recurrence(ABC):
    """``h_t = exp(log_decay(x_t)) * h_{t-1} + write(x_t)``; ``y_t = read(x_t, h_t)``.

    ``x`` is a dict of arrays with any leading dimensions (batch, and places within chunks); the
    state adds trailing dimensions. ``log_decay`` must be linear in ``x["step"]``, so that the
    decay over several tokens is that of the sum of their steps.
    """

    @abstractmethod
    def log_decay(self, step: jax.Array) -> jax.Array:
        """Log of the decay over a step; its real part is <= 0."""

    @abstractmethod
    def write(self, x: dict[str, jax.Array]) -> jax.Array:
        """What the token adds to the state."""

    @abstractmethod
    def read(self, x: dict[str, jax.Array], h: jax.Array) -> jax.Array:
        """The output of the token, without the state's trailing dimension."""
