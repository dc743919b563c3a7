"""K13, K10: a model trained in one's own loop becomes a model folder; text in, text out; manners of the library."""

import dataclasses
import gc
import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, TINY, refuses, run_program
from flax import nnx

import qwen3llada_jax as q
from converters.to_hf import export
from qwen3llada_jax.model.config import read_model_config
from qwen3llada_jax.writing.opening import open_folder
from sample import clock

SHORT = q.SamplerConfig(gen_length=8, steps=8, block_length=8)


@pytest.fixture(scope="module")
def trained(start):
    """A plain Qwen3 folder, opened and trained for two updates as anybody would."""
    model = q.load(start)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    tokens = np.random.default_rng(0).integers(0, 1000, (4, 16))

    @nnx.jit
    def update(model, optimizer, key):
        def loss(model):
            noised = q.forward_process(key, tokens, 1050)
            ce = optax.softmax_cross_entropy_with_integer_labels(model(noised.tokens), jnp.asarray(tokens))
            return q.pretrain_loss(ce, noised.is_noised, noised.p, weight=noised.weight)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(update(model, optimizer, jax.random.key(0))) for _ in range(2)]
    assert losses[1] < losses[0]
    return model


@pytest.mark.slow
def test_k13_a_model_of_ones_own_loop_becomes_a_model_folder(trained, start, tmp_path):
    q.save(trained, tmp_path / "mine", tokenizer=start, mask_token_id=1050)
    again = q.load(tmp_path / "mine")
    assert (again.config.mask_token_id, again.config.live_vocab_size) == (1050, 1050)
    tokens = np.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(again(tokens), trained(tokens))
    assert jax.tree.leaves(again)[0].dtype == jax.tree.leaves(trained)[0].dtype
    export(tmp_path / "mine", tmp_path / "hf")
    np.testing.assert_array_equal(q.load(tmp_path / "hf")(tokens), trained(tokens))
    text = q.write(again, q.load_tokenizer(tmp_path / "mine"), "My lord", SHORT)
    assert isinstance(text, str)
    assert text == q.write(trained, q.load_tokenizer(str(start)), ["My lord"], q.SamplerConfig(
        gen_length=8, steps=8, block_length=8, mask_token_id=1050))[0]  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_k16_a_model_of_nonsense_is_not_saved(start, tmp_path, value):
    broken = q.load(start, "float32")
    broken.norm[...] = broken.norm[...].at[3].set(value)
    refuses(lambda: q.save(broken, tmp_path / "mine"), "the model: weights that are NaN or infinite, in norm")
    assert not (tmp_path / "mine").exists()


@pytest.mark.soak
@pytest.mark.slow
def test_k13_the_programs_take_it(trained, start, tmp_path):
    q.save(trained, tmp_path / "mine", tokenizer=start, mask_token_id=1050)
    done = run_program("sample.generate", "--model", tmp_path / "mine", "--prompt", "My lord", "--gen-length", "8",
                       "--block-length", "8", "--steps", "8")  # fmt: skip
    assert done.stdout.startswith("My lord")
    run_program("converters.to_hf", "--src", tmp_path / "mine", "--dst", tmp_path / "hf")


@pytest.mark.slow
def test_k13_a_tokenizer_may_be_given_as_an_object(trained, start, qwen3_tokenizer, tmp_path):
    q.save(trained, tmp_path / "mine", tokenizer=qwen3_tokenizer)
    again = q.load_tokenizer(tmp_path / "mine")
    assert again.chat_template == qwen3_tokenizer.chat_template
    assert again("My lord").input_ids == qwen3_tokenizer("My lord").input_ids
    assert read_model_config(tmp_path / "mine").mask_token_id is None
    q.save(trained, tmp_path / "bare")
    assert not (tmp_path / "bare" / "tokenizer.json").exists()
    refuses(lambda: q.load_tokenizer(tmp_path / "bare"), "no tokenizer in it")
    refuses(lambda: q.load_tokenizer(tmp_path / "nowhere"), "no such folder")


@pytest.mark.slow
def test_k13_what_cannot_be_saved(trained, start, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    refuses(lambda: q.save(trained, tmp_path / "mine"), "not empty")
    refuses(lambda: q.save(trained, tmp_path / "mine", overwrite=True), "is no model folder")
    refuses(lambda: q.save(trained.layers, tmp_path / "a"), "writes a Qwen3LLaDA, not 'Layers'")
    refuses(lambda: q.save(trained, tmp_path / "a", mask_token_id=5000), "outside the embedding table")
    named = q.load(start)
    named.config = q.ModelConfig.from_hf(named.config.to_hf() | {"mask_token_id": 1060})
    refuses(lambda: q.save(named, tmp_path / "a", mask_token_id=1050), "is not the 1060 that the model's config names")
    q.save(named, tmp_path / "b", mask_token_id=1060)
    named.config = q.ModelConfig.from_hf(named.config.to_hf() | {"num_hidden_layers": 1})
    refuses(lambda: q.save(named, tmp_path / "a"), "not those that its config describes")
    small = q.Qwen3LLaDA(q.ModelConfig(64, 16, 32, 1, 2, 1, 8), rngs=nnx.Rngs(0))
    refuses(lambda: q.save(small, tmp_path / "a", tokenizer=start), "they belong to different models")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "mine"]


@pytest.fixture(scope="module")
def writer(trained):
    model = jax.tree.map(lambda x: x, trained)
    model.config = q.ModelConfig.from_hf(trained.config.to_hf() | {"mask_token_id": 1050})
    return model


@pytest.mark.slow
def test_k13_text_in_text_out(writer, tokenizer):
    texts = ["My lord", "To be, or not"]
    answers = q.write(writer, tokenizer, texts, SHORT)
    config = q.SamplerConfig(
        gen_length=8, steps=8, block_length=8, eos_token_ids=(1024, 1026), forbid=range(1050, 1088)
    )
    raw = q.generate(writer, [tokenizer(t, add_special_tokens=False).input_ids for t in texts], config).answers()
    for answer, ids in zip(answers, raw, strict=True):
        end = next((i for i, token in enumerate(ids) if token in (1024, 1026)), len(ids))
        assert answer == tokenizer.decode(ids[:end], skip_special_tokens=True)
    assert q.write(writer, tokenizer, texts[0], SHORT) == answers[0]


def test_k13_an_answer_ends_where_the_programs_end_it(writer, tokenizer):
    """`<|im_end|>` too: everything written before it, nothing behind it."""
    only = tuple(i for i in range(1050) if i != 1026)
    assert q.write(writer, tokenizer, "My lord", q.SamplerConfig(gen_length=8, block_length=8, forbid=only)) == ""


def test_k13_chats_go_through_the_template_without_thinking(writer, qwen3_tokenizer):
    asked = [{"role": "user", "content": "Who is there?"}]
    answer = q.write(writer, qwen3_tokenizer, [asked], SHORT)
    assert answer == q.write(writer, qwen3_tokenizer, ["Who is there?"], SHORT, chat=True)
    text = qwen3_tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert answer == q.write(writer, qwen3_tokenizer, [text], SHORT)


def test_k13_what_is_no_text(writer, tokenizer):
    for wrong in (None, [], 5, [5], [None], [[{"role": "user"}]], [[]], [["a"]], {"a": "b"}):
        refuses(lambda wrong=wrong: q.write(writer, tokenizer, wrong, SHORT), "prompts")
    refuses(lambda: q.write(writer, tokenizer, "a\ud83d", SHORT), "prompts: ", "half of a surrogate pair")
    plain = q.load_tokenizer(TINY)
    plain.chat_template = None
    refuses(lambda: q.write(writer, plain, "a", SHORT, chat=True), "no chat template")
    plain.chat_template = "{{ raise_exception('no') }}"
    refuses(lambda: q.write(writer, plain, "a", SHORT, chat=True), "chat template cannot write it: no")


@pytest.mark.slow
def test_k13_texts_fill_the_mesh(writer, tokenizer):
    alone = q.write(writer, tokenizer, ["My lord", "O", "Yes"], SHORT)
    with jax.set_mesh(q.make_mesh(data=2, devices=jax.devices()[:2])):
        assert q.write(writer, tokenizer, ["My lord", "O", "Yes"], SHORT) == alone


# ---- K10 -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_k10_importing_silences_nothing():
    code = """
import json, logging, sys, threading, warnings
import jax, flax, orbax.checkpoint, optax
names = ["", "absl", "asyncio", "jax", "orbax", "transformers", "datasets"]
def state():
    said = {n: [logging.getLogger(n).level, len(logging.getLogger(n).handlers)] for n in names}
    return said | {"filters": len(warnings.filters), "disabled": logging.root.manager.disable,
                   "hook": sys.unraisablehook is sys.__unraisablehook__, "x64": jax.config.jax_enable_x64}
before = state()
import qwen3llada_jax
assert state() == before, (before, state())
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_k10_logging_is_set_up_by_the_caller(first):
    """orbax leaves a handler on the root logger, after which `basicConfig` does nothing; one of the caller's stays."""
    code = """
import io, logging
said = io.StringIO()
def set_up():
    logging.basicConfig(level=logging.INFO, stream=said, format="mine %(message)s")
"""
    imports = "import qwen3llada_jax, qwen3llada_jax.checkpoint.stored_params"
    lines = ["set_up()", imports] if first else [imports, "set_up()"]
    code += "\n".join(
        [*lines, "logging.info('hello')", "assert said.getvalue().endswith('mine hello\\n'), said.getvalue()"]
    )
    code += "\nassert len(logging.root.handlers) == 1"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_k10_a_program_silences_what_would_stand_beside_its_line(monkeypatch):
    from qwen3llada_jax import cli

    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: 0)
    assert left.value.code == 0
    assert logging.getLogger("asyncio").level == logging.getLogger("absl").level == logging.CRITICAL


def test_k10_clocks_keep_what_they_measure_and_nothing_is_kept_after_them():
    before = len(clock._running)
    first = clock.Clock()
    jax.jit(lambda x: x * 3 + len(str(id(first))))(jnp.ones(3)).block_until_ready()
    assert 0 < first.compiling <= first.seconds
    assert len(clock._running) == before + 1
    del first
    gc.collect()
    assert len(clock._running) == before
    module_lists = [v for v in vars(clock).values() if isinstance(v, list)]
    assert module_lists == []


def test_the_bundled_config_is_read_alike_by_every_door():
    config = q.ModelConfig.from_hf(json.loads((TINY / "config.json").read_text()))
    assert read_model_config(TINY) == config
    # Opening it adds what the files beside config.json say, and nothing else.
    settings = (("temperature", 0.8), ("top_k", 50))
    opened = dataclasses.replace(config, eos_token_id=(1024, 1026), live_vocab_size=1050, sampling=settings)
    assert q.load(TINY).config == opened
    assert open_folder(TINY).config == dataclasses.replace(opened, mask_token_id=1050)  # to write with: none is named


def test_k13_a_model_folder_may_be_called_like_a_checkpoint(trained, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    q.save(trained, "checkpoints/1", tokenizer=start, mask_token_id=1050)
    assert q.load("checkpoints/1").config.mask_token_id == 1050
    assert q.load_tokenizer("checkpoints/1").eos_token_id is not None
    q.save(trained, "2", tokenizer="checkpoints/1")
    assert q.load("2").config.eos_token_ids == q.load("checkpoints/1").config.eos_token_ids


def test_k7_a_tilde_is_the_home_folder_for_the_library_too(trained, start, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    q.save(trained, "~/m", tokenizer=start)
    assert (tmp_path / "m" / "config.json").is_file()
    assert q.load("~/m").config == q.load(tmp_path / "m").config
    assert q.load_tokenizer("~/m").eos_token_id is not None
    q.save(trained, "~/n", tokenizer="~/m")
    assert (tmp_path / "n" / "tokenizer.json").is_file()
