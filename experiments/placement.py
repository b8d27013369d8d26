"""Where two attention layers of twelve belong: early, in the middle, spread, late, or nowhere.

python -m hybrid_lm.sweep --config exp/placement.py --data.source path/to/books
"""

import dataclasses

from hybrid_lm.config import Config, EvaluationConfig, OptimizerConfig, Sweep, TrainConfig
from hybrid_lm.mixers import Attention, Mamba2
from hybrid_lm.model import ModelConfig

PLACES = {
    "none": "recurrent: mamba2*12",
    "early": "attention: attn*2; after: mamba2*10",
    "middle": "before: mamba2*5; attention: attn*2; after: mamba2*5",
    "spread": "before: mamba2*3; first: attn; between: mamba2*4; second: attn; after: mamba2*3",
    "late": "before: mamba2*10; attention: attn*2",
}
"""The attention layers are groups of their own, so that a row of the table is what they buy."""


def config() -> Config:
    """Mamba-2 alone, on bytes in rows of 8192."""
    return Config(
        model=ModelConfig(
            layers=PLACES["none"],
            mixers={"attn": Attention(heads=6), "mamba2": Mamba2()},
            width=384,
            mlp_width=1024,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=80),
        train=TrainConfig(
            steps=800,
            length=8192,
            batch_size=4,
            remat="dots",
            unroll=True,
            checkpoint_every=100,
        ),
        evaluation=EvaluationConfig(every=800, split="test", documents=25, batch_size=4),
    )


def sweep() -> Sweep:
    """The same tokens, two seeds each; evaluated at the training length and four times that."""
    base = config()
    return Sweep(
        points={
            place: dataclasses.replace(base, model=dataclasses.replace(base.model, layers=layers))
            for place, layers in PLACES.items()
        },
        baseline="none",
        seeds=(0, 1),
        lengths=(32768,),
    )
