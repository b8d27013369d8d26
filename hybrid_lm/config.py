"""What a run is: frozen dataclasses, made by ``config()`` in a Python file, kept as JSON in a run.

``load("exp/NAME.py")`` runs the file's ``config()``; `to_json` and `from_json` keep its record.
Where the file is a study, ``sweep()`` names the configs of its points, and
``load("exp/NAME.py:POINT")`` is one of them.
"""

import dataclasses
import difflib
import importlib.util
import re
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
    """Recomputed in the backward pass: nothing, all but matrix products and kernels, or whole
    blocks."""
    unroll: bool = False
    """Compile every layer by itself. Steps are faster, as nothing is copied in and out of stacks of
    layers; compilation takes longer, and the longer the deeper the model."""
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


@dataclass(frozen=True)
class Sweep:
    """A study: named points, each trained with every seed; the others are compared with one."""

    points: dict[str, Config]
    """By name: letters, digits, '-', '_' and '.'."""
    baseline: str | None = None
    """The point that the others are compared with. None: the first."""
    seeds: tuple[int, ...] = (0,)
    """In place of ``train.seed`` of every point."""
    lengths: tuple[int, ...] = ()
    """Every point is evaluated at these lengths too, beside that of its config."""
    instruments: tuple[str, ...] = ()
    """Every evaluation has these of ``hybrid_lm.evaluate --only``, beside the table."""

    def __post_init__(self):
        if not self.points:
            raise UserError("a sweep needs at least one point")
        for name in self.points:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise UserError(
                    f"point {name!r}: a name has letters, digits, '-', '_' and '.' only"
                )
        if self.baseline is not None:
            self.point(self.baseline)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds {self.seeds}: they are different integers from 0 on")
        if any(length < 1 for length in self.lengths):
            raise UserError(f"lengths {self.lengths}: they must be positive")

    def point(self, name: str) -> Config:
        """The config of a point; raises `UserError` that suggests the nearest."""
        if name not in self.points:
            near = difflib.get_close_matches(name, self.points, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.points)}"
            raise UserError(f"no point {name!r}; {hint}")
        return self.points[name]


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
    """The `Config` that the file's ``config()`` returns; for ``FILE:POINT``, the sweep's point.

    Raises:
        UserError: if there is no such file or point, or the file has no ``config()`` that returns
            a `Config`.
    """
    file, _, point = name.partition(":")
    return load_sweep(file).point(point) if point else _call(file, "config", Config)


def load_sweep(name: str) -> Sweep:
    """The `Sweep` that the file's ``sweep()`` returns.

    Raises:
        UserError: if there is no such file, or it has no ``sweep()`` that returns a `Sweep`.
    """
    return _call(name, "sweep", Sweep)


def run_path(name: str, config: Config) -> Path:
    """Where a run of `load`'s ``name`` is kept if nothing else is said: ``runs/FILE``.

    A sweep's point is kept in ``runs/FILE/POINT-seedN``.
    """
    file, _, point = name.partition(":")
    path = Path("runs", find(file).stem)
    return path / f"{point}-seed{config.train.seed}" if point else path


def _call[T](name: str, function: str, kind: type[T]) -> T:
    """What a function of a config file returns, which must be of ``kind``."""
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"hybrid_lm_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        result = getattr(module, function)()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(result, kind):
        raise UserError(
            f"{path}: {function}() returned {type(result).__name__}, not a {kind.__name__}"
        )
    return result


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
