"""Layers taken apart: the same numbers, the same memory, and only where it is worth it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import qwen3llada_jax as q
from qwen3llada_jax.model import layers, model
from qwen3llada_jax.model.layers import Layers, unstack_layers
from qwen3llada_jax.model.model import abstract
from qwen3llada_jax.sampling import loop

APART = q.Runtime(layers_apart=True)


@pytest.fixture(scope="module")
def wide():
    """Layers of 2.4 MB each, above what is worth it."""
    config = q.ModelConfig(97, 256, 512, 3, 4, 2, 64, mask_token_id=96, live_vocab_size=96)
    return q.Qwen3LLaDA(config, rngs=nnx.Rngs(0))


def _taken_apart(network: q.Qwen3LLaDA) -> q.Qwen3LLaDA:
    network = jax.tree.map(lambda x: x, network)
    network.layers = unstack_layers(network.layers)
    assert isinstance(network.layers, nnx.List)
    return network


def _pointers(tree) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]


def test_layers_apart_lie_in_the_memory_of_the_stack(wide):
    stack, single = jax.tree.leaves(wide.layers), list(unstack_layers(wide.layers))
    assert len(single) == 3
    for number, layer in enumerate(single):
        assert _pointers(layer) == [x.unsafe_buffer_pointer() + number * x.nbytes // 3 for x in stack]


@pytest.mark.slow
def test_layers_apart_compute_what_the_stack_computes(wide):
    tokens = np.random.default_rng(0).integers(0, 97, (2, 16))
    where = np.array([[3, 4], [0, 15]])
    other = _taken_apart(wide)
    np.testing.assert_allclose(other(tokens), wide(tokens), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        other.hidden(tokens, where=where), wide.hidden(tokens, where=where), rtol=1e-5, atol=1e-5
    )


def test_sines_are_made_once_for_layers_apart(wide):
    """And not for every head of every layer, as XLA would by itself."""
    split = nnx.split(_taken_apart(wide))
    hidden = jax.jit(lambda params, tokens: nnx.merge(split[0], params).hidden(tokens))
    for length in (16, 17):
        text = hidden.lower(split[1], jnp.ones((2, length), jnp.int32)).compile().as_text()
        assert text.count(" cosine(") == text.count(" sine(") == 1


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_only_uncached_sampling_takes_layers_apart(wide, cache, monkeypatch):
    config = q.SamplerConfig(gen_length=8, block_length=4, steps=8, visibility="block_causal", cache=cache)
    seen = []
    monkeypatch.setattr(loop, "unstack_layers", lambda x: seen.append(unstack_layers(x)) or seen[-1])
    answer = q.generate(wide, [[1, 2, 3]], config)
    *_, watched = q.watch(wide, [[1, 2, 3]], config)
    assert [type(x) for x in seen] == ([nnx.List] * 2 if cache == "none" else [])
    monkeypatch.setattr(layers, "_WORTH_IT", np.inf)
    stacked = q.generate(wide, [[1, 2, 3]], config)
    assert answer.answers() == q.finish(watched).answers() == stacked.answers()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "compute"), [("bfloat16", None), ("float32", "bfloat16")])
@pytest.mark.parametrize("cache", ["none", "prefix"])
def test_no_converted_copy_of_the_weights_is_held(dtype, compute, cache, monkeypatch):
    """XLA for CPUs would convert all weights before the first pass: to float32, or once to what is computed in."""
    shape = q.ModelConfig(97, 256, 512, 8, 4, 2, 64, mask_token_id=96, live_vocab_size=96)
    model = q.Qwen3LLaDA(shape, rngs=nnx.Rngs(0), dtype=dtype, runtime=q.Runtime(dtype=compute))
    config = q.SamplerConfig(gen_length=8, block_length=4, steps=8, visibility="block_causal", cache=cache)
    config = config.for_model(shape)
    temporaries = {}

    def measured(name, is_late, program):
        def run(*arguments):
            compiled = program.lower(*arguments).compile()
            temporaries[name, is_late] = compiled.memory_analysis().temp_size_in_bytes
            return program(*arguments)

        return run

    names = {"none": ["advance"], "prefix": ["begin", "advance"]}[cache]  # all that run the model, in their order
    for name in ("begin", "advance"):
        programs = {is_late: measured(name, is_late, program) for is_late, program in getattr(loop, name).items()}
        monkeypatch.setattr(loop, name, programs)
    q.generate(model, [[1, 2, 3]], config)
    in_float32 = sum(x.size for x in jax.tree.leaves(model.layers)) * 4
    assert list(temporaries) == [(name, True) for name in names]
    assert all(size < in_float32 / 4 for size in temporaries.values()), temporaries


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "compute"), [("bfloat16", None), ("float16", None), ("float32", "bfloat16")])
@pytest.mark.parametrize("where", [None, [[3, 5]]])
def test_a_plain_call_holds_none_either(dtype, compute, where, monkeypatch):
    """And computes what its caller's own program does, in which XLA converts as it likes."""
    shape = q.ModelConfig(97, 256, 512, 8, 4, 2, 64, mask_token_id=96, live_vocab_size=96)
    network = q.Qwen3LLaDA(shape, rngs=nnx.Rngs(0), dtype=dtype, runtime=q.Runtime(dtype=compute))
    tokens, mask = np.arange(8)[None], q.Mask("block_causal", block_length=4, prompt_length=2)
    program, temporaries = model._hidden_late, []

    def measured(*arguments):
        temporaries.append(program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes)
        return program(*arguments)

    monkeypatch.setattr(model, "_hidden_late", measured)
    hidden = network.hidden(tokens, mask, where=where)
    in_float32 = sum(x.size for x in jax.tree.leaves(network.layers)) * 4
    assert [size < in_float32 / 4 for size in temporaries] == [True]
    compiled = jax.jit(lambda network, tokens: network.hidden(tokens, mask, where=where))(network, tokens)
    assert len(temporaries) == 1
    np.testing.assert_array_equal(hidden, compiled)


@pytest.mark.slow
def test_a_call_within_a_program_is_a_part_of_it():
    """Whatever is traced there, and be it nothing of the model's."""
    shape = q.ModelConfig(97, 32, 64, 2, 4, 2, 8, mask_token_id=96, live_vocab_size=96)
    network, tokens = q.Qwen3LLaDA(shape, rngs=nnx.Rngs(0), dtype="bfloat16"), jnp.arange(8)[None]
    alone = network(tokens)
    np.testing.assert_array_equal(jax.jit(lambda: network(tokens))(), alone)
    np.testing.assert_array_equal(jax.jit(network)(tokens), alone)
    np.testing.assert_array_equal(nnx.jit(lambda network: network(tokens))(network), alone)
    np.testing.assert_array_equal(jax.vmap(network)(tokens[None])[0], alone)
    assert jax.eval_shape(lambda: network(tokens)).shape == alone.shape
    gradient = jax.grad(lambda table: nnx.merge(*_with_table(network, table))(tokens).sum())
    assert np.isfinite(np.asarray(gradient(network.embed_tokens[...]), np.float32)).all()


def _with_table(network, table):
    graphdef, state = nnx.split(network, nnx.Param)
    return graphdef, nnx.to_pure_dict(state) | {"embed_tokens": table}


def test_layers_stay_stacked_where_it_gains_nothing(wide):
    small = Layers(q.ModelConfig(97, 32, 64, 3, 4, 2, 8), rngs=nnx.Rngs(0))
    assert unstack_layers(small) is small
    replicated = jax.sharding.NamedSharding(q.make_mesh(data=8), jax.sharding.PartitionSpec())
    spread = jax.device_put(wide.layers, replicated)
    assert unstack_layers(spread) is spread
    single = unstack_layers(wide.layers)
    assert unstack_layers(single) is single
    on_host = jax.tree.map(np.asarray, wide.layers)
    assert unstack_layers(on_host) is on_host


def test_layers_apart_stay_on_their_device(wide):
    there = jax.device_put(wide.layers, jax.devices()[3])
    assert {d for x in jax.tree.leaves(unstack_layers(there)) for d in x.devices()} == {jax.devices()[3]}


def _loops_over_layers(model, where=None, mask=None) -> list[int]:
    """How many layers are in each loop's body, of a pass forward and backward."""

    def loss(params):
        return nnx.merge(graphdef, params).hidden(np.zeros((2, 16), int), mask, where=where).sum()

    graphdef, params = nnx.split(model, nnx.Param)
    scans = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan" and equation.params["num_carry"]:  # not that over halves of sines
                scans.append(equation.params["unroll"])
            for inner in jax.core.jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    return scans


@pytest.mark.slow
def test_training_on_one_cpu_takes_large_layers_apart(wide):
    """Not where they are small, not on several devices, not what is computed again, and never unless asked."""
    small = q.ModelConfig(97, 32, 64, 3, 4, 2, 8, mask_token_id=96)

    def model(config, runtime):
        return q.Qwen3LLaDA(config, rngs=nnx.Rngs(0), runtime=runtime)

    asked = model(wide.config, APART)
    assert _loops_over_layers(asked) == [3, 3]
    assert _loops_over_layers(asked, where=np.zeros((2, 1), int)) == [2, 2]
    assert _loops_over_layers(model(wide.config, dataclasses.replace(APART, dtype="bfloat16"))) == [3, 3]
    for other in (wide, model(small, APART), model(wide.config, dataclasses.replace(APART, remat="full"))):
        assert _loops_over_layers(other) == [1, 1]
    with jax.set_mesh(q.make_mesh(data=8)):
        assert _loops_over_layers(asked) == [1, 1]


@pytest.mark.slow
def test_layers_that_are_taken_apart_have_the_same_gradients(wide):
    params = nnx.state(wide, nnx.Param)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 16))

    def value_and_grad(runtime):
        graphdef, *_ = abstract(wide.config, runtime=runtime)

        def loss(params):
            network = nnx.merge(graphdef, params)
            return jax.nn.logsumexp(network.logits(network.hidden(tokens)), axis=-1).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    apart, stacked = value_and_grad(APART), value_and_grad(q.Runtime())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), apart, stacked)


def test_weights_can_be_donated_after_sampling(wide):
    """A hold on the stack's memory would keep a second copy of the model in the training step that follows."""
    graphdef, state = nnx.split(jax.tree.map(lambda x: x + 0, wide), nnx.Param)
    params = nnx.to_pure_dict(state)
    del state
    q.generate(nnx.merge(graphdef, params), [[1, 2, 3]], q.SamplerConfig(gen_length=4, block_length=4, steps=4))
    before = jax.tree.map(lambda x: x.unsafe_buffer_pointer(), params)
    after = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(params)
    assert sorted(_pointers(after)) == sorted(jax.tree.leaves(before))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_no_second_stack_is_kept_where_the_last_layer_computes_a_part(remat, dtype):
    """Block diffusion: what is taken out of the stack is taken again in the backward pass."""
    shape = q.ModelConfig(97, 256, 512, 8, 4, 2, 64, mask_token_id=96, live_vocab_size=96)
    network = q.Qwen3LLaDA(shape, rngs=nnx.Rngs(0), runtime=q.Runtime(dtype=dtype, remat=remat))
    graphdef, state = nnx.split(network, nnx.Param)
    params, tokens = nnx.to_pure_dict(state), np.arange(16)[None]

    def temporaries(where) -> int:
        def loss(params):
            return nnx.merge(graphdef, params).hidden(tokens, where=where).astype("float32").sum()

        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    stack = sum(x.size for x in jax.tree.leaves(params["layers"])) * 4
    assert temporaries(np.arange(8)[None]) < temporaries(None) + 0.4 * stack
