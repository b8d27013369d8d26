"""The evaluation's numbers: known answers, exact bookkeeping, no dependence on how it is run."""

import copy
import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from hybrid_lm.config import Config, EvaluationConfig, TrainConfig
from hybrid_lm.errors import UserError
from hybrid_lm.evaluate import Evaluator
from hybrid_lm.mixers import Attention, Context, Linear
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.octaves import octave_means, octaves
from hybrid_lm.sharding import MeshConfig

VOCAB = 11
LENGTH = 300
LENGTHS = [400, 301, 20, 350, 500, 320]  # of documents, the document-start token included
LONG_ENOUGH = (0, 1, 3, 4, 5)


class MemorySplit:
    """Random documents in memory."""

    def __init__(self, lengths):
        rng = np.random.default_rng(0)
        self.lengths = np.array(lengths)
        self.names = [f"document {i}" for i in range(len(lengths))]
        self._documents = [rng.integers(1, VOCAB, n).astype(np.int32) for n in lengths]

    def tokens(self, index, start, stop):
        return self._documents[index][start:stop]


def memory_corpus(lengths=LENGTHS, token_bytes=1):
    split = MemorySplit(lengths)
    token_bytes_V = np.full(VOCAB, token_bytes)
    token_bytes_V[0] = 0
    return SimpleNamespace(
        split={"validation": split, "test": split}.__getitem__,
        tokenizer=SimpleNamespace(document_id=0, token_bytes_V=token_bytes_V),
        manifest={
            "source": {"name": "memory", "fingerprint": "f" * 64},
            "tokenizer": {"kind": "letters", "vocab_size": VOCAB, "sha256": "a" * 64},
            "splits": {"validation": {"sha256": "b" * 64}, "test": {"sha256": "c" * 64}},
        },
    )


CONFIG = Config(
    model=ModelConfig(
        layers="early: attn; deep: lin*2",
        mixers={"attn": Attention(heads=2, chunk_size=64), "lin": Linear(heads=2, chunk_size=32)},
        width=16,
        mlp_width=16,
    ),
    train=TrainConfig(length=256, dtype="float32"),
    evaluation=EvaluationConfig(length=LENGTH, batch_size=2, resamples=200),
)
MODEL = Model(CONFIG.model, VOCAB)
ONE_DEVICE = jax.make_mesh(
    (1, 1, 1), ("data", "seq", "model"), (AxisType.Auto,) * 3, devices=jax.devices()[:1]
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Tiny programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def params():
    # Wider than an initialisation, so that no two groups or documents come out alike.
    return jax.tree.map(lambda a: 1.5 * a, jax.jit(MODEL.init)(jax.random.key(0)))


def with_batch_size(size):
    return dataclasses.replace(
        CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, batch_size=size)
    )


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(MODEL, memory_corpus(), CONFIG, ONE_DEVICE)


@pytest.fixture(scope="module")
def report(evaluator, params):
    return evaluator.run(params, step=7)


def numbers(tree):
    """All numbers of a JSON tree by path."""
    if isinstance(tree, dict):
        return {f"{k}/{p}": v for k, sub in tree.items() for p, v in numbers(sub).items()}
    if isinstance(tree, list):
        return {f"{i}/{p}": v for i, sub in enumerate(tree) for p, v in numbers(sub).items()}
    return {"": tree} if isinstance(tree, int | float) else {}


def assert_same_numbers(report, other, tolerance):
    a, b = numbers(report.to_json()), numbers(other.to_json())
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert b[path] == pytest.approx(value, rel=tolerance, abs=tolerance), path


@jax.jit
def naive_nll(params, tokens_L, targets_L, keep_G):
    """NLL of one document at the exit of every group, from the logits of the whole row."""
    ctx = Context.of_documents(1, LENGTH)
    exits = MODEL.apply(params, tokens_L[None], ctx, keep_G=keep_G).exits
    log_p = [jax.nn.log_softmax(MODEL.logits(params, exit_BLD)[0]) for exit_BLD in exits]
    return [-log_p_LV[jnp.arange(LENGTH), targets_L] for log_p_LV in log_p]


@pytest.mark.parametrize("length", [1, 100, 128, 129, 256, 300, 8192, 10_000])
def test_octaves_tile_the_document(length):
    spans = octaves(length)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == length
    widths = [end - start for start, end in spans]
    assert widths[:-1] == [128 * max(1, 2 ** (i - 1)) for i in range(len(spans) - 1)]


def test_numbers_are_those_of_whole_rows_of_logits(report, evaluator, params):
    split = memory_corpus().split("validation")
    assert report.document_indices == LONG_ENOUGH
    exits, full, without = [], [], []
    for index in LONG_ENOUGH:
        row = split.tokens(index, 0, LENGTH), split.tokens(index, 1, LENGTH + 1)
        for nlls, nll_L in zip(
            (exits, full), naive_nll(params, *row, np.array([True, True])), strict=True
        ):
            nlls.append(np.asarray(nll_L, np.float64))
        without.append(np.asarray(naive_nll(params, *row, np.array([False, True]))[-1], np.float64))
    early, deep = report.groups
    assert report.documents == 5
    assert report.tokens == report.bytes == 5 * LENGTH
    assert report.nll == pytest.approx(np.mean(full), abs=1e-5)
    assert report.perplexity == pytest.approx(math.exp(np.mean(full)), abs=1e-4)
    assert report.bits_per_byte == pytest.approx(np.mean(full) / math.log(2), abs=1e-5)
    assert early.exit_nll == pytest.approx(np.mean(exits), abs=1e-5)
    assert deep.exit_nll == report.nll
    difference = np.array(without) - np.array(full)
    assert early.knockout.delta_nll == pytest.approx(difference.mean(), abs=1e-5)
    assert early.knockout.win_rate == np.mean(difference.mean(axis=1) > 0)
    for i, (start, end) in enumerate([(0, 128), (128, 256), (256, 300)]):
        assert (report.buckets[i].start, report.buckets[i].end) == (start, end)
        span = np.s_[:, start:end]
        assert report.buckets[i].nll == pytest.approx(np.array(full)[span].mean(), abs=1e-5)
        assert early.exit_buckets[i].nll == pytest.approx(np.array(exits)[span].mean(), abs=1e-5)
        delta = early.knockout.buckets[i].delta_nll
        assert delta == pytest.approx(difference[span].mean(), abs=1e-5)


def test_buckets_recombine_to_the_total(report):
    def combined(buckets, field):
        return sum(getattr(b, field) * (b.end - b.start) for b in buckets) / LENGTH

    assert combined(report.buckets, "nll") == pytest.approx(report.nll, rel=1e-12)
    for group in report.groups:
        assert combined(group.exit_buckets, "nll") == pytest.approx(group.exit_nll, rel=1e-12)
        knockout = group.knockout
        assert combined(knockout.buckets, "delta_nll") == pytest.approx(
            knockout.delta_nll, rel=1e-9, abs=1e-12
        )


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(evaluator, params):
    report = evaluator.run(params | {"embedding": jnp.zeros((VOCAB, 16))}, step=0)
    assert report.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert report.bits_per_byte == pytest.approx(math.log2(VOCAB), rel=1e-6)
    for group in report.groups:
        assert group.exit_perplexity == pytest.approx(VOCAB, rel=1e-6)
        assert group.knockout.delta_nll == 0


def test_a_group_that_writes_nothing_costs_exactly_nothing_to_skip(evaluator, params):
    silent = jax.tree.map(lambda a: a, params)
    silent["groups"]["deep"]["0"]["mixer"]["out"] *= 0
    early, deep = evaluator.run(silent, step=0).groups
    assert deep.knockout.delta_nll == 0
    assert deep.knockout.ci95 == (0, 0)
    assert deep.knockout.win_rate == deep.knockout.minimum_detectable_effect == 0
    assert all(b.delta_nll == 0 and b.ci95 == (0, 0) for b in deep.knockout.buckets)
    assert early.knockout.delta_nll != 0


def test_bits_per_byte_divide_by_the_bytes_of_the_scored_tokens(evaluator, params, report):
    evaluator = copy.copy(evaluator)
    evaluator.corpus = memory_corpus(token_bytes=3)
    other = evaluator.run(params, step=7)
    assert other.bytes == 3 * report.bytes
    assert other.bits_per_byte == pytest.approx(report.bits_per_byte / 3, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_batch_size_changes_nothing(batch_size, report, params):
    evaluator = Evaluator(MODEL, memory_corpus(), with_batch_size(batch_size), ONE_DEVICE)
    assert_same_numbers(evaluator.run(params, step=7), report, 1e-5)


def test_several_devices_give_the_numbers_of_one(report, params):
    devices = jax.device_count()
    assert devices > 1
    evaluator = Evaluator(MODEL, memory_corpus(), with_batch_size(devices), MeshConfig().build())
    assert_same_numbers(evaluator.run(params, step=7), report, 1e-5)


def test_a_second_run_compiles_nothing_and_moves_nothing_unasked(evaluator, params):
    progress = []
    with jax.no_tracing(), jax.transfer_guard("disallow"):
        evaluator.run(params, step=8, on_progress=lambda *done: progress.append(done))
    assert progress == [(i, 9) for i in range(1, 10)]  # 3 batches, whole and without each group


def test_every_field_of_the_report_is_there_and_finite(report):
    record = report.to_json()
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert {"documents", "tokens", "perplexity", "bits_per_byte", "buckets", "groups"} <= set(
        record
    )
    for bucket in record["buckets"]:
        assert {"start", "end", "nll", "ci95"} <= set(bucket)
        low, high = bucket["ci95"]
        assert low <= bucket["nll"] <= high
    fields = {"name", "pattern", "layers", "params", "state_bytes", "exit_perplexity", "knockout"}
    for group in record["groups"]:
        assert fields <= set(group)
        assert {"delta_nll", "ci95", "buckets"} <= set(group["knockout"])
        for bucket in group["knockout"]["buckets"]:
            assert {"start", "end", "delta_nll", "ci95"} == set(bucket)
    assert all(math.isfinite(number) for number in numbers(record).values())
    assert record["split"] == "validation"
    assert record["step"] == 7
    assert record["groups"][1]["pattern"] == "lin*2"
    assert record["groups"][1]["layers"] == 2
    assert sum(g["params"] for g in record["groups"]) == record["params"] - 16 * (VOCAB + 1)


def test_positions_beyond_training_are_marked(report):
    assert [b.beyond_training for b in report.buckets] == [False, False, True]


def test_a_short_length_is_one_bucket(params):
    evaluator = Evaluator(MODEL, memory_corpus(), CONFIG, ONE_DEVICE, length=20, documents=2)
    report = evaluator.run(params, step=0)
    assert [(b.start, b.end) for b in report.buckets] == [(0, 20)]
    assert report.documents == 2
    assert report.interval_method == "Student's t"


def test_octave_means_weigh_tokens():
    nats = np.array([[128.0, 256.0, 88.0], [128.0, 256.0, 88.0]])
    total, by_octave = octave_means(nats, 300, resamples=200)
    assert [mean.nats for mean in by_octave] == [1.0, 2.0, 2.0]
    assert total.nats == pytest.approx(472 / 300)


class Fragile(Model):
    """Not a number as soon as a group is skipped."""

    def run_group(self, *args, absence, **kwargs):
        x_BLD, *rest = super().run_group(*args, absence=absence, **kwargs)
        return jnp.where(absence.keep.all(), x_BLD, jnp.nan), *rest


def test_a_number_that_is_not_finite_stops_with_its_place(evaluator, params):
    broken = jax.tree.map(lambda a: a, params)
    broken["groups"]["deep"]["0"]["mixer"]["out"] *= jnp.nan
    with pytest.raises(UserError, match="step 3: the NLL at the exit of group 'deep' is nan"):
        evaluator.run(broken, step=3)
    overflowing = params | {"norm": params["norm"] * 1e6}
    with pytest.raises(UserError, match=r"'early' is \d+\S* nats per token in .*'document 0'"):
        evaluator.run(overflowing, step=3)
    fragile = Evaluator(Fragile(CONFIG.model, VOCAB), memory_corpus(), CONFIG, ONE_DEVICE)
    with pytest.raises(UserError, match="step 3: the NLL without group 'early' is nan"):
        fragile.run(params, step=3)


def test_bad_numbers_are_one_line():
    corpus = memory_corpus()
    with pytest.raises(UserError, match=r"evaluation\.length is 0"):
        Evaluator(MODEL, corpus, CONFIG, ONE_DEVICE, length=0)
    with pytest.raises(UserError, match=r"evaluation\.documents is 1; .* at least 2"):
        Evaluator(MODEL, corpus, CONFIG, ONE_DEVICE, documents=1)
    few = dataclasses.replace(CONFIG, evaluation=EvaluationConfig(length=LENGTH, resamples=10))
    with pytest.raises(UserError, match=r"evaluation\.resamples is 10"):
        Evaluator(MODEL, corpus, few, ONE_DEVICE)
    with pytest.raises(UserError, match="longest has 499"):
        Evaluator(MODEL, corpus, CONFIG, ONE_DEVICE, length=450)
