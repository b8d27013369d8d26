"""One GPU: full attention early, Mamba and a window in the middle, Mamba-2 deep; 8192 tokens.

python -m hybrid_lm.train --config exp/hybrid_8k.py --data.source path/to/books
"""

from hybrid_lm.config import Config, EvaluationConfig, OptimizerConfig, TrainConfig
from hybrid_lm.mixers import Attention, Mamba, Mamba2
from hybrid_lm.model import ModelConfig


def config() -> Config:
    """52M parameters on bytes; without --data.source, of the Python standard library."""
    return Config(
        model=ModelConfig(
            layers="early: attn*2; middle: (mamba*3, swa)*2; deep: mamba2*4",
            mixers={
                "attn": Attention(heads=8),
                "swa": Attention(heads=8, window=1024),
                "mamba": Mamba(),
                "mamba2": Mamba2(),
            },
            width=512,
            mlp_width=1408,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
        train=TrainConfig(steps=5000, length=8192, batch_size=8, remat="block"),
        evaluation=EvaluationConfig(every=1000, split="test", documents=25, batch_size=4),
    )
