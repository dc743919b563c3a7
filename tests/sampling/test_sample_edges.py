"""The sampling programs where it hurts: broken weights, places, interruptions, odd rows, small terminals."""

import decimal
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, SOON_COMPILED, TINY, assert_one_line_error, run_program, write
from rich.console import Console
from safetensors.numpy import load_file, save_file

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.checkpoint import model_folder, stored_params
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import open_folder
from sample import answers, chat, compare, flags, generate, inputs, live
from sample.comparing import quality

MASK = 1050
SHORT = ["--mask-token-id", str(MASK), "--gen-length", "8", "--block-length", "4"]


@pytest.fixture
def here(start, tmp_path, monkeypatch):
    """A folder of one's own to work in, with the model beside the prompts, so that paths are relative."""
    shutil.copytree(start, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(*arguments):
    """sample.generate in this process, as its command line would: its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: generate.main(["--model", "model", *SHORT, *map(str, arguments)]))
    return stopped.value.code


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spoil(folder, change):
    weights = load_file(folder / "model.safetensors")
    save_file({name: change(name, w) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


# K16


@pytest.mark.slow
def test_k16_a_model_of_nan_is_an_error_and_writes_no_text(here, capsys):
    spoil(here / "model", lambda name, w: np.full_like(w, np.nan) if "norm" in name else w)
    sampled = ("--temperature", "1", "--top-p", "0.9")
    for more in ((), sampled, ("--live",), ("--trace", "t.json"), ("--out", "o.jsonl")):
        assert typed("--prompt", "To be", *more) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "error: 1 of 1 texts could not be written: the model's logits are not finite" in said.err
    (row,) = lines_of(here / "o.jsonl")
    assert row["text"] is None
    assert "not finite" in row["error"]
    assert typed("--infill", "To<mask>") == 2
    with pytest.raises(q.InputError, match="rule low_confidence: the model's logits are not finite"):
        compare.main(["--model", "model", *SHORT, "--data", write(here / "d.jsonl", [{"prompt": "x", "answer": "y"}]),
                      "--rules", "low_confidence"])  # fmt: skip


@pytest.mark.slow
def test_k16_the_chat_of_a_model_of_nan_says_so_and_goes_on(here, capsys, monkeypatch):
    spoil(here / "model", lambda name, w: np.full_like(w, np.nan) if "norm" in name else w)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n/help\n"))
    chat.main(["--model", "model", *SHORT])
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: row 1 of 1: the model's logits are not finite" in said.err
    assert "/save FILE" in said.err


PLACES = {
    "--prompts asks.jsonl --out asks.jsonl": "--out asks.jsonl is the file of --prompts too",
    "--prompts asks.jsonl --out ./sub/../asks.jsonl": "is the file of --prompts too",
    "--prompts asks.jsonl --out link.jsonl": "is the file of --prompts too",
    "--prompts o.jsonl.part.jsonl --out o.jsonl.part.jsonl": "is the file of --prompts too",
    "--chat --history said.json --trace said.json": "--trace said.json is the file of --history too",
    "--prompt x --trace model/config.json": "is a file of the model and would be replaced",
    "--prompt x --trace sub.json": "is a folder; name a file",
    "--prompt x --out sub.jsonl": "is a folder; name a file",
    "--prompt x --trace /proc/x.json": "cannot be written",
    "--prompt x --out /proc/x.jsonl": "cannot be written",
    "--prompts nan.jsonl --out o.jsonl": "its column 'score' holds NaN or an infinite number",
    "--prompts huge.jsonl --out o.jsonl": "its column 'score' holds NaN or an infinite number",
    "--prompts half.jsonl": "prompt 2: the text holds half of a surrogate pair",
    "--prompts half_chat.jsonl": "half of a surrogate pair",
    "--prompt \udcff": "half of a surrogate pair",
    "--chat --prompt x --system \ud83d": "half of a surrogate pair",
    "--infill a<mask:10000000000>": "more to fill than the 1,024 tokens that the model can hold",
    "--infill a<mask:" + "9" * 5000 + ">": "more to fill than",
    "--infill <mask:600><mask:600>": "more to fill than",
    "--prompt x --enable-thinking": "--enable-thinking belongs to a chat",
    "--prompt x --num-samples 1000000000 --temperature 1": "1,000,000,000 texts are more than memory",
}


def test_k16_what_cannot_be_is_refused_before_the_weights_are_read(here, monkeypatch, capsys):
    said = [{"role": "user", "content": "Who?"}]
    (here / "sub").mkdir()
    (here / "sub.json").mkdir()
    (here / "sub.jsonl").mkdir()
    (here / "said.json").write_text(json.dumps(said), encoding="utf-8")
    write(here / "asks.jsonl", [{"prompt": "x"}])
    write(here / "o.jsonl.part.jsonl", [{"prompt": "x"}])
    (here / "link.jsonl").symlink_to("asks.jsonl")
    (here / "nan.jsonl").write_text('{"prompt": "x", "score": [NaN]}\n', encoding="utf-8")
    (here / "huge.jsonl").write_text('{"prompt": "x", "score": 1e999}\n', encoding="utf-8")
    (here / "half.jsonl").write_text('{"prompt": "x"}\n{"prompt": "a \\ud83d b"}\n', encoding="utf-8")
    (here / "half_chat.jsonl").write_text('{"messages": [{"role": "user", "content": "\\udc00"}]}\n', encoding="utf-8")

    def never(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.setattr(model_folder, "load", never)
    before = {path.name for path in here.iterdir()}
    for line, part in PLACES.items():
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda line=line: generate.main(["--model", "model", "--mask-token-id", "1050", *line.split(" ")]))
        err = capsys.readouterr().err
        assert stopped.value.code == 2, line[:80]
        assert part in err, (line[:80], err)
        assert len(err) < 500
    for length in ("2000000000", "1024"):
        assert_refused(
            capsys, ["--gen-length", length, "--block-length", "4", "--prompt", "x"], "beyond the 1,024 positions"
        )
    assert {path.name for path in here.iterdir()} == before


def assert_refused(capsys, arguments, part):
    with pytest.raises(SystemExit):
        cli.run(lambda: generate.main(["--model", "model", "--mask-token-id", "1050", *arguments]))
    assert part in capsys.readouterr().err


@pytest.mark.slow
def test_k16_columns_with_half_a_surrogate_pair_are_carried_through(here):
    (here / "in.jsonl").write_text('{"prompt": "x", "note": "\\ud83d", "kind": "é"}\n{"prompt": "y", "kind": "é"}\n')
    assert typed("--prompts", "in.jsonl", "--out", "o.jsonl") == 0
    assert [row.get("note") for row in lines_of(here / "o.jsonl")] == ["\ud83d", None]
    assert [row["kind"] for row in lines_of(here / "o.jsonl")] == ["é", "é"]


def test_k16_memory_that_runs_out_is_one_line(capsys):
    for error, part in (
        (MemoryError(), "out of memory"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes." + "x" * 9999),
            "out of memory",
        ),
    ):

        def fail(error=error):
            raise error

        with pytest.raises(SystemExit) as stopped:
            cli.run(fail)
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert part in err
        assert len(err) < 500


# K18


@pytest.mark.slow
def test_k18_the_same_command_goes_on_and_another_is_refused(here, monkeypatch, capsys):
    write(here / "in.jsonl", [{"prompt": text, "id": i} for i, text in enumerate("abcde")])
    command = ("--prompts", "in.jsonl", "--out", "o.jsonl", "--batch-size", "2", "--temperature", "1")
    assert typed(*command) == 0
    whole = lines_of(here / "o.jsonl")
    (here / "o.jsonl").unlink()
    real = completions.write

    def stopped(*arguments, **options):
        yield next(real(*arguments, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(completions, "write", stopped)
        assert typed(*command) == 130
    part = here / "o.jsonl.part"
    first = part.read_bytes()
    assert len(lines_of(part)) == 2
    part.write_bytes(first + b'{"prompt": "c", "te')  # the power went off in the middle of a line

    assert typed(*command, "--seed", "1") == 2
    assert "holds 2 answers of another command (seed was 0, not 1)" in capsys.readouterr().err
    write(here / "other.jsonl", [{"prompt": text} for text in "abcdf"])
    assert typed("--prompts", "other.jsonl", *command[2:]) == 2
    assert "other prompts" in capsys.readouterr().err
    assert part.read_bytes().startswith(first)

    assert typed(*command) == 0
    assert "goes on after 2 of 5 answers" in capsys.readouterr().err
    again = lines_of(here / "o.jsonl")
    assert [(row["number"], row["text"]) for row in again] == [(row["number"], row["text"]) for row in whole]
    assert [path.name for path in here.glob("*o.jsonl*")] == ["o.jsonl"]


def test_k18_a_job_killed_before_the_last_rename_writes_nothing_anew(here, capsys):
    assert typed("--prompt", "a", "--out", "o.jsonl") == 0
    write(here / "one.jsonl", [{"prompt": "a"}])
    asked = [requests.Request(0, 0, "prompt", "a", (1,))]
    with answers.growing(here / "p.jsonl", {"seed": 0}, asked, 1) as (stream, done):
        assert done == 0
        answers.add(stream, [{"number": 0, "sample": 0}])
        shutil.copy(here / "p.jsonl.part", here / "copy.part")
        shutil.copy(here / ".p.jsonl.command.json", here / "copy.json")
    (here / "p.jsonl").unlink()
    (here / "copy.part").rename(here / "p.jsonl.part")
    (here / "copy.json").rename(here / ".p.jsonl.command.json")
    with answers.growing(here / "p.jsonl", {"seed": 0}, asked, 1) as (_, done):
        assert done == 1
    assert lines_of(here / "p.jsonl") == [{"number": 0, "sample": 0}]


def test_k18_two_jobs_never_write_one_file(here, capsys):
    asked = [requests.Request(0, 0, "prompt", "a", (1,))]
    with answers.growing(here / "o.jsonl", {}, asked, 1) as (stream, _):
        answers.add(stream, [{"number": 0, "sample": 0}])
        assert typed("--prompt", "a", "--out", "o.jsonl") == 2
        assert "o.jsonl.part is being written by another job" in capsys.readouterr().err
    assert lines_of(here / "o.jsonl") == [{"number": 0, "sample": 0}]


def test_k18_infilling_keeps_the_special_tokens_that_the_text_holds(here, tokenizer):
    text = "<|im_start|>user\nTo<mask:2> be<|im_end|>\n"
    assert typed_infill(text, "o.jsonl") == 0
    (row,) = lines_of(here / "o.jsonl")
    assert row["text"].startswith("<|im_start|>user\nTo")
    assert row["text"].endswith(" be<|im_end|>\n")
    (end,) = requests.encode(tokenizer, "<|endoftext|>")
    request = requests.from_rows([{"infill": text}], tokenizer, chat=False)[0]
    filled = [end if token is None else token for token in request.ids]  # what was written is no text
    assert completions.filled(tokenizer, request, filled) == text.replace("<mask:2>", "")


def typed_infill(text, out):
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: generate.main(["--model", "model", "--mask-token-id", "1050", "--infill", text, "--out", out]))
    return stopped.value.code


@pytest.mark.slow
def test_k18_a_conversation_of_nine_turns_compiles_for_doubling_lengths(here, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(f"Turn {n} of this talk" for n in range(9)) + "\n"))
    before = q.compilations()
    chat.main(["--model", "model", *SHORT, "--steps", "2"])
    assert q.compilations() - before <= 2
    assert len(capsys.readouterr().out.splitlines()) >= 9


def test_k18_rooms_double_within_the_positions():
    config = q.ModelConfig.from_hf(json.loads((TINY / "config.json").read_text(encoding="utf-8")))
    assert [chat.room_for(n, config, 24) for n in (1, 256, 257, 900, 1000)] == [256, 256, 512, 1000, 1000]


@pytest.mark.slow
def test_k16_a_conversation_beyond_the_positions_drops_its_first_turns_and_says_so(here, monkeypatch, capsys):
    asked, real = [], q.watch

    def spy(model, rows, settings, **options):
        asked.append(len(rows[0]))
        return real(model, rows, settings, **options)

    monkeypatch.setattr(q, "watch", spy)
    long = "word " * 250
    said = [f"first {long}", f"second {long}", f"third {long}", f"fourth {long}", "word " * 1100, "short"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(said) + "\n/save all.json\n"))
    chat.main(["--model", "model", *SHORT, "--steps", "2"])
    err = capsys.readouterr().err
    assert max(asked) + 8 <= 1024
    assert "its first 2 messages are left out" in err
    assert "error: the question" in err
    assert "beyond the 1,024 positions" in err
    assert len(asked) == 5
    kept = json.loads((here / "all.json").read_text(encoding="utf-8"))
    assert [turn["content"] for turn in kept if turn["role"] == "user"] == [*said[:4], "short"]


# K7, K14, K15, K9


def test_k7_what_is_typed_arrives_as_typed(here, monkeypatch, capsys):
    asked, real = [], chat.encode_chat

    def spy(tokenizer, messages, *more):
        asked.append(messages[-1]["content"] if messages[0]["role"] != "system" else messages)
        return real(tokenizer, messages, *more)

    monkeypatch.setattr(chat, "encode_chat", spy)
    lines = ["    indented(2024_01)  ", " /etc is what?", "/system  two blanks ", "0x10", "/etc", "ROMEO: #2"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat.main(["--model", "model", *SHORT, "--steps", "2"])
    err = capsys.readouterr().err
    assert asked[:2] == lines[:2]
    assert asked[2][0] == {"role": "system", "content": " two blanks "}
    assert asked[3][-1]["content"] == "ROMEO: #2"
    assert "unknown command '/etc'; put a blank before what is no command" in err.replace("; did you mean '/set'?", "")


def test_k7_values_of_settings_are_what_they_say():
    assert flags.changed(q.SamplerConfig(cache="dual"), {"cache": "none"}).cache == "none"
    assert flags.changed(q.SamplerConfig(cache="dual"), {"cache": "default"}).cache is None
    assert flags.changed(q.SamplerConfig(steps=3), {"steps": "default"}).steps is None
    assert flags.changed(q.SamplerConfig(steps=3), {"steps": "none"}).steps is None
    for name, text in {
        "steps": "1_6",
        "mask_token_id": "2024_01",
        "eos_token_ids": "1_0,2",
        "gen_length": "0x10",
    }.items():
        with pytest.raises(q.InputError, match=name):
            flags.changed(q.SamplerConfig(), {name: text})
    with pytest.raises(q.InputError, match="--seed"):
        cli.parse(generate.Flags, ["--model", "m", "--prompt", "x", "--seed", "2024_01"])
    parsed = cli.parse(
        generate.Flags,
        ["--model", "2024_01", "--prompt", "0x10", "--prompt", "ROMEO: #2 ", "--system", "1e3", "--chat"],
    )
    assert (parsed.model, parsed.prompt, parsed.system) == ("2024_01", ["0x10", "ROMEO: #2 "], "1e3")


def test_k7_save_replaces_conversations_only(here, monkeypatch, capsys):
    (here / "notes.json").write_text('{"mine": 1}', encoding="utf-8")
    lines = ["Who?", "/save notes.json", "/save talk.json", "/save talk.json"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat.main(["--model", "model", *SHORT, "--steps", "2"])
    err = capsys.readouterr().err
    assert "notes.json is there and is no conversation" in err
    assert (here / "notes.json").read_text(encoding="utf-8") == '{"mine": 1}'
    assert err.count("talk.json: 2 messages") == 2


def test_k19_the_chat_outlives_names_and_texts_that_cannot_be_written(here, monkeypatch, capsys):
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    (here / "said.json").write_text(json.dumps(said), encoding="utf-8")
    lines = ["/save .", "/save ..", "/save model", "/save a\0b", "/system half \udcff", "/save talk.json"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat.main(["--model", "model", *SHORT, "--history", "said.json"])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [e.split(": ", 1)[1] for e in errors[:3]] == [f"{n}: is a folder; name a file" for n in (".", "..", "model")]
    assert "cannot be written (embedded null byte)" in errors[3]
    assert "holds half of a surrogate pair" in errors[4]
    assert len(errors) == 5
    assert json.loads((here / "talk.json").read_text(encoding="utf-8")) == said
    assert not list(here.glob("*.part")) + list(here.glob(".*.part"))
    with pytest.raises(q.InputError, match="holds half of a surrogate pair"):
        chat.main(["--model", "model", *SHORT, "--system", "\udcff"])


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [(".", "x", "cannot be written ("), ("a.txt", "x\ud83d", "character 2 is half of a surrogate pair, '\\ud83d'"),
     ("a\0b", "x", "embedded null byte"), ("x/" * 2 + "a", "x", "No such file")],
)  # fmt: skip
def test_k19_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, name, text, part):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(q.InputError) as told:
        write_text(Path(name), text)
    assert part in str(told.value)
    assert not list(tmp_path.iterdir())


def test_k1_a_history_that_is_not_there_is_no_broken_json(here):
    (here / "broken.json").write_text("[{", encoding="utf-8")
    (here / "none.json").write_text("[]", encoding="utf-8")
    for name, part in (("nope", "cannot be read (No such file"), ("broken", "is not JSON ("), ("none", "no messages")):
        with pytest.raises(q.InputError) as told:
            inputs.read_history(Path(f"{name}.json"))
        assert str(told.value).startswith(f"{name}.json: {'' if name == 'none' else part}")
        assert str(told.value).count(".json") == 1
        assert part in str(told.value)


def test_k1_a_refusal_keeps_its_own_words_while_something_is_written():
    with pytest.raises(q.InputError, match=r"^what it is$"), stored_params.writing(Path("place")):
        raise q.InputError("what it is")


@pytest.mark.parametrize(
    ("model", "part"),
    [("", "--model: must name a file or a folder, not ''"), (" ", "must name a file or a folder"),
     ("nope", "nope: no such folder"),
     ("asks.jsonl", "--model asks.jsonl: is a file; give the folder that holds it"), ("./no/pe", "no such folder"),
     ("Qwen/Qwen3-0.6B", "converters.from_hf --src Qwen/Qwen3-0.6B --dst models/Qwen3-0.6B")],
)  # fmt: skip
def test_k16_what_is_no_model_folder_is_said_and_leaves_none(here, model, part):
    write(here / "asks.jsonl", [{"prompt": "x"}])
    before = sorted(here.rglob("*"))
    for program, arguments in (
        (generate, ["--prompt", "x"]), (chat, []), (compare, ["--data", "asks.jsonl", "--out", "out"]),
    ):  # fmt: skip
        with pytest.raises(q.InputError, match=re.escape(part)) as told:
            program.main(["--model", model, *SHORT, *arguments])
        assert ".:" not in str(told.value)
    assert sorted(here.rglob("*")) == before


def test_k16_a_refused_comparison_leaves_no_folder(here):
    write(here / "asks.jsonl", [{"prompt": "x" * 2000}])
    with pytest.raises(q.InputError, match="positions"):
        compare.main(["--model", "model", *SHORT, "--data", "asks.jsonl", "--out", "out"])
    assert not (here / "out").exists()
    with pytest.raises(q.InputError, match=r"asks.jsonl is a file"):
        compare.main(["--model", "model", *SHORT, "--data", "asks.jsonl", "--out", "asks.jsonl/out"])


ROWS = [
    {"question": "Who?", "answer": "I."},
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I."}]},
    {"instruction": "Say", "input": "who", "output": "I."},
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}], "prompt": "an id"},
    {"prompt": [{"role": "user", "content": "Who?"}], "completion": [{"role": "assistant", "content": "I."}]},
]


def test_k15_the_formats_that_training_reads_are_asked_and_compared(tmp_path, qwen3_tokenizer):
    """And the empty think block of Qwen3's own template is part of the prompt."""
    write(tmp_path / "rows.jsonl", ROWS)
    rows = inputs.from_file(tmp_path / "rows.jsonl")
    found = requests.from_rows(rows, qwen3_tokenizer, chat=False)
    for number, request in enumerate(found):
        question = "Say\n\nwho" if number == 2 else "Who?"
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert qwen3_tokenizer.decode(request.ids) == text
        assert {name: request.extra[name] for name in ROWS[number] if name != "messages"} == {
            name: value for name, value in ROWS[number].items() if name != "messages"
        }
    asked, right = compare.read(tmp_path / "rows.jsonl", None)
    assert right == ["I."] * 5
    again = requests.from_rows(asked, qwen3_tokenizer, chat=False)
    assert [request.ids for request in again] == [request.ids for request in found]
    (thinking,) = requests.from_rows(rows[:1], qwen3_tokenizer, chat=False, enable_thinking=True)
    assert qwen3_tokenizer.decode(thinking.ids).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("how", "written", "reference", "is_right"),
    [
        ("last-number", "So she makes $18 a day.", "9 * 2 = <<9*2=18>>18\n#### 18", True),
        ("last-number", "It is 1,800.00.", "#### 1800", True),
        ("last-number", "18, no, 17", "#### 18", False),
        ("last-number", "none", "#### 18", False),
        ("last-number", "minus −3", "#### -3", True),
        ("exact", " I. \n", "I.", True),
        ("exact", "I. I.", "I.", False),
        ("contains", "well, I. think", "I.", True),
        ("contains", "well", "I.", False),
        ("regex=####\\s*(\\S+)", "x #### 18 y", "#### 18", True),
        ("regex=[AB]", "C then B", "B", True),
        ("regex=####\\s*(\\S+)", "18", "#### 18", False),
    ],
)
def test_k15_matching_looks_at_text_and_reference_alike(how, written, reference, is_right):
    name, match = quality.match_of(how)
    assert name == how.partition("=")[0]
    assert match(written, reference) == is_right
    quality.check_references(match, [reference, None], how)


def test_k15_matches_that_cannot_be_are_refused():
    for how, part in {
        "best": "unknown; choose one of exact",
        "regex=(": "the pattern is none",
        "regex": "unknown",
    }.items():
        with pytest.raises(q.InputError, match=part):
            quality.match_of(how)
    with pytest.raises(q.InputError, match="the answer of prompt 2 has none of it"):
        quality.check_references(quality.match_of("last-number")[1], ["#### 1", "none"], "last-number")
    assert quality.last_number("a 1,234.50 b") == decimal.Decimal("1234.50")


def test_k9_compare_strips_the_think_block_that_the_template_adds(here, monkeypatch, capsys):
    said = "<think>\n\n</think>\n\n42"
    real = completions.text_of
    monkeypatch.setattr(completions, "text_of", lambda *a, **k: said if real(*a, **k) is not None else "")
    data = write(here / "d.jsonl", [{"prompt": "x", "answer": "42"}, {"prompt": "y", "answer": said}])
    compare.main(["--model", "model", *SHORT, "--data", data, "--rules", "low_confidence", "--out", "out"])
    (found,) = json.loads((here / "out" / "compare.json").read_text(encoding="utf-8"))["results"]
    assert found["exact"] == 1.0
    assert quality.without_empty_thought("<think>why</think>42") == "<think>why</think>42"


def test_k14_a_piped_table_is_not_cut(here, capsys):
    rule = "low_confidence+temperature=0.7+top_p=0.95+repetition_penalty=1.2+min_length=2"
    data = write(here / "d.jsonl", [{"prompt": "x", "answer": "42"}])
    compare.main(["--model", "model", *SHORT, "--data", data, "--rules", rule, "--match", "contains"])
    out = capsys.readouterr().out
    assert rule in out
    assert "contains" in out
    assert "tokens a forward" in out


def with_keys(file, **keys):
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(old | keys), encoding="utf-8")


def test_k14_an_autoregressive_model_says_what_it_was_not_trained_for(here, capsys):
    def said(**settings):
        folder = open_folder("model")
        inputs.say_if_untrained(folder, folder.ending(q.SamplerConfig(gen_length=8, **settings)))
        return capsys.readouterr().err

    assert said(mask_token_id=MASK) == said(mask_token_id=MASK, block_length=8) == ""  # sees everything, as it is
    with_keys(here / "model" / "config.json", is_causal=True)
    assert open_folder("model").config.mask_token_id == MASK  # the first free row: nobody ever sees it
    assert said() == said(visibility="block_causal") == ""
    assert "not trained for blocks of 4 under visibility block_causal" in said(block_length=4)
    assert "not trained for blocks of 1 under visibility full" in said(visibility="full")


def canvas_of(ids, start, masked=(), step=1):
    L = len(ids)
    is_masked = np.isin(np.arange(L), masked)
    written_at = np.where((np.arange(L) < start) | is_masked, -1, step - 1)
    return q.Canvas(
        tokens=np.array([ids]),
        is_masked=is_masked[None],
        written_at=written_at[None],
        confidence=np.ones((1, L)),
        places=np.arange(start, L)[None],
        prompt_length=np.array([start]),
        length=np.array([L]),
        passes=np.array([step]),
        nfe=np.array([step]),
    )


def test_k14_the_live_view_shows_the_first_of_many_ends(tokenizer):
    (end,) = requests.encode(tokenizer, "<|im_end|>")
    text = requests.encode(tokenizer, "To be")
    canvas = canvas_of([*text, end, end, end, end], len(text) - 1, masked=[len(text) + 1])
    ((_, shown),) = live._rows(canvas, tokenizer, (end,))
    assert shown.plain == "To be<|im_end|>·"


@pytest.mark.parametrize(("rows", "height"), [(1, 24), (8, 24), (40, 24), (1, 6)])
def test_k19_the_live_view_shows_the_writing_whatever_the_terminal(tokenizer, rows, height):
    prompt = requests.encode(tokenizer, "A long prompt, line after line of it. " * 80)
    answer = requests.encode(tokenizer, "HERE it is")
    one = canvas_of([*prompt, *answer, MASK], len(prompt), masked=[len(prompt) + len(answer)])
    canvas = q.Canvas(*(np.repeat(x, rows, axis=0) for x in one))
    console = Console(file=io.StringIO(), width=80, height=height, force_terminal=True)
    drawing = list(live._fitting(list(live._rows(canvas, tokenizer)), console))
    with console.capture() as capture:
        console.print(*drawing)
    text = capture.get()
    assert len(text.splitlines()) <= height - 1
    assert "HERE" in text
    assert "lines " in text
    assert ("more texts" in text) == (rows * 3 > height - 2)


# K19: as typed, in processes of their own


@pytest.mark.slow
def test_k19_ctrl_c_leaves_at_once(here):
    command = [sys.executable, "-m", "sample.generate", "--model", "model", "--mask-token-id", "1050",
               "--gen-length", "960", "--block-length", "8", "--prompt", "To be", "--prompt", "Or not"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_LOG_COMPILES": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as job:
        seen = []
        for line in job.stderr:  # until the program of all passes is being compiled
            seen.append(line)
            if "jit(passes_of)" in line:
                break
        begin = time.monotonic()
        job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=60)
    assert time.monotonic() - begin < 10
    assert job.returncode == 130, "".join(seen) + err
    assert err.strip().endswith("interrupted")
    assert "Traceback" not in err


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("program", ["sample.generate", "converters.from_hf"])
def test_k19_a_platform_that_is_not_here_is_one_line(here, program):
    arguments = {
        "sample.generate": ["--model", here / "model", *SHORT, "--prompt", "x"],
        "converters.from_hf": ["--src", here / "model", "--dst", here / "imported", "--mask-token-id", MASK],
    }[program]
    done = run_program(program, *arguments, check=None, env={"JAX_PLATFORMS": "cuda"})
    assert_one_line_error(done, "JAX_PLATFORMS=cuda: no such device here")
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.soak
@pytest.mark.slow
def test_k19_a_full_or_closed_output_is_one_line(here):
    command = f"{sys.executable} -m sample.generate --model model {' '.join(SHORT)} --prompt x"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": SOON_COMPILED}
    for place, code, part in ((">/dev/full", 2, "No space left"), (">&-", 2, "closed"), ("2>&-", 0, "")):
        done = subprocess.run(
            f"{command} {place}", shell=True, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == code, (place, done.stderr)
        assert "Traceback" not in done.stderr
        assert part in done.stderr
        if place == "2>&-":
            assert "NFE" not in done.stdout


@pytest.mark.soak
@pytest.mark.slow
def test_k19_texts_are_utf_8_whatever_the_locale(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    code = "import pathlib, qwen3llada_jax.io.atomic_files as f; f.write_text(pathlib.Path('t.txt'), '\\xe9\\u6587')"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=here)
    assert (here / "t.txt").read_text(encoding="utf-8") == "é文"
    write(here / "in.jsonl", [{"prompt": "é文", "messages": None}])
    command = [sys.executable, "-m", "sample.generate", "--model", "model", *SHORT, "--prompts", "in.jsonl"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\\xe9\\u6587")


def test_k19_every_file_names_its_encoding():
    """Of the programs and of what they write with."""
    for path in [*(ROOT / "sample").rglob("*.py"), ROOT / "qwen3llada_jax" / "io" / "atomic_files.py"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            opens = any(call in line for call in (".read_text(", ".write_text(", "open("))
            assert not opens or "encoding" in line or 'b")' in line or "os.open" in line, (path.name, line)
