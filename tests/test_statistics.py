"""Intervals over documents: coverage, planted effects, degenerate samples."""

import numpy as np
import pytest
from scipy import stats

from hybrid_lm.errors import UserError
from hybrid_lm.statistics import (
    MIN_BOOTSTRAP_DOCUMENTS,
    ci95,
    hierarchical_ci95,
    interval_method,
    max_t,
    minimum_detectable_effect,
    win_rate,
)


def mean_ci95(values, resamples=400):
    values = np.asarray(values, np.float64)
    return ci95(values, np.ones_like(values), resamples=resamples)


def covers(interval, truth):
    return np.mean((interval[:, 0] <= truth) & (truth <= interval[:, 1]))


@pytest.mark.parametrize("documents", [5, 25])
@pytest.mark.parametrize("skewed", [False, True])
def test_interval_covers_the_truth_in_about_95_of_100_studies(documents, skewed):
    rng, studies = np.random.default_rng(3), 2000
    shape = (documents, studies)
    values = rng.lognormal(0, 0.3, shape) if skewed else rng.normal(1, 0.2, shape)
    truth = np.exp(0.3**2 / 2) if skewed else 1.0
    assert 0.93 <= covers(mean_ci95(values), truth) <= 0.97


def test_interval_of_a_ratio_covers_the_truth():
    rng, documents, studies = np.random.default_rng(4), 25, 2000
    byte_counts = rng.integers(500, 1500, (documents, studies))
    bits = byte_counts * rng.normal(2.0, 0.3, (documents, studies))
    assert 0.93 <= covers(ci95(bits, byte_counts, resamples=400), 2.0) <= 0.97


def test_paired_differences_find_an_effect_far_below_the_spread_of_documents():
    rng, shape = np.random.default_rng(5), (25, 1000)
    full = rng.normal(2.0, 0.5, shape)
    without = full + 0.02 + rng.normal(0, 0.01, shape)
    paired = mean_ci95(without - full)
    assert 0.93 <= covers(paired, 0.02) <= 0.97
    assert np.mean(paired[:, 0] > 0) > 0.99
    assert np.ptp(mean_ci95(full), axis=1).mean() > 20 * np.ptp(paired, axis=1).mean()


@pytest.mark.parametrize("documents", [2, 3, MIN_BOOTSTRAP_DOCUMENTS, 30])
def test_equal_documents_give_an_interval_of_no_width(documents):
    values = np.stack([np.zeros(documents), np.full(documents, 0.1 + 0.2)], axis=1)
    np.testing.assert_array_equal(mean_ci95(values)[0], [0, 0])
    np.testing.assert_allclose(mean_ci95(values)[1], [0.3, 0.3], rtol=1e-14)


def test_a_constant_cell_leaves_its_neighbours_alone():
    values = np.random.default_rng(6).normal(1, 1, (30, 2))
    with_constant = np.insert(values, 1, 7.0, axis=1)
    np.testing.assert_array_equal(mean_ci95(with_constant)[[0, 2]], mean_ci95(values))


def test_two_documents_give_the_wide_interval_of_student():
    interval = mean_ci95([[1.0], [2.0]])[0]
    np.testing.assert_allclose(interval, [1.5 - 12.7062 * 0.5, 1.5 + 12.7062 * 0.5], rtol=1e-5)
    assert interval_method(2) == "Student's t"
    assert interval_method(MIN_BOOTSTRAP_DOCUMENTS) == "BCa bootstrap"


@pytest.mark.parametrize("documents", [2, 19, 20, 40])
def test_one_outlier_among_equal_documents_gives_finite_numbers(documents):
    values = np.zeros((documents, 1))
    values[0] = 5.0
    (low, high) = mean_ci95(values)[0]
    assert np.isfinite([low, high]).all()
    assert low <= 5.0 / documents <= high


def test_intervals_do_not_depend_on_the_run():
    values = np.random.default_rng(7).normal(size=(25, 3))
    np.testing.assert_array_equal(mean_ci95(values), mean_ci95(values))


def test_too_little_to_resample_is_an_error():
    with pytest.raises(UserError, match="needs at least 2"):
        mean_ci95([[1.0]])
    with pytest.raises(UserError, match="resamples is 10"):
        mean_ci95([[1.0], [2.0]], resamples=10)


def test_minimum_detectable_effect_is_found_in_4_of_5_studies():
    rng, documents = np.random.default_rng(8), 25
    noise = rng.normal(0, 1, (2000, documents))
    effect = minimum_detectable_effect(rng.normal(0, 1, 100_000)) * (100_000 / documents) ** 0.5
    studies = noise + effect
    t = studies.mean(1) / (studies.std(1, ddof=1) / documents**0.5)
    assert 0.74 <= np.mean(t > 2.064) <= 0.84
    assert minimum_detectable_effect(np.zeros(5)) == 0.0


def test_win_rate_counts_documents_that_get_worse():
    assert win_rate(np.array([0.1, -0.1, 0.0, 2.0])) == 0.5


DIFFERENCES = {  # of true mean 0, one study per column
    "normal": lambda rng, shape: rng.normal(0, 1, shape),
    "log-normal": lambda rng, shape: rng.lognormal(0, 0.3, shape) - np.exp(0.3**2 / 2),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_95_of_100_intervals_of_25_documents_hold_the_truth(kind):
    values = DIFFERENCES[kind](np.random.default_rng(10), (25, 1000))
    assert 0.93 <= covers(mean_ci95(values), 0.0) <= 0.97


@pytest.mark.thorough
@pytest.mark.parametrize("kind", DIFFERENCES)
@pytest.mark.parametrize("documents", [5, 12, 32, 100, MIN_BOOTSTRAP_DOCUMENTS])
def test_95_of_100_intervals_hold_the_truth(kind, documents):
    values = DIFFERENCES[kind](np.random.default_rng(11), (documents, 4000))
    least = 0.92 if documents == MIN_BOOTSTRAP_DOCUMENTS and kind == "heavy tails" else 0.93
    assert least <= covers(mean_ci95(values, resamples=1000), 0.0) <= 0.97


def correlated_cells(rng, studies, cells=12, documents=25):
    """Differences [studies, documents, cells] of true mean 0; cells of a document correlate."""
    shared = rng.normal(0, 1, (studies, documents, 1))
    return shared + rng.normal(0, 0.5, (studies, documents, cells))


def test_among_cells_without_effect_one_of_20_studies_finds_any():
    studies = correlated_cells(np.random.default_rng(12), 1000)
    false = [max_t(differences, flips=200).min() <= 0.05 for differences in studies]
    assert 0.03 <= np.mean(false) <= 0.07


def test_a_planted_effect_is_found_in_its_cell_alone():
    studies = correlated_cells(np.random.default_rng(13), 200)
    studies[:, :, 3] += 1.0
    found = np.array([max_t(differences, flips=500) <= 0.05 for differences in studies])
    assert found[:, 3].mean() > 0.9
    assert np.delete(found, 3, axis=1).any(axis=1).mean() < 0.08


def test_more_is_found_than_with_holm_where_cells_agree():
    studies = correlated_cells(np.random.default_rng(14), 200) + 0.55
    max_t_found = [np.mean(max_t(d, flips=500) <= 0.05) for d in studies]
    t = studies.mean(1) / (studies.std(1, ddof=1) / 5)
    p = np.sort(2 * stats.t.sf(np.abs(t), 24), axis=1)
    holm = np.minimum.accumulate(p * np.arange(12, 0, -1) <= 0.05, axis=1)
    assert np.mean(max_t_found) > holm.mean() + 0.05


def test_p_values_are_right_at_the_ends():
    values = np.random.default_rng(15).normal(0, 1, (25, 4))
    values[:, 0] = 0.0
    values[:, 1] = 0.3
    p = max_t(values)
    assert p[0] == 1.0
    assert p[1] == pytest.approx(1 / 10_001)
    assert max_t(values[:, 2:3])[0] == pytest.approx(
        stats.ttest_1samp(values[:, 2], 0).pvalue, abs=0.02
    )
    np.testing.assert_array_equal(p, max_t(values))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_spread", [0.0, 0.1, 0.5, 2.0])
def test_intervals_over_seeds_hold_the_truth(seeds, seed_spread):
    rng, studies = np.random.default_rng(16), 4000
    differences = (
        rng.normal(0, seed_spread, (seeds, 1, studies))
        + rng.normal(0, 1, (1, 25, studies))
        + rng.normal(0, 0.5, (seeds, 25, studies))
    )
    assert 0.93 <= covers(hierarchical_ci95(differences, resamples=1000), 0.0) <= 0.97


def test_an_interval_over_one_seed_is_an_error():
    with pytest.raises(UserError, match="at least 2"):
        hierarchical_ci95(np.zeros((1, 25, 3)), resamples=400)
    np.testing.assert_array_equal(hierarchical_ci95(np.zeros((2, 25, 1)), resamples=400), [[0, 0]])
