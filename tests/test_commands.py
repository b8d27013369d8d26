"""The commands on a finished run: ``python -m hybrid_lm.evaluate`` and ``hybrid_lm.sample``."""

import json
import random

import jax
import jsonschema
import numpy as np
import pytest

from hybrid_lm import checkpoint, compilation_cache, evaluate, sample
from hybrid_lm.config import Config, EvaluationConfig, TrainConfig
from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.prepare import prepare
from hybrid_lm.instruments import suite
from hybrid_lm.kernels.dispatch import Implementation
from hybrid_lm.mixers import Attention, Linear
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.results.schema import PATH as SCHEMA
from hybrid_lm.run_dir import RunDir
from hybrid_lm.sample import generate
from hybrid_lm.sharding import MeshConfig
from hybrid_lm.step import abstract_state, init_state

TABLE = ["--only", "table"]
WORDS = ["state", "attention", "kernel", "long", "ölçü"]


def write_documents(directory, count, seed):
    rng = random.Random(seed)
    directory.mkdir()
    for i in range(count):
        (directory / f"{i}.txt").write_text(" ".join(rng.choices(WORDS, k=60)), encoding="utf-8")
    return str(directory)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Tiny programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    """A run that has saved its untrained parameters as step 5."""
    root = tmp_path_factory.mktemp("commands")
    mixers = {"attn": Attention(heads=2), "lin": Linear(heads=2)}
    config = Config(
        model=ModelConfig("early: attn; deep: lin", mixers, width=16, mlp_width=16),
        data=DataConfig(
            source=write_documents(root / "own", 30, seed=0),
            tokenizer="bpe",
            bpe_vocab_size=280,
            cache_dir=str(root / "cache"),
            validation_fraction=0.3,
            test_fraction=0.2,
        ),
        train=TrainConfig(length=64, dtype="float32"),
        evaluation=EvaluationConfig(documents=4, resamples=200),
    )
    corpus = prepare(config.data)
    run_dir = RunDir.create(root / "run", config, corpus)
    model, mesh = Model(config.model, corpus.vocab_size), MeshConfig().build()
    optimizer = make_optimizer(config.optimizer, config.train.steps, model.decays)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))
    state = jax.jit(lambda key: init_state(model, optimizer, key), out_shardings=shardings)(
        jax.random.key(0)
    )
    writer = checkpoint.Writer(run_dir, keep=1)
    writer.save(state, checkpoint.Position(5, 0, None))
    writer.close()
    return run_dir.path


@pytest.fixture
def call(monkeypatch, run_main):
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    return run_main


def reports(run_path):
    return {
        path.parent.name: json.loads(path.read_text()) for path in run_path.glob("*/report.json")
    }


def test_evaluations_with_other_settings_lie_side_by_side(run_path, call, tmp_path):
    code, printed, _ = call(evaluate, run_path, *TABLE)
    assert code == 0
    assert "step 5 · validation · 4 documents of 64 tokens = 256 tokens" in printed
    assert "without it" in printed
    assert "early" in printed
    own = reports(run_path)["report"]
    assert own["documents"] == 4
    assert own["step"] == 5

    other = write_documents(tmp_path / "other", 12, seed=1)
    assert call(evaluate, run_path, *TABLE, "--batch-size", 3)[0] == 0
    of_test = ["--split", "test", "--length", 80, "--documents", 3]
    assert call(evaluate, run_path, *TABLE, *of_test)[0] == 0
    assert call(evaluate, run_path, *TABLE, "--corpus", other, "--documents", 2)[0] == 0
    found = reports(run_path)
    (corpus_name,) = found.keys() - {"report", "report-test-length80-documents3"}
    assert corpus_name.startswith("report-documents2-other-bpe-")
    assert found["report"]["perplexity"] == pytest.approx(own["perplexity"], rel=1e-5)
    assert found["report-test-length80-documents3"]["length"] == 80
    assert found["report-test-length80-documents3"]["buckets"][-1]["beyond_training"]
    assert found[corpus_name]["corpus"]["source"] == other
    of_tokenizer = [record["corpus"]["tokenizer_sha256"] for record in found.values()]
    assert len(set(of_tokenizer)) == 1, "another corpus is read with the run's tokenizer"


@pytest.mark.thorough
def test_all_instruments_run_on_a_run_and_go_on_from_what_was_measured(run_path, call):
    code, printed, _ = call(evaluate, run_path, "--documents", 3, "--lens")
    assert code == 0
    for title in ("Knock-outs", "Shapley values", "By token class", "decoded at the exits"):
        assert title in printed
    report = reports(run_path)["report-documents3"]
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    ran = {found["name"] for found in report["instruments"]}
    missing = {part["name"]: part["reason"] for part in report["not_run"]}
    assert ran >= {"knockout", "shapley", "token_classes", "lens"}
    assert "too short" in missing["field"]
    assert ran | missing.keys() == {instrument.name for instrument in suite.INSTRUMENTS}
    assert sorted(path.name for path in (run_path / "lens").iterdir()) == ["tuned_lens.npz"]
    kept = run_path / "report-documents3" / "instruments" / "shapley.npz"
    before = kept.stat().st_mtime_ns
    assert call(evaluate, run_path, "--documents", 3, "--only", "shapley")[0] == 0
    assert kept.stat().st_mtime_ns == before
    again = reports(run_path)["report-documents3"]
    assert again["shapley"] == report["shapley"]
    assert again["groups"][0]["knockout_mean"] is None


def test_a_named_output_is_never_overwritten(run_path, call, tmp_path):
    output = tmp_path / "mine"
    assert call(evaluate, run_path, *TABLE, "--documents", 2, "--output", output)[0] == 0
    before = (output / "report.json").read_bytes()
    code, _, error = call(evaluate, run_path, "--output", output)
    assert code == 2
    assert "already holds a report" in error
    assert (output / "report.json").read_bytes() == before


def test_documents_that_changed_since_training_are_not_evaluated_as_held_out(run_path, call):
    config = RunDir(run_path).config()
    corpus = run_path / "corpus.json"
    manifest = json.loads(corpus.read_text())
    changed = manifest | {"splits": {"train": {"sha256": "0" * 64}}}
    corpus.write_text(json.dumps(changed))
    try:
        code, _, error = call(evaluate, run_path)
    finally:
        corpus.write_text(json.dumps(manifest))
    assert code == 2
    assert "was trained on other documents" in error
    assert f"--corpus {config.data.source}" in error


@pytest.mark.parametrize("command", [evaluate, sample])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere is no run directory"),
        (["nowhere", "--lenght", "3"], "unknown option '--lenght'"),
        ([], "RUN_DIR"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, args, message, call):
    code, _, error = call(command, *args)
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_bad_numbers_leave_no_report(run_path, call):
    for args in (
        *(["--length", 10**6], ["--documents", 1], ["--text-column", "body"]),
        *(["--resamples", 10], ["--only", "knokout"]),
    ):
        code, _, error = call(evaluate, run_path, *args)
        assert code == 2
        assert len(error.splitlines()) == 1
    assert not list(run_path.glob("report-*000*"))


def test_sample_prints_the_prompt_and_the_greedy_continuation(run_path, call, tmp_path):
    run_dir = RunDir(run_path)
    config, tokenizer = run_dir.config(), run_dir.tokenizer()
    model = Model(config.model, tokenizer.vocab_size)
    params, _ = checkpoint.load_params(run_dir, model, MeshConfig().build())
    prompt_L = np.array([tokenizer.document_id, *tokenizer.encode("long state")], np.int32)
    expected = generate(
        model,
        params,
        prompt_L[None],
        tokens=8,
        temperature=0.0,
        top_k=None,
        key=jax.random.key(0),
        dtype="float32",
        implementation=Implementation(),
    )[0].tolist()
    if tokenizer.document_id in expected:
        expected = expected[: expected.index(tokenizer.document_id)]
    prompt_file = tmp_path / "prompt.txt"
    prompt_file.write_text("long state")
    for prompt in (["--prompt", "long state"], ["--prompt-file", prompt_file]):
        code, printed, _ = call(sample, run_path, *prompt, "--tokens", 8, "--temperature", 0)
        assert code == 0
        assert printed == "long state" + tokenizer.decode(expected) + "\n"


def test_sample_takes_one_prompt(run_path, call, tmp_path):
    code, _, error = call(sample, run_path, "--prompt", "a", "--prompt-file", tmp_path / "b")
    assert (code, error) == (2, "error: give --prompt or --prompt-file, not both\n")
    code, _, error = call(sample, run_path, "--prompt-file", tmp_path / "b")
    assert code == 2
    assert "b cannot be read" in error
