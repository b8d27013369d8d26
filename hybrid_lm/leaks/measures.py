"""What leaks from a mixer, as numbers: 0 is none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid_lm.leaks.noise import WIDTH
from hybrid_lm.mixers import Context, MixerConfig

LENGTH = 32
_PARTS = (11, 1, 16, 4)
_DOCUMENTS = (9, 1, 14, 8)
assert sum(_PARTS) == sum(_DOCUMENTS) == LENGTH


def resized[T: MixerConfig](config: T, sizes: dict[str, int]) -> T:
    """``config`` with those of ``sizes`` that it has; what it leaves open (None) stays open."""
    fields = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) is not None}
    given: dict = {name: size for name, size in sizes.items() if name in fields}
    return dataclasses.replace(config, **given)


class Probe:
    """A mixer at its start, on one row of random inputs in float32."""

    def __init__(self, config: MixerConfig):
        self.config = config
        graph, params = nnx.split(config.build(WIDTH, nnx.Rngs(0)))
        self.apply = jax.jit(lambda *operands: nnx.merge(graph, params)(*operands))
        self.x_LD = np.random.default_rng(0).normal(size=(LENGTH, WIDTH)).astype(np.float32)
        self.y_LD = self.outputs(self.x_LD)

    def outputs(self, x_LD) -> np.ndarray:
        """Of a row that is one document."""
        return np.asarray(self.apply(x_LD[None], Context.of_documents(1, LENGTH))[0][0])

    def suffix(self) -> float:
        """Largest change of an output when tokens after it are drawn anew, over the RMS output."""
        rng, worst = np.random.default_rng(1), 0.0
        for start in range(1, LENGTH):
            x_LD = self.x_LD.copy()
            x_LD[start:] = 3 * rng.normal(size=(LENGTH - start, WIDTH))
            change = np.abs(self.outputs(x_LD)[:start] - self.y_LD[:start]).max()
            worst = max(worst, float(change))
        return worst / float(np.sqrt(np.mean(self.y_LD**2)))

    def jacobian(self) -> float:
        """Largest derivative of an output by a later token, over the largest by any token."""
        whole = Context.of_documents(1, LENGTH)
        jacobian = jax.jit(jax.jacrev(lambda x_LD: self.apply(x_LD[None], whole)[0][0]))(self.x_LD)
        by_token = np.abs(np.asarray(jacobian)).max(axis=(1, 3))
        return float(np.triu(by_token, 1).max() / by_token.max())

    def packing(self) -> float:
        """Relative RMSE of documents packed in a row against the same documents run apart."""
        positions_L = np.concatenate([np.arange(size) for size in _DOCUMENTS])
        ids_L = np.repeat(1 + np.arange(len(_DOCUMENTS)), _DOCUMENTS)
        ctx = Context(jnp.asarray(positions_L[None]), jnp.asarray(ids_L[None]))
        packed_LD = self.apply(self.x_LD[None], ctx)[0][0]
        apart = []
        for x_SD in np.split(self.x_LD, np.cumsum(_DOCUMENTS)[:-1]):
            apart.append(self.outputs(np.pad(x_SD, ((0, LENGTH - len(x_SD)), (0, 0))))[: len(x_SD)])
        return _relative_rmse(packed_LD, np.concatenate(apart))

    def hand_off(self) -> float:
        """Relative RMSE of a row run in parts, each from the state before it, against one pass."""
        state, start, parts = None, 0, []
        for size in _PARTS:
            ctx = Context.of_documents(1, size, start)
            y_BSD, state = self.apply(self.x_LD[None, start : start + size], ctx, state)
            parts.append(y_BSD[0])
            start += size
        return _relative_rmse(np.concatenate(parts), self.y_LD)


def _relative_rmse(actual, truth) -> float:
    return float(np.linalg.norm(np.asarray(actual) - truth) / np.linalg.norm(truth))
