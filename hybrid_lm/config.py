"""What a run is: frozen dataclasses, made by ``config()`` in a Python file, kept as JSON in a run.

``load("exp/NAME.py")`` runs the file's ``config()``; `to_json` and `from_json` keep its record.
"""

import dataclasses
import difflib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hybrid_lm import mixers
from hybrid_lm.data.config import DataConfig
from hybrid_lm.errors import UserError
from hybrid_lm.kernels.dispatch import Implementation
from hybrid_lm.model import ModelConfig, Remat
from hybrid_lm.sharding import MeshConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """Peak, at the end of the warm-up."""
    warmup_steps: int = 100
    """Steps from 0 to the peak."""
    final_fraction: float = 0.1
    """Learning rate at the last step, as a fraction of the peak."""
    beta1: float = 0.9
    """Decay of the gradient's average."""
    beta2: float = 0.95
    """Decay of the squared gradient's average."""
    weight_decay: float = 0.1
    """Decoupled; not on norms, biases, A, D and step parameters."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    def __post_init__(self):
        _require_positive("optimizer", self, "learning_rate", "clip_norm")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps is {self.warmup_steps}; it cannot be negative")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 1000
    """Optimizer steps."""
    length: int = 2048
    """Tokens of a row."""
    batch_size: int = 8
    """Rows of an optimizer step, over all devices and accumulation parts."""
    accumulate: int = 1
    """Parts the batch is taken in, one after the other, their gradients added up."""
    seed: int = 0
    """Of parameters and data order."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations; parameters are float32."""
    remat: Remat = "block"
    """Recomputed in the backward pass: nothing, all but matrix products, or whole blocks."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """Latest checkpoints kept."""
    implementation: Implementation = field(default_factory=Implementation)

    def __post_init__(self):
        counts = ("steps", "length", "batch_size", "accumulate")
        intervals = ("log_every", "checkpoint_every", "keep_checkpoints")
        _require_positive("train", self, *counts, *intervals)
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.accumulate {self.accumulate} does not divide train.batch_size "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """The long-document evaluation."""

    every: int = 500
    """Steps between evaluations; the end always has one."""
    split: Literal["validation", "test"] = "validation"
    """Documents that are scored."""
    documents: int = 32
    """At most so many, of those that are long enough."""
    length: int | None = None
    """Tokens scored of each document; shorter documents are left out. None: the row of training."""
    batch_size: int = 4
    """Documents scored at a time."""
    resamples: int = 2000
    """Bootstrap resamples of the documents behind each interval."""

    def __post_init__(self):
        _require_positive("evaluation", self, "every", "documents", "batch_size", "resamples")
        if self.length is not None:
            _require_positive("evaluation", self, "length")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    @property
    def evaluation_length(self) -> int:
        """Tokens scored of each document."""
        return self.evaluation.length or self.train.length


def _require_positive(prefix: str, config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"{prefix}.{name} is {getattr(config, name)}; it must be positive")


def find(name: str) -> Path:
    """The config file that ``name`` stands for: a path, or a file of ``experiments/``.

    ``exp/NAME.py``, ``NAME.py`` and ``NAME`` all find ``experiments/NAME.py``.

    Raises:
        UserError: if there is none; suggests the nearest.
    """
    given = Path(name)
    if given.is_file():
        return given
    stem = given.name.removesuffix(".py")
    folders = [Path("experiments"), Path(__file__).parent.parent / "experiments"]
    for folder in folders:
        if (folder / f"{stem}.py").is_file():
            return folder / f"{stem}.py"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    near = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"experiments/ has: {', '.join(known)}"
    raise UserError(f"no config {name!r}; {hint}")


def load(name: str) -> Config:
    """The `Config` that the file's ``config()`` returns.

    Raises:
        UserError: if there is no such file, or it has no ``config()`` that returns a `Config`.
    """
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"hybrid_lm_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(f"{path}: config() returned {type(config).__name__}, not a Config")
    return config


def to_json(config: Config) -> dict[str, Any]:
    """A JSON-ready record of the config; each mixer carries its registry key as ``mixer``."""
    record = dataclasses.asdict(config)
    for name, mixer in config.model.mixers.items():
        record["model"]["mixers"][name]["mixer"] = mixer.key
    return record


def from_json(record: dict[str, Any]) -> Config:
    """Inverse of `to_json`."""
    model = dict(record["model"])
    model["mixers"] = {
        name: mixers.get(fields["mixer"])(**{k: v for k, v in fields.items() if k != "mixer"})
        for name, fields in model["mixers"].items()
    }
    train = dict(record["train"])
    train["implementation"] = Implementation(**train["implementation"])
    return Config(
        model=ModelConfig(**model),
        data=DataConfig(**record["data"]),
        optimizer=OptimizerConfig(**record["optimizer"]),
        train=TrainConfig(**train),
        evaluation=EvaluationConfig(**record["evaluation"]),
        mesh=MeshConfig(**record["mesh"]),
    )
