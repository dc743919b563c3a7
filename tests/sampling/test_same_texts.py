"""Everything that writes text writes the same: programs, samples of training, and `q.write`."""

import copy
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT
from test_train import run

import qwen3llada_jax as q
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import open_folder
from sample import generate
from train.monitor.jsonl import read_lines

PROMPTS = ["ROMEO:", "To be", "My lord", "What", "O", "Who is it?", "Yes", "No", "Why", "And"]  # two batches
DIALOGUE = ROOT / "examples" / "data" / "dialogue" / "valid.jsonl"
HOT = ["--temperature", "3", "--gen-length", "24", "--steps", "6", "--block-length", "8", "--seed", "5"]


def written_by_generate(folder: Path, out: Path, *flags: str) -> list[str | None]:
    """The texts of `PROMPTS`, as `sample.generate --out` has them."""
    asked = [flag for text in PROMPTS for flag in ("--prompt", text)]
    generate.main(["--model", str(folder), *asked, *flags, "--out", str(out)])
    return [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sft", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_samples_of_training_are_what_generate_writes_on_their_checkpoint(start, tmp_path, mode):
    more = {
        "training.mode": mode, "training.max_steps": 1, "evaluation.do_eval_loss": False, "project.seed": 5,
        "evaluation.prompts": json.dumps(PROMPTS), "evaluation.max_new_tokens": 24, "evaluation.sampling_steps": 6,
        "evaluation.temperature": 3, "evaluation.block_length": 8, "training.ema_decay": 0.5,
    }  # fmt: skip
    if mode == "sft":
        more |= {"dataset.name": DIALOGUE, "training.max_length": 64, "training.block_attention.enabled": True,
                 "training.block_attention.block_length": 8}  # fmt: skip
    run(start, tmp_path / "run", **more)
    found = read_lines(tmp_path / "run" / "samples.jsonl")
    assert [record["prompt"] for record in found] == PROMPTS
    flags = [*HOT, "--chat"] if mode == "sft" else HOT
    texts = written_by_generate(tmp_path / "run", tmp_path / "o.jsonl", *flags)
    answers = [record["answer"] for record in found]
    assert answers == texts
    assert len(set(texts)) == len(texts)  # drawn, each with a key of its own
    assert not any(special in text for text in texts for special in ("<|endoftext|>", "<|im_end|>"))


@pytest.mark.slow
def test_non_finite_rows_of_samples_are_told_and_the_others_written(start, tmp_path, monkeypatch):
    """As `sample.generate` does: one row that is lost takes no other with it, and no run."""
    real = completions.api.generate

    def damaged(*arguments, **options):
        raise q.NotFiniteError(real(*arguments, **options), [1])

    monkeypatch.setattr(completions.api, "generate", damaged)
    more = {"training.max_steps": 1, "evaluation.do_eval_loss": False, "evaluation.prompts": '["A", "B", "C"]',
            "evaluation.max_new_tokens": 8, "evaluation.sampling_steps": 2}  # fmt: skip
    run(start, tmp_path / "run", **more)
    found = read_lines(tmp_path / "run" / "samples.jsonl")
    assert [bool(record["answer"]) for record in found] == [True, False, True]
    assert [record.get("error") for record in found] == [
        None,
        "the model's logits are not finite (NaN or infinite)",
        None,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_write_ends_and_asks_as_requests_and_completions_do(start, chat):
    """`q.write` has keys of its own, so without randomness. A tokenizer that tidies up would lose blanks."""
    folder = open_folder(start)
    few = set(requests.encode(folder.tokenizer, "a . ,"))
    config = dataclasses.replace(folder.config, mask_token_id=1050)
    tidying = copy.deepcopy(folder.tokenizer)
    tidying.clean_up_tokenization_spaces = True
    model = folder.load()
    model.config = config
    forbid = tuple(i for i in range(1050) if i not in few)
    settings = folder.ending(q.SamplerConfig(gen_length=16, block_length=16, steps=4, forbid=forbid))
    asked = requests.from_rows([{"prompt": text} for text in PROMPTS[:3]], tidying, chat=chat)
    folder = dataclasses.replace(folder, tokenizer=tidying)
    (batch,) = completions.write(model, folder, asked, settings, seed=0, rows=3)
    texts = [completion.text for completion in batch.completions]
    assert any(" ." in text or " ," in text for text in texts)
    assert q.write(model, tidying, PROMPTS[:3], settings, chat=chat) == texts


def test_write_answers_a_user(start, tokenizer):
    model = q.load(start)
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    with pytest.raises(q.InputError, match="prompts: the last message must be the user's, for the model to answer"):
        q.write(model, tokenizer, [said])


def test_keys_depend_on_seed_prompt_and_sample_alone():
    asked = [requests.Request(number, sample, "prompt", "", ()) for number in range(3) for sample in range(2)]
    keys = jax.random.key_data(completions.keys_of(7, asked))
    for key, request in zip(keys, asked, strict=True):
        fold, alone = jax.random.fold_in, jax.random.key(7)
        expected = fold(fold(alone, request.number), request.sample)
        np.testing.assert_array_equal(key, jax.random.key_data(expected))
    np.testing.assert_array_equal(jax.random.key_data(completions.keys_of(7, asked[::-1])), keys[::-1])
