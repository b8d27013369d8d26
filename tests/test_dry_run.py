"""The dry run: what it says is what the run would be, and nothing is left behind."""

import dataclasses
import io
import re

import jax
import pytest
from rich.console import Console

from hybrid_lm import compilation_cache, dry_run, train
from hybrid_lm.config import Config, TrainConfig
from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.prepare import prepare
from hybrid_lm.mixers import Attention, Linear
from hybrid_lm.model import Model, ModelConfig, count
from hybrid_lm.sharding import MeshConfig
from tests import runs


@pytest.fixture
def config(tmp_path):
    source = runs.write_documents(tmp_path / "documents")
    return Config(
        ModelConfig(
            layers="early: lin; deep: lin*2",
            mixers={"attn": Attention(heads=2), "lin": Linear(heads=2)},
            width=16,
            mlp_width=32,
        ),
        data=DataConfig(source=source, cache_dir=str(tmp_path / "cache")),
        train=TrainConfig(length=64, batch_size=8, dtype="float32", remat="none"),
    )


def described(config, **mesh):
    console = Console(file=io.StringIO(), width=200)
    console.print(dry_run.describe(config, MeshConfig(**({"data": 1} | mesh)).build()))
    return console.file.getvalue()


def size_bytes(text, name):
    """The last number of the line that begins with ``name``."""
    number, unit = re.search(rf"^ *{name}.* ([\d.]+) (B|KiB|MiB|GiB) *$", text, re.M).groups()
    return float(number) * 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit)


def replace_train(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def test_it_says_what_is_known_and_leaves_nothing_behind(config, tmp_path):
    stack = dataclasses.replace(config.model, layers="early: attn; deep: lin*2")
    text = described(dataclasses.replace(config, model=stack))
    model = Model(stack, 257)
    params = count(model.abstract_params())
    assert "early: attn; deep: lin*2" in text
    assert re.search(r"early +attn +1 ", text)
    assert re.search(rf"all +with embedding +3 +{params:,} ", text)
    assert size_bytes(text, "parameters") == pytest.approx(4 * params, rel=1e-3)
    assert size_bytes(text, "gradients") == pytest.approx(4 * params, rel=1e-3)
    assert size_bytes(text, "optimizer") == pytest.approx(8 * params, rel=1e-2)
    # 8192 keys and values of 16 channels in float32, and two counters.
    early = model.plan.groups[0]
    assert model.group_cost(early, 8192, "float32").state_bytes == 8192 * 2 * 16 * 4 + 8
    assert re.search(r"early .* 1 MiB", text)
    assert "mesh: data 1, seq 1, model 1; 1 of 8 x cpu" in text
    assert "attention: using xla (not pallas: the device is not a Hopper GPU; cudnn: " in text
    assert "cudnn: the device is not a GPU)" in text
    assert "ssd: using xla" in text
    assert f"{config.data.source}, to be prepared" in text
    assert "1,000 steps of 8 rows x 64 = 512 tokens" in text
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]


def test_a_prepared_corpus_is_summed_up(config):
    corpus = prepare(config.data)
    assert f"{corpus.manifest['splits']['train']['tokens']:,} tokens" in described(config)


def test_a_trained_tokenizer_counts_before_it_exists(config):
    data = dataclasses.replace(config.data, tokenizer="bpe", bpe_vocab_size=1000)
    params = count(Model(config.model, 1000).abstract_params())
    assert f" {params:,} " in described(dataclasses.replace(config, data=data))


def test_shards_of_a_device_are_counted(config):
    whole, cut = described(config), described(config, data=4, model=2)
    kept = "activations"
    assert size_bytes(cut, kept) == pytest.approx(size_bytes(whole, kept) / 4, rel=1e-2)
    assert size_bytes(whole, "parameters") / 8 < size_bytes(cut, "parameters")
    assert size_bytes(cut, "parameters") < size_bytes(whole, "parameters") / 2


def test_activations_grow_with_the_rows_at_a_time_and_shrink_by_recomputing(config):
    def kept(**changes):
        return size_bytes(described(replace_train(config, **changes)), "activations")

    everything, blocks = kept(), kept(remat="block")
    assert kept(batch_size=16) == pytest.approx(2 * everything, rel=0.1)
    assert kept(batch_size=16, accumulate=2) == pytest.approx(everything, rel=0.1)
    assert blocks < kept(remat="dots") < everything
    # At least the residual stream into each of the three blocks, and out of the last.
    assert blocks >= 4 * 8 * 64 * 16 * 4


def test_the_command_makes_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    monkeypatch.chdir(tmp_path)
    train.main(["--config", str(runs.write_config(tmp_path)), "--dry-run"])
    assert "all: lin" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"documents", "tiny.py"}
    assert jax.sharding.get_abstract_mesh().empty
