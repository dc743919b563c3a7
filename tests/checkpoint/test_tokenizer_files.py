"""K5, K6: a tokenizer is what its files say and its model's, or it is refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, refuses

from qwen3llada_jax.text.tokens import load_tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copy(TINY / name, tmp_path / name)
    return tmp_path


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    change(content)
    file.write_text(json.dumps(content))


def unopened(folder: Path, *parts: str) -> None:
    refuses(lambda: load_tokenizer(folder), str(folder), *parts)


def as_vocab_and_merges(folder: Path) -> tuple[dict[str, int], list[str]]:
    """The older files of the same tokenizer; tokenizer.json goes."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()
    return model["vocab"], merges


def test_k5_the_bundled_tokenizer_is_its_file(folder):
    assert load_tokenizer(str(folder)).eos_token_id == 1024


def test_k5_a_folder_without_tokenizer_json_is_no_tokenizer_of_26_tokens(folder):
    """transformers makes a tokenizer of a few tokens of it, on which a run trains EOS only."""
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="Qwen2Tokenizer"))
    unopened(folder, "neither tokenizer.json nor vocab.json and merges.txt", "copy the model's tokenizer.json there")
    (folder / "vocab.json").write_text("{}")
    unopened(folder, "neither tokenizer.json nor merges.txt")
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"sentences")
    unopened(folder, "neither tokenizer.json nor vocab.json and merges.txt")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.model").unlink()
    unopened(folder, "no tokenizer in it")


def test_k5_vocab_and_merges_make_the_tokenizer_that_they_say_or_none(folder):
    load_tokenizer(folder)
    vocabulary, _ = as_vocab_and_merges(folder)
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="Qwen2Tokenizer"))
    added = {str(1024 + i): {"content": t} for i, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    edit(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder=added))
    built = load_tokenizer(folder)
    assert all(built.get_vocab()[token] == i for token, i in vocabulary.items())
    edit(
        folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer", added_tokens_decoder={})
    )
    unopened(
        folder, "makes another tokenizer of this folder than vocab.json (1,024 tokens) and merges.txt (768 merges)"
    )
    (folder / "vocab.json").write_text("nope")
    unopened(folder, "cannot be read")


def test_k5_another_tokenizer_than_tokenizer_json_says(folder):
    """transformers' own Qwen2 splits texts by its own rule, whatever the file says."""

    def other(content):
        content["pre_tokenizer"] = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        }

    edit(folder / "tokenizer.json", other)
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="Qwen2Tokenizer"))
    unopened(folder, "another tokenizer of this folder than its tokenizer.json describes", "PreTrainedTokenizerFast")
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast"))
    assert load_tokenizer(folder) is not None


def test_k5_added_tokens_that_the_library_numbers_anew(folder):
    edit(
        folder / "tokenizer.json",
        lambda c: c["added_tokens"].append({**c["added_tokens"][-1], "id": 1060, "content": "<|mask|>"}),
    )
    unopened(folder, "token 1060 is '<|mask|>', but transformers makes it 1050", "must leave no gap")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"vocab_size": 1040}, "ids up to 1049 but the embedding only 1040 rows; they belong to different models"),
        ({"vocab_size": 151_936}, "only 1,050 tokens for the 151,936 rows of the embedding"),
        ({"eos_token_id": [1024, 1070]}, "config.json says that token 1070 ends a text, but the tokenizer's ids end"),
    ],
)
def test_k5_a_tokenizer_of_another_model(folder, changes, part):
    edit(folder / "config.json", lambda c: c.update(changes))
    unopened(folder, part)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "nope", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', ""]
)
def test_k6_a_tokenizer_json_that_is_none(folder, text):
    (folder / "tokenizer.json").write_text(text)
    unopened(folder, "its tokenizer cannot be read")


def test_k6_a_tokenizer_json_of_a_newer_library(folder):
    """The Rust library raises a bare Exception of it."""
    edit(folder / "tokenizer.json", lambda c: c["model"].update(type="BPE-2027"))
    unopened(folder, "its tokenizer cannot be read", "install a newer transformers")


@pytest.mark.parametrize(
    "changes",
    [{"tokenizer_class": 3}, {"eos_token": 5}, {"added_tokens_decoder": {"x": 1}}, {"extra_special_tokens": 3}],
)
def test_k6_keys_of_a_wrong_type_in_tokenizer_config(folder, changes):
    edit(folder / "tokenizer_config.json", lambda c: c.update(changes))
    unopened(folder, "its tokenizer cannot be read")


def test_a_tokenizer_of_a_models_own_code_is_the_same_one_of_transformers(folder):
    """Dream's: Qwen2's files under a class of its own, for which transformers would run the model's code."""
    text = "My lord, 12 of\n\n them"
    before = load_tokenizer(folder)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    mask = {**added[0], "id": 1 + max(t["id"] for t in added), "content": "<|mask|>"}
    as_vocab_and_merges(folder)
    edit(
        folder / "tokenizer_config.json",
        lambda c: c.update(
            tokenizer_class="DreamTokenizer",
            auto_map={"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
            added_tokens_decoder={t["id"]: {k: v for k, v in t.items() if k != "id"} for t in (*added, mask)},
            mask_token="<|mask|>",
        ),
    )
    found = load_tokenizer(folder)
    assert found.mask_token_id == mask["id"]
    assert found(text).input_ids == before(text).input_ids
    assert found(f"{text}<|mask|>").input_ids == [*before(text).input_ids, mask["id"]]
