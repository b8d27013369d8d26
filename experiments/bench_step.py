"""What the training step is measured on: a hybrid of 49.5M parameters, attention, Mamba-2.

Vocabulary of 8192, 65,536 tokens a step, in rows of 8,192 and of 32,768 tokens.

python -m hybrid_lm.bench step --config exp/bench_step.py
"""

from hybrid_lm.config import Config, Sweep, TrainConfig
from hybrid_lm.data.config import DataConfig
from hybrid_lm.mixers import Attention, Mamba2
from hybrid_lm.model import ModelConfig

_LAYERS = {"hybrid": "attn*2; mamba2*10", "attention": "attn*12", "mamba2": "mamba2*12"}
_ROWS = {"8k": (8, 8192), "32k": (2, 32768)}


def sweep() -> Sweep:
    """Every stack at every length."""
    points = {f"{name}-{length}": _point(name, length) for name in _LAYERS for length in _ROWS}
    return Sweep(points)


def config() -> Config:
    """The hybrid in rows of 8,192."""
    return _point("hybrid", "8k")


def _point(layers: str, length: str) -> Config:
    rows, row_length = _ROWS[length]
    return Config(
        model=ModelConfig(
            layers=_LAYERS[layers],
            mixers={"attn": Attention(heads=8), "mamba2": Mamba2()},
            width=512,
            mlp_width=1408,
        ),
        data=DataConfig(tokenizer="bpe", bpe_vocab_size=8192),
        train=TrainConfig(
            length=row_length,
            batch_size=rows,
            # Kept to 16 GiB in rows of 8,192, where attention alone needs no recomputing for that.
            remat="dots" if length == "8k" and layers != "attention" else "none",
            unroll=True,
        ),
    )
