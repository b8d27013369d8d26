"""The instruments on a model whose layers copy from 700 tokens before in one group, and do nothing
in the others: each must say so, where and how far."""

import dataclasses
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from hybrid_lm.errors import UserError
from hybrid_lm.instruments import knockout, shapley, suite, table
from hybrid_lm.instruments.base import CannotRun
from hybrid_lm.instruments.bench import Bench, Session
from hybrid_lm.instruments.cut import cut_field
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.instruments.field import FieldInstrument
from hybrid_lm.instruments.scoring import _windows
from hybrid_lm.results import Report
from tests.byhand import PERIOD, copying_model, memory_corpus, repeating_documents

LENGTH, DOCUMENTS = 4096, 5
CONFIG, MODEL, PARAMS = copying_model()
CORPUS = memory_corpus(
    {
        "train": repeating_documents(4, LENGTH + 1, seed=0),
        "validation": repeating_documents(DOCUMENTS, LENGTH + 1, seed=1),
    }
)
ONE_DEVICE = jax.make_mesh(
    (1, 1, 1), ("data", "seq", "model"), (AxisType.Auto,) * 3, devices=jax.devices()[:1]
)
ALL = suite.chosen(None, lens=False)


@pytest.fixture(scope="module", autouse=True)
def quick_programs():
    """Programs that are quick to compile."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def bench():
    documents = Documents.choose(CORPUS, "validation", length=LENGTH, limit=None)
    return Bench(MODEL, CONFIG, ONE_DEVICE, documents)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def progress():
    return []


@pytest.fixture(scope="module")
def report(bench, directory, progress):
    return run(bench, directory, on_progress=lambda *at: progress.append(at))


def run(bench, directory, names=ALL, params=PARAMS, **rest):
    kept = directory / "kept"
    return suite.run(
        bench, CORPUS, params, step=7, names=names, directory=directory, kept=kept, **rest
    )


@pytest.fixture(scope="module")
def loss(bench, directory, report):
    """NLL that the copying group saves at every token, [documents, length]."""
    with np.load(directory / "table.npz") as arrays:
        return arrays["without"][1].astype(np.float64) - arrays["nll"]


def test_only_the_group_that_copies_helps_and_only_where_there_is_something_to_copy(report, loss):
    before, copying, after = report.groups
    for idle in (before, after):
        assert idle.knockout.delta_nll == idle.knockout_mean.delta_nll == 0
        assert set(idle.knockout.adjusted_p) == {1.0}
        assert idle.exit_gain == 0
    assert copying.knockout.delta_nll > 3
    assert copying.knockout.ci95[0] > 3
    assert (loss[:, : PERIOD - 1] == 0).all()
    assert np.median(loss[:, PERIOD:]) > 4
    assert copying.knockout.delta_nll == pytest.approx(loss.mean(), rel=1e-6)
    assert copying.knockout_mean.delta_nll > 1
    assert copying.exit_gain == pytest.approx(report.entry_nll - report.nll)


def test_the_control_skips_layers_of_other_groups(report):
    before, copying, after = report.groups
    assert copying.control.delta_nll == 0  # the others do nothing
    assert copying.control.draws == ((0,), (2,))
    assert before.control.draws == ((1,), (2,))
    half = copying.knockout.delta_nll / 2  # one of two draws is the copying layer
    assert before.control.delta_nll == pytest.approx(half, rel=1e-6)
    assert after.control.buckets[-1].delta_nll == pytest.approx(
        copying.knockout.buckets[-1].delta_nll / 2, rel=1e-6
    )


def test_a_field_below_the_distance_loses_all_and_one_above_it_nothing(report, loss):
    before, copying, after = report.groups
    cost = {width.width: width for width in copying.field.widths}
    assert list(cost) == [128, 256, 512, 1024]
    for width in (128, 256):  # fields of less than 512 tokens
        assert cost[width].delta_nll == pytest.approx(loss.mean(), rel=1e-5)
    # At 512, the first tokens of a block see from 512 to 698 tokens back, and 699 are needed.
    place_L = np.arange(LENGTH)
    blind_L = (place_L >= 1024) & (place_L % 512 < PERIOD - 1 - 512)
    assert cost[512].delta_nll == pytest.approx((loss * blind_L).mean(), rel=1e-5)
    assert cost[1024].delta_nll == pytest.approx(0, abs=1e-6)
    assert copying.field.effective_context == 1024
    for idle in (before, after):
        assert idle.field.effective_context == 128
        assert all(width.delta_nll == pytest.approx(0, abs=1e-6) for width in idle.field.widths)


def test_shapley_gives_everything_to_the_group_that_does_everything(report):
    before, copying, after = report.groups
    assert before.shapley.value == after.shapley.value == 0
    assert copying.shapley.value == pytest.approx(report.shapley.total, rel=1e-12)
    assert report.shapley.total == pytest.approx(report.shapley.absent_nll - report.nll)
    assert copying.shapley.value == pytest.approx(copying.knockout_mean.delta_nll, rel=1e-6)


def test_shapley_values_are_means_over_all_orders():
    nats = np.random.default_rng(0).normal(size=(16, 2))
    for player in range(4):
        gains = []
        for order in permutations(range(4)):
            earlier = sum(1 << other for other in order[: order.index(player)])
            gains.append(nats[earlier] - nats[earlier | 1 << player])
        np.testing.assert_allclose(shapley.values(nats, player), np.mean(gains, axis=0))
    total = sum(shapley.values(nats, player) for player in range(4))
    np.testing.assert_allclose(total, nats[0] - nats[-1])


def test_repeats_need_the_group_that_copies_and_first_occurrences_do_not(report, loss):
    classes = {found.name: found for found in report.token_classes}
    assert "repeat 1-2k" not in classes
    first, repeated = classes["first occurrence"], classes["repeat 256-1k"]
    assert first.tokens + repeated.tokens == DOCUMENTS * (LENGTH - 7)
    assert repeated.tokens >= DOCUMENTS * (LENGTH - PERIOD - 7)
    assert repeated.groups[1].name == "copying"
    assert repeated.groups[1].delta_nll > 4
    assert repeated.groups[0].delta_nll == repeated.groups[2].delta_nll == 0
    # The first 8 tokens that are copied end n-grams of 8 of which nothing, or a part, is a copy.
    assert first.groups[1].delta_nll == pytest.approx(
        loss[:, PERIOD - 1 : PERIOD + 7].sum() / first.tokens, rel=1e-6
    )
    assert classes["closing delimiter"].tokens == sum(
        int(np.isin(tokens[1 : LENGTH + 1], [ord("]") - 64]).sum())
        for tokens in (CORPUS.split("validation").tokens(i, 0, LENGTH + 1) for i in range(5))
    )


def test_a_window_shorter_than_the_distance_loses_all_and_a_stream_nothing(report, loss):
    found = {(score.mode, score.length): score for score in report.scoring}
    assert set(found) == {
        ("full", 512),
        *((mode, length) for mode in ("full", "sliding", "streaming") for length in (1024, 2048)),
    }
    for length in (1024, 2048):
        assert found["streaming", length].delta_nll == pytest.approx(0, abs=1e-6)
        lost = loss[:, :length].mean()
        assert lost > 0.5
        assert found["sliding", length].delta_nll == pytest.approx(lost, rel=1e-5)
    assert found["full", 512].buckets[0].beyond_training is False
    assert found["full", 2048].buckets[-1].beyond_training is True


def test_windows_score_every_token_once():
    for length, window in [(256, 64), (100, 64), (64, 64), (70, 3)]:
        scored = np.zeros(length, int)
        for start, first in _windows(length, window):
            assert 0 <= start <= first < start + window <= length
            scored[first : start + window] += 1
        assert (scored == 1).all()


def test_what_ran_says_how_and_how_not_to_read_it(report):
    assert [found.name for found in report.instruments] == ALL[1:]
    assert all(found.caveat and found.protocol for found in report.instruments)
    assert [(missing.name, missing.reason) for missing in report.not_run] == [
        ("lens", "not asked for")
    ]
    protocols = {found.name: found.protocol for found in report.instruments}
    assert "copying: 2 x 1 layers" in protocols["knockout"]
    assert "4 training documents" in protocols["shapley"]
    assert report.seeds["control"] == 0
    assert Report.from_json(report.to_json()) == report


def test_progress_goes_from_nothing_to_all(report, progress):
    shares = [share for _, share in progress]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert list(dict.fromkeys(name for name, _ in progress)) == ALL


def test_what_was_measured_is_not_measured_again(bench, directory, report, monkeypatch):
    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(Session, "embed", fail)
    shares = []
    again = run(bench, directory, on_progress=lambda _, share: shares.append(share))
    assert dataclasses.replace(again, date=report.date) == report
    assert set(shares) == {1.0}  # nothing is left to do


def test_an_evaluation_that_was_cut_short_goes_on(bench, report, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FieldInstrument, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(bench, tmp_path, names=["field", "shapley"])
    monkeypatch.setattr(table, "measure", interrupt)
    (tmp_path / "field.npz").write_bytes(b"half")
    resumed = run(bench, tmp_path, names=["field", "shapley"])
    assert resumed.groups[1].field == report.groups[1].field
    assert resumed.groups[1].shapley == report.groups[1].shapley
    assert resumed.groups[1].knockout_mean is None
    assert {missing.name for missing in resumed.not_run} == {
        *("causality", "knockout", "token_classes", "scoring", "lens")
    }


def test_other_parameters_are_measured_anew(bench, directory, report):
    params = jax.tree.map(lambda a: a, PARAMS)
    params["groups"]["copying"]["0"]["mixer"]["out"] *= 0
    silent = run(bench, directory, names=["table"], params=params)
    assert silent.groups[1].knockout.delta_nll == 0
    assert silent.nll > report.nll


def test_unknown_names_are_one_line():
    with pytest.raises(
        UserError, match="no instrument 'knokout'; there are table, causality, knockout"
    ):
        suite.chosen("knokout,field", lens=False)
    assert suite.chosen("knockout, field", lens=True) == ["knockout", "field", "lens"]
    assert "lens" not in suite.chosen(None, lens=False)


def test_what_cannot_run_says_why(bench):
    with pytest.raises(CannotRun, match="7 groups have 128 coalitions"):
        many = dataclasses.replace(CONFIG.model, layers="copying: copy; " + "; ".join(["copy"] * 6))
        model = type(MODEL)(many, MODEL.vocab_size)
        shapley.ShapleyInstrument().passes(
            Bench(model, CONFIG, ONE_DEVICE, bench.documents), CORPUS
        )
    with pytest.raises(CannotRun, match="too short to cut"):
        FieldInstrument(narrowest=LENGTH // 2).passes(bench, CORPUS)


def test_a_group_of_most_of_the_stack_is_compared_with_all_others():
    config, model, _ = copying_model("copying: copy*3; rest: copy*2; one: copy")
    documents = Documents.choose(CORPUS, "validation", length=LENGTH, limit=2)
    bench = Bench(model, config, ONE_DEVICE, documents)
    instrument = knockout.KnockoutInstrument()
    assert instrument.drawn(bench, 0) == [(3, 4, 5)]
    assert len(set(instrument.drawn(bench, 1))) == 5
    assert all(not {3, 4} & set(layers) for layers in instrument.drawn(bench, 1))
    assert instrument.drawn(bench, 1) == instrument.drawn(bench, 1)
    alone = Bench(copying_model("copying: copy")[1], config, ONE_DEVICE, documents)
    assert instrument.drawn(alone, 0) == []


@pytest.mark.parametrize("width", [3, 4, 8, 11, 20])
def test_a_cut_field_is_between_the_width_and_twice_it(width):
    """What ``run`` sees of a row that counts its tokens."""
    length = 20
    x_BLD = jnp.tile(jnp.arange(1.0, length + 1)[None, :, None], (2, 1, 1))

    def run(x_BLD, start_B1):
        place_BL = start_B1 + jnp.arange(x_BLD.shape[1])
        first_B1 = x_BLD[:, :1, 0]
        return jnp.stack([x_BLD[..., 0] - first_B1, place_BL + 1.0, x_BLD[..., 0]], axis=-1)

    back, place, own = np.moveaxis(np.asarray(cut_field(run, x_BLD, width)), -1, 0)
    np.testing.assert_array_equal(own, x_BLD[..., 0])
    np.testing.assert_array_equal(place, own)  # every token keeps its position
    seen = back[0] + 1
    assert (seen < 2 * width + 1).all()
    assert (seen >= np.minimum(np.arange(1, length + 1), width)).all()
    if 2 * width >= length:
        np.testing.assert_array_equal(seen, np.arange(1, length + 1))
