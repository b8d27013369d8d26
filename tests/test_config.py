"""Configs: found by name, changed by typed options, kept as JSON, refused where senseless."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from hybrid_lm import config as configs
from hybrid_lm import mixers
from hybrid_lm.config import Config, EvaluationConfig, OptimizerConfig, TrainConfig
from hybrid_lm.errors import UserError
from hybrid_lm.kernels.dispatch import Implementation
from hybrid_lm.model import Model, ModelConfig, count
from hybrid_lm.sharding import MeshConfig, spec
from hybrid_lm.train import parse, require_divisible


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "exp/quickstart.py"])
def test_a_config_is_found_by_its_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # also from elsewhere
    path = configs.find(name)
    assert path.parent.name == "experiments"
    assert path.name == "quickstart.py"


def test_a_path_comes_before_a_name(monkeypatch, tmp_path):
    (tmp_path / "exp").mkdir()
    own = tmp_path / "exp" / "quickstart.py"
    own.write_text("")
    monkeypatch.chdir(tmp_path)
    assert configs.find("exp/quickstart.py").resolve() == own


def test_an_unknown_config_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no config 'exp/quikstart.py'; did you mean 'quickstart'"):
        configs.find("exp/quikstart.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "AttributeError"),
        ("def config(): return 3", "returned int, not a Config"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        ("from hybrid_lm.config import TrainConfig\nTrainConfig(steps=0)", "train.steps is 0"),
    ],
)
def test_a_file_that_makes_no_config_is_an_error(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError, match=message):
        configs.load(str(tmp_path / "broken.py"))


STUDY = """
from dataclasses import replace
from hybrid_lm import config as configs
from hybrid_lm.config import Sweep

def sweep():
    base = configs.load("quickstart")
    short = replace(base, train=replace(base.train, steps=7))
    return Sweep({{"base": base, "short": short}}, {options})
"""


@pytest.fixture
def study(tmp_path):
    """Write a study with options; its name for ``--config``."""

    def write(options=""):
        path = tmp_path / "study.py"
        path.write_text(STUDY.format(options=options))
        return str(path)

    return write


def test_a_point_of_a_study_is_a_config_of_its_own(study):
    name = study('baseline="short", seeds=(3, 4), lengths=(4096,)')
    sweep = configs.load_sweep(name)
    assert (sweep.baseline, sweep.seeds, sweep.lengths) == ("short", (3, 4), (4096,))
    config = parse(["--config", f"{name}:short", "--train.seed", "4"]).run
    assert (config.train.steps, config.train.seed) == (7, 4)
    assert configs.run_path(f"{name}:short", config) == Path("runs/study/short-seed4")
    assert configs.run_path(name, config) == Path("runs/study")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('baseline="shrot"', "no point 'shrot'; did you mean 'short'?"),
        ("seeds=(1, 1)", "seeds (1, 1)"),
        ("seeds=()", "seeds ()"),
        ("lengths=(0,)", "lengths (0,)"),
    ],
)
def test_a_study_that_cannot_be_is_an_error(study, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        configs.load_sweep(study(options))


def test_points_are_named_and_known(study):
    with pytest.raises(UserError, match="no point 'shrot'; did you mean 'short'"):
        configs.load(f"{study()}:shrot")
    with pytest.raises(UserError, match="AttributeError"):
        configs.load_sweep("quickstart")
    for points, message in [({}, "at least one point"), ({"a/b": None}, "point 'a/b'")]:
        with pytest.raises(UserError, match=message):
            configs.Sweep(points)


def test_options_change_the_config_by_type():
    options = parse(
        [
            *("--config", "quickstart", "--train.steps", "10", "--train.batch_size", "6"),
            *("--model.mixers.swa.window", "512", "--model.mixers.attn.rope-theta", "None"),
            *("--evaluation.length=4096", "--data.no-pack", "--run-dir", "somewhere"),
            *("--train.implementation.attention", "reference"),
        ]
    )
    config, default = options.run, configs.load("quickstart")
    assert config.train.steps == 10
    assert config.train.batch_size == 6
    assert config.model.mixers["swa"] == dataclasses.replace(
        default.model.mixers["swa"], window=512
    )
    assert config.model.mixers["attn"].rope_theta is None
    assert config.evaluation_length == 4096
    assert not config.data.pack
    assert config.train.implementation == Implementation(attention="reference")
    assert config.model.layers == default.model.layers
    assert options.run_dir == "somewhere"
    assert not options.dry_run


def test_help_lists_every_option_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--config", "quickstart", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for text in ("--model.mixers.swa.window", "--train.steps", "Optimizer steps.", "--dry-run"):
        assert text in printed
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    assert "--train.steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.mixers.sw.window", "5"], "did you mean --model.mixers.swa.window"),
        (["--train.stepz", "5"], "did you mean --train.steps"),
        (["--train.steps", "many"], "--train.steps"),
        (["--train.dtype", "int8"], "--train.dtype"),
        (["--train.steps", "0"], "train.steps is 0; it must be positive"),
        (["--train.length", "-1"], "train.length is -1"),
        (["--evaluation.length", "0"], "evaluation.length is 0"),
        (["--optimizer.learning-rate", "nan"], "optimizer.learning_rate is nan"),
        (["--optimizer.warmup-steps", "-1"], "optimizer.warmup_steps is -1"),
        (["--train.accumulate", "3"], "train.accumulate 3 does not divide train.batch_size 2"),
        (["--model.mixers.swa.chunk-size", "0"], "attention: chunk_size 0 must be at least 1"),
        (["--mesh.seq", "0"], "an axis has at least 1 device"),
        (["--config"], "--config needs a value"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_clear_line(options, message):
    with pytest.raises(UserError) as error:
        parse(["--config", "quickstart", *options] if options != ["--config"] else options)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_without_a_config_a_first_one_is_named():
    with pytest.raises(UserError, match="no --config; for a first run"):
        parse(["--train.steps", "5"])


def test_json_keeps_everything():
    config = Config(
        ModelConfig(
            "a: m; b: s*2",
            {name: mixers.get(name)() for name in mixers.names()}
            | {"m": mixers.Mamba(state_size=3), "s": mixers.Attention(window=7, rope_theta=None)},
        ),
        optimizer=OptimizerConfig(beta1=0.5),
        train=TrainConfig(implementation=Implementation(ssd="xla")),
        evaluation=EvaluationConfig(length=77),
        mesh=MeshConfig(model=4),
    )
    record = json.loads(json.dumps(configs.to_json(config)))
    assert configs.from_json(record) == config


def test_the_experiment_for_one_gpu_is_as_large_as_it_says():
    config = configs.load("hybrid_8k")
    model = Model(config.model, 257)
    assert 30e6 < count(model.abstract_params()) < 60e6
    assert config.train.length == 8192
    assert [group.name for group in model.plan.groups] == ["early", "middle", "deep"]


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(seq=2, model=2), (2, 2, 2)),
        (MeshConfig(data=1), (1, 1, 1)),
        (MeshConfig(data=2, model=3), (2, 1, 3)),
    ],
)
def test_a_mesh_has_the_devices_it_names(mesh, shape):
    assert mesh.build().devices.shape == shape


@pytest.mark.parametrize("mesh", [MeshConfig(data=9), MeshConfig(model=3), MeshConfig(seq=16)])
def test_a_mesh_that_the_devices_do_not_fill_is_an_error(mesh):
    with pytest.raises(UserError, match=r"does not fit 8 device\(s\)"):
        mesh.build()


@pytest.mark.parametrize(
    ("mesh", "train", "message"),
    [
        (MeshConfig(), TrainConfig(batch_size=12), "12 rows at a time .* by 8 device"),
        (MeshConfig(), TrainConfig(batch_size=16, accumulate=4), "4 rows at a time"),
        (MeshConfig(seq=8), TrainConfig(length=100), "train.length 100 cannot be shared by 8"),
    ],
)
def test_rows_and_positions_are_shared_evenly(mesh, train, message):
    config = Config(ModelConfig("a", {}), train=train, mesh=mesh)
    with pytest.raises(UserError, match=message):
        require_divisible(config, mesh.build())


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = MeshConfig(data=4, model=2).build()
    axes = ("vocab", "embed")
    assert spec(axes, (6, 8), mesh) == jax.P("model", "data")
    assert spec(axes, (7, 6), mesh) == jax.P(None, None)
