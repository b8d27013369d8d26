"""A time-invariant state space, as what a chunk of tokens does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Maps(NamedTuple):
    """What a chunk of C tokens does, float32.

    A state is Q parts of P numbers: the real and the imaginary part of P that decay apart, or one
    part of real numbers with a whole matrix.

    Attributes:
        taps_DC: outputs of a single input of 1.
        write_DQCP: what each token adds to the state after the chunk.
        read_DQCP: what the state before the chunk adds to the output of each token.
        across: what it adds to the state after the chunk: the complex decay [D, 2, P], or a
            matrix [D, P, P] (from, to).
    """

    taps_DC: jax.Array
    write_DQCP: jax.Array
    read_DQCP: jax.Array
    across: jax.Array

    @property
    def dense(self) -> bool:
        """Whether ``across`` is a whole matrix."""
        return self.write_DQCP.shape[1] == 1

    def skipping(self, skip_D: jax.Array | None) -> "Maps":
        """Those that also add ``skip u`` to the outputs."""
        if skip_D is None:
            return self
        return self._replace(taps_DC=self.taps_DC.at[:, 0].add(skip_D))

    def turned(self) -> "Maps":
        """Those of the transposed system, for rows in reverse."""
        if self.dense:
            across = self.across.swapaxes(1, 2)
        else:
            across = self.across * jnp.asarray([1.0, -1.0])[:, None]
        return Maps(self.taps_DC, self.read_DQCP, self.write_DQCP, across)
