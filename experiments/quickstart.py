"""Minutes on two CPU cores: three layer groups on the Python standard library.

python -m hybrid_lm.train --config exp/quickstart.py
"""

from hybrid_lm.config import Config, EvaluationConfig, OptimizerConfig, TrainConfig
from hybrid_lm.mixers import Attention, Linear, Mamba, Mamba2
from hybrid_lm.model import ModelConfig


def config() -> Config:
    """0.3M parameters, 2048 bytes of context."""
    return Config(
        model=ModelConfig(
            layers="early: attn; middle: mamba, swa; deep: mamba2, linear",
            mixers={
                "attn": Attention(heads=2),
                "swa": Attention(heads=2, window=256, chunk_size=256),
                "mamba": Mamba(state_size=8),
                "mamba2": Mamba2(state_size=32, head_dim=32),
                "linear": Linear(heads=2),
            },
            width=64,
            mlp_width=160,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=20),
        train=TrainConfig(
            steps=90,
            length=2048,
            batch_size=2,
            dtype="float32",
            remat="none",
            log_every=10,
            checkpoint_every=45,
        ),
        evaluation=EvaluationConfig(every=90, documents=24, batch_size=4),
    )
