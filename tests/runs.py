"""Tiny runs: documents, a config file, and the command in this process or another."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

WORDS = ["state", "attention", "kernel", "decay", "long", "ölçü"]

CONFIG = """
from hybrid_lm.config import Config, EvaluationConfig, OptimizerConfig, TrainConfig
from hybrid_lm.data.config import DataConfig
from hybrid_lm.mixers import Attention, Linear
from hybrid_lm.model import ModelConfig
from hybrid_lm.sharding import MeshConfig


def config():
    return Config(
        model=ModelConfig(
            layers="all: lin",
            mixers={{"lin": Linear(heads=2), "attn": Attention(heads=2)}},
            width=16,
            mlp_width=0,
        ),
        data=DataConfig({documents!r}, cache_dir={cache!r}, validation_fraction=0.3),
        optimizer=OptimizerConfig(warmup_steps=5, learning_rate=1e-2),
        train=TrainConfig(
            steps=24, length=32, batch_size=4, accumulate=2, dtype="float32",
            log_every=1, checkpoint_every=2,
        ),
        evaluation=EvaluationConfig(every=12, documents=4, resamples=200),
        mesh=MeshConfig(data=1),
    )
"""


def write_documents(directory: Path, count: int = 30, words: int = 60) -> str:
    rng = random.Random(0)
    directory.mkdir()
    for i in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.randint(words // 2, words)))
        (directory / f"{i}.txt").write_text(text, encoding="utf-8")
    return str(directory)


def write_config(root: Path) -> Path:
    """A config file ``root/tiny.py`` beside the documents it trains on."""
    documents = write_documents(root / "documents")
    path = root / "tiny.py"
    text = CONFIG.format(documents=documents, cache=str(root / "cache"))
    path.write_text(text, encoding="utf-8")
    return path


def start(config: Path, run_dir: Path, *options: str, env=None) -> subprocess.Popen:
    """The command in a process of its own; programs are compiled once for all processes."""
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-m", "hybrid_lm.train", "--config", str(config)),
            *("--run-dir", str(run_dir), *options),
        ],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XDG_CACHE_HOME": str(config.parent / "xdg"),
        }
        | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(run_dir: Path) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows(run_dir)]
