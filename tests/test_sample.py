"""Generation continues exactly what the full forward pass computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm import mixers
from hybrid_lm.errors import UserError
from hybrid_lm.kernels.dispatch import Implementation
from hybrid_lm.mixers import GLA, Attention, Context, Linear
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.sample import generate

VOCAB = 13
PROMPT_LENGTH, NEW_TOKENS = 9, 12


FEW = ("attention", "linear", "mamba")


def zoo_of(keys):
    """A model with these mixers, and a window that the prompt outgrows."""
    configs = {key: mixers.get(key)() for key in keys}
    configs["window"] = Attention(window=4)
    if "gla" in configs:
        configs["gla"] = GLA(head_dim=8)
    return Model(ModelConfig(", ".join(configs), configs, width=32, mlp_width=32), VOCAB)


def small():
    config = ModelConfig("lin", {"lin": Linear(heads=2)}, width=16, mlp_width=16)
    return Model(config, VOCAB)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Tiny programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", params=[FEW, pytest.param(None, marks=pytest.mark.thorough)])
def zoo(request):
    """Few mixers, or every one that is registered."""
    model = zoo_of(request.param or mixers.names())
    return model, jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def little():
    model = small()
    params = jax.jit(model.init)(jax.random.key(0))
    return model, params | {"norm": 10 * params["norm"]}


def prompts(batch=2, length=PROMPT_LENGTH):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, VOCAB)


def draw(model_and_params, prompt_BL=None, **options):
    defaults = dict(
        tokens=NEW_TOKENS,
        temperature=0.0,
        top_k=None,
        key=jax.random.key(2),
        dtype="float32",
        implementation=Implementation(),
    )
    prompt_BL = prompts() if prompt_BL is None else prompt_BL
    return np.asarray(generate(*model_and_params, prompt_BL, **defaults | options))


@partial(jax.jit, static_argnums=0)
def full_exits(model, params, tokens_BL):
    return model.apply(params, tokens_BL, Context.of_documents(*tokens_BL.shape)).exits


def full_logits(model, params, tokens_BL):
    return model.logits(params, full_exits(model, params, tokens_BL)[-1])


def test_greedy_tokens_are_the_argmax_of_the_full_forward(zoo):
    generated_BL = draw(zoo)
    row_BL = jnp.concatenate([prompts(), generated_BL], axis=1)
    likeliest_BL = full_logits(zoo[0], zoo[1], row_BL).argmax(axis=-1)
    np.testing.assert_array_equal(generated_BL, likeliest_BL[:, PROMPT_LENGTH - 1 : -1])
    assert len(np.unique(generated_BL)) > 2, "a constant output would show little"


@partial(jax.jit, static_argnums=0)
def exits_by_steps(model, params, tokens_BL):
    """Exits of a prompt in one pass and of the later tokens one by one."""
    batch, length = tokens_BL.shape

    def run(tokens_BL, start, state):
        ctx = Context.of_documents(*tokens_BL.shape, start=start, capacity=length)
        return model.apply(params, tokens_BL, ctx, state)

    def step(state, place):
        token_B1 = jax.lax.dynamic_slice_in_dim(tokens_BL, place, 1, axis=1)
        output = run(token_B1, place, state)
        return output.state, [exit_B1D[:, 0] for exit_B1D in output.exits]

    first = model.initial_state(batch, jnp.float32, capacity=0)
    prefill = run(tokens_BL[:, :PROMPT_LENGTH], 0, first)
    _, later = jax.lax.scan(step, prefill.state, jnp.arange(PROMPT_LENGTH, length))
    return [
        jnp.concatenate([exit_BLD, jnp.moveaxis(later_LBD, 0, 1)], axis=1)
        for exit_BLD, later_LBD in zip(prefill.exits, later, strict=True)
    ]


def test_prefill_and_steps_give_the_residuals_of_the_full_forward(zoo):
    tokens_BL = prompts(length=PROMPT_LENGTH + NEW_TOKENS)
    whole = full_exits(*zoo, tokens_BL)
    for by_steps_BLD, whole_BLD in zip(exits_by_steps(*zoo, tokens_BL), whole, strict=True):
        scale = np.abs(whole_BLD).max()
        np.testing.assert_allclose(by_steps_BLD, whole_BLD, rtol=0, atol=1e-5 * scale)


def test_one_token_of_prompt_and_one_new_token(little):
    first_BL = prompts(length=1)
    likeliest_BL = full_logits(little[0], little[1], first_BL).argmax(axis=-1)
    np.testing.assert_array_equal(draw(little, first_BL, tokens=1), likeliest_BL)


def test_draws_follow_the_softmax_at_the_temperature(little):
    model, params = little
    draws = draw(
        little, jnp.tile(prompts(batch=1), (20_000, 1)), tokens=1, temperature=2.0
    ).squeeze()
    logits_V = full_logits(model, params, prompts(batch=1))[0, -1]
    expected_V = np.asarray(jax.nn.softmax(logits_V / 2.0), np.float64)
    counted_V = np.bincount(draws, minlength=VOCAB) / len(draws)
    standard_error_V = np.sqrt(expected_V * (1 - expected_V) / len(draws))
    assert np.ptp(expected_V) > 0.05, "a flat softmax would show little"
    assert np.all(np.abs(counted_V - expected_V) < 4 * standard_error_V)


def test_top_k_draws_only_among_the_likeliest(little):
    model, params = little
    row_BL = jnp.tile(prompts(batch=1), (500, 1))
    draws = draw(little, row_BL, tokens=1, temperature=50.0, top_k=3).squeeze()
    logits_V = full_logits(model, params, prompts(batch=1))[0, -1]
    assert set(draws) == set(np.argsort(logits_V)[-3:].tolist())
    np.testing.assert_array_equal(draw(little, top_k=1, temperature=1.0), draw(little))


def test_the_seed_decides_the_draws(little):
    first = draw(little, temperature=1.0, key=jax.random.key(3))
    np.testing.assert_array_equal(draw(little, temperature=1.0, key=jax.random.key(3)), first)
    assert np.any(draw(little, temperature=1.0, key=jax.random.key(4)) != first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens 0"),
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_k": VOCAB + 1}, "top_k 14 must be from 1 to the 13 tokens"),
        ({"prompt_BL": jnp.zeros((1, 0), jnp.int32)}, "the prompt is empty"),
    ],
)
def test_numbers_out_of_range_are_one_line(options, message, little):
    with pytest.raises(UserError, match=message):
        draw(little, **options)
