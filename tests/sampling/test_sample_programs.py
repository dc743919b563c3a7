"""The sampling programs: every flag acts, files go in and come out, traces tell what happened, bad input is refused."""

import dataclasses
import io
import json
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, assert_one_line_error, on_devices, run_program, write
from torch_twins import torch_model

import qwen3llada_jax as q
from qwen3llada_jax import cli
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.io.atomic_files import write_text
from qwen3llada_jax.sampling.slots import SLOTS
from qwen3llada_jax.text import tokens
from qwen3llada_jax.writing import completions, requests
from qwen3llada_jax.writing.opening import open_folder
from sample import chat, clock, compare, flags, generate, inputs, live
from sample.comparing import quality
from sample.traces import trace

MASK = 1050
SHORT = ["--mask-token-id", str(MASK), "--gen-length", "8", "--block-length", "4"]


@pytest.fixture
def write_with(start, capsys):
    """sample.generate in this process: (standard output, standard error)."""

    def run(*arguments):
        capsys.readouterr()
        generate.main(["--model", str(start), *SHORT, *map(str, arguments)])
        return capsys.readouterr()

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# What comes in


def test_every_setting_is_a_flag_and_arrives():
    assert {*flags.SETTINGS, *SLOTS} == {field.name for field in dataclasses.fields(q.SamplerConfig)}
    given = {
        "gen_length": 16, "block_length": 4, "steps": 8, "temperature": 0.5, "top_k": 3, "top_p": 0.9,
        "cfg_scale": 1.5, "repetition_penalty": 1.2, "remasking": "margin", "threshold": 0.8, "revise": 2,
        "revise_by": "random", "eos": "last", "min_length": 3, "stop_at_eos": False, "eos_token_ids": (7, 8),
        "forbid": (9,), "visibility": "block_bias", "cache": "dual", "parallel_blocks": True, "mask_token_id": 60,
        "sub_block_length": 2,
    }  # fmt: skip
    others = [
        {"factor": 1.5}, {"entropy_bound": 0.3}, {"dynamic": 0.8}, {"timesteps": 0.01}, {"local_leap": 0.8},
        {"klass": 0.7}, {"less": 0.6}, {"wide_in": 0.5, "narrow_out": 0.8}, {"finish_below": 0.01}, {"edit_above": 0.9},
        {"anneal_to": 0.3, "temperature": 0.9}, {"speculate": True, "block_length": 4},
    ]  # fmt: skip
    assert set(given) | {n for other in others for n in other} == set(flags.SETTINGS)
    for values in (given, *others):
        for dash in ("-", "_"):
            typed = []
            for name, value in values.items():
                flag = "--" + name.replace("_", dash)
                if isinstance(value, bool):
                    typed += [flag if value else flag.replace("--", f"--no{dash}")]
                else:
                    typed += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
            parsed = cli.parse(generate.Flags, ["--model", "m", "--prompt", "x", *typed])
            assert flags.settings_of(parsed) == q.SamplerConfig(**values)
    old = cli.parse(generate.Flags, ["--model", "m", "--prompt", "x", "--cfg", "2", "--block_attention"])
    assert flags.settings_of(old) == q.SamplerConfig(cfg_scale=2.0, visibility="block_bias")


def test_help_says_what_approximates(capsys):
    for program in (generate, chat, compare):
        with pytest.raises(SystemExit):
            program.main(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "under full both approximate" in text
        assert "all blocks in the same passes; exact" in text


def test_requests_are_what_the_template_and_the_tokenizer_say(tokenizer):
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    said += [{"role": "user", "content": "And?"}]
    (request,) = requests.from_rows([{"messages": said, "id": 7}], tokenizer, chat=False, system="Be brief.")
    text = "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for role, content in [("system", "Be brief."), ("user", "Who?"), ("assistant", "I."), ("user", "And?")]
    )
    assert tokenizer.decode(request.ids) == text + "<|im_start|>assistant\n"
    assert request.extra == {"id": 7}
    (asked,) = requests.from_rows([{"prompt": "Who?"}], tokenizer, chat=True)
    assert tokenizer.decode(asked.ids) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    a, b = requests.encode(tokenizer, "To be"), requests.encode(tokenizer, " to be")
    assert requests.encode_holes(tokenizer, "To be<mask:3> to be<mask>") == [*a, None, None, None, *b, None]


def test_history_goes_before_the_prompt(tmp_path):
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    (tmp_path / "h.json").write_text(json.dumps(said))
    common = ["--model", "m", "--chat", "--history", str(tmp_path / "h.json"), "--prompt"]
    assert generate.asked(cli.parse(generate.Flags, [*common, "A", "--prompt", "B"])) == [
        {"messages": [*said, {"role": "user", "content": text}]} for text in "AB"
    ]


def test_revising_at_random_makes_samples():
    given = ["--model", "m", "--prompt", "x", "--num-samples", "2", "--revise", "2", "--revise-by", "random"]
    assert cli.parse(generate.Flags, given).num_samples == 2


def test_a_value_that_looks_like_an_option():
    with pytest.raises(q.InputError, match="--prompt='--hello there'"):
        cli.parse(generate.Flags, ["--model", "m", "--prompt", "--hello there"])
    assert cli.parse(generate.Flags, ["--model", "m", "--prompt=--hello there"]).prompt == ["--hello there"]


def test_largest_seed():
    seed = cli.parse(generate.Flags, ["--model", "m", "--prompt", "x", "--seed", "4294967295"]).seed
    assert jax.random.key_data(jax.random.key(seed)).tolist() == [0, 4294967295]


# What comes out


@pytest.mark.slow
def test_prompts_from_a_file_to_a_file(write_with, tmp_path):
    rows = [{"prompt": text, "id": i} for i, text in enumerate(["ROMEO:", "To be", "My lord", "What", "O"])]
    data, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    common = ["--prompts", data, "--out", out, "--temperature", "1", "--num-samples", "2", "--seed", "5"]
    said = write_with(*common, "--batch-size", "2")
    assert said.out == ""
    found = lines_of(out)
    assert [(row["prompt"], row["id"], row["number"], row["sample"]) for row in found] == [
        (row["prompt"], row["id"], row["id"], sample) for row in rows for sample in range(2)
    ]
    assert all(row["seed"] == 5 and row["nfe"] == 8 and row["seconds"] > 0 for row in found)
    assert all(a["text"] != b["text"] for a, b in zip(found[::2], found[1::2], strict=True))
    tokens, nfe = sum(row["tokens"] for row in found), sum(row["nfe"] for row in found)
    numbers = re.search(r"NFE 8 · (\d+) tokens · .*tokens/s · ([\d.]+) tokens per forward · .* seed 5", said.err)
    assert int(numbers[1]) == tokens
    assert float(numbers[2]) == pytest.approx(tokens / nfe, abs=0.006)
    assert [path.name for path in tmp_path.glob("out*")] == ["out.jsonl"]

    # The same text in another company, and with other batches the last of which is filled up.
    write_with(*common, "--batch-size", "3")
    assert [row["text"] for row in lines_of(out)] == [row["text"] for row in found]
    (tmp_path / "one.txt").write_text("ROMEO:\n\n")
    alone = ["--prompts", tmp_path / "one.txt", "--temperature", "1", "--seed", "5"]
    assert write_with(*alone).out == "ROMEO:" + found[0]["text"] + "\n"


def test_the_last_batch_compiles_nothing(start, tokenizer):
    folder = open_folder(start)
    asked = requests.from_rows([{"prompt": t} for t in ("a", "b", "c")], tokenizer, chat=False)
    settings = folder.ending(q.SamplerConfig(mask_token_id=MASK, gen_length=8, block_length=4))
    batches = completions.write(folder.load(), folder, asked, settings, seed=0, rows=2)
    first, compiled = next(batches), q.compilations()
    (second,) = batches
    assert q.compilations() == compiled
    assert [len(first.completions), len(second.completions)] == [2, 1]


def test_an_interrupted_run_keeps_its_lines_and_the_older_file(write_with, tmp_path, monkeypatch):
    out, data = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", [{"prompt": t} for t in "abc"])
    out.write_text("old\n")
    real = completions.write

    def stopped(*arguments, **options):
        yield next(real(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(completions, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_with("--prompts", data, "--out", out, "--batch-size", "2")
    assert out.read_text() == "old\n"
    assert [row["prompt"] for row in lines_of(tmp_path / "out.jsonl.part")] == ["a", "b"]


def test_holes_are_filled_and_the_rest_stays(write_with, start, tmp_path):
    arguments = ["--model", str(start), "--mask-token-id", str(MASK), "--block-length", "4", "--infill"]
    generate.main([*arguments, "To be<mask:3> to be<mask> that", "--eos", "never", "--out", str(tmp_path / "o.jsonl")])
    (row,) = lines_of(tmp_path / "o.jsonl")
    assert re.fullmatch(r"To be.+ to be.+ that", row["text"], re.DOTALL)
    assert row["infill"] == "To be<mask:3> to be<mask> that"
    assert row["tokens"] == row["nfe"] == 4


def test_a_cache_that_approximates_is_named(start, capsys, monkeypatch):
    class Reached(Exception):  # noqa: N818
        """The note comes before the weights are read; so the test need not read them."""

    def stop(*_, **__):
        raise Reached

    monkeypatch.setattr(model_folder, "load", stop)
    for more, is_named in {
        "--cache dual": True,
        "--cache prefix": True,
        "--cache none": False,
        "": False,
        "--cache prefix --visibility block_causal": False,
    }.items():
        with pytest.raises(Reached):
            generate.main(["--model", str(start), *SHORT, "--prompt", "a", *more.split()])
        assert ("approximate under visibility full" in capsys.readouterr().err) == is_named


def test_texts_end_where_the_flag_says(tokenizer):
    """And by default at the model's end, the tokenizer's, and the end of a turn."""
    ends = [requests.encode(tokenizer, text) for text in ("<|endoftext|>", "<|im_end|>")]
    assert all(len(end) == 1 for end in ends)
    config = q.ModelConfig.from_hf(json.loads((TINY / "config.json").read_text()))
    folder = open_folder(TINY)
    assert set(folder.ending(q.SamplerConfig()).eos_token_ids) == {*config.eos_token_ids, ends[0][0], ends[1][0]}
    assert folder.ending(q.SamplerConfig(eos_token_ids=(7,))).eos_token_ids == (7,)
    assert tokens.up_to_stop([5, 6, 7, 8], (7,)) == [5, 6]


@pytest.mark.slow
def test_a_mesh_writes_the_same(write_with):
    one = write_with("--prompt", "ROMEO:", "--prompt", "To", "--prompt", "be").out
    with on_devices(4):
        for mesh in (["--data", "2", "--tensor", "2"], ["--fsdp", "2"]):
            assert write_with("--prompt", "ROMEO:", "--prompt", "To", "--prompt", "be", *mesh).out == one


def test_clock_tells_compiling_from_work():
    assert clock.length_of_union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    program = jax.jit(lambda x: jnp.sin(x) @ x)
    x = jnp.ones((3, 3))
    first = clock.Clock()
    program(x).block_until_ready()
    assert 0 < first.compiling <= first.seconds
    second = clock.Clock()
    program(x).block_until_ready()
    assert second.compiling == 0


# Traces


def test_trace_is_what_the_sampler_did(write_with, start, tokenizer, tmp_path):
    file = tmp_path / "t.json"
    write_with("--prompt", "ROMEO:", "--prompt", "O", "--trace", file, "--threshold", "0.002")
    record = json.loads(file.read_text())
    assert record["settings"]["threshold"] == 0.002
    settings = q.SamplerConfig(mask_token_id=MASK, gen_length=8, block_length=4, threshold=0.002)
    ids = [requests.encode(tokenizer, text) for text in ("ROMEO:", "O")]
    model = q.load(start)
    model.config = dataclasses.replace(model.config, live_vocab_size=len(tokenizer))
    result = q.generate(model, ids, settings)
    for row, prompt, at, sure in zip(record["rows"], ids, result.written_at, result.confidence, strict=True):
        written = np.asarray(at)[len(prompt) : len(prompt) + 8]
        assert [t["pass"] for t in row["tokens"]] == [None] * len(prompt) + [int(n) + 1 for n in written]
        confidence = [t["confidence"] for t in row["tokens"][len(prompt) :]]
        np.testing.assert_allclose(confidence, np.asarray(sure)[len(prompt) : len(prompt) + 8], atol=6e-5)
        assert "".join(t["token"] for t in row["tokens"]) == tokenizer.decode([t["id"] for t in row["tokens"]])
    assert max(np.bincount(np.asarray(result.written_at)[0] + 1)[1:]) > 1  # something was parallel


@pytest.mark.slow
def test_trace_shows_what_was_masked_again(write_with, tmp_path):
    from PIL import Image

    common = ["--prompt", "ROMEO:", "--steps", "8", "--revise", "2", "--temperature", "1"]
    write_with(*common, "--trace", tmp_path / "t.json")
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    before = [(t, stood) for t in row["tokens"] for stood in t.get("before", ())]
    assert before
    assert all(stood["pass"] < stood["until"] < t["pass"] for t, stood in before)

    write_with(*common, "--trace", tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert json.loads(re.search(r"const rows = (.*);\n", page)[1])[0]["tokens"] == row["tokens"]
    assert not re.search(r"https?://|src=|@import|<link", page)

    write_with(*common, "--trace", tmp_path / "t.gif")
    with Image.open(tmp_path / "t.gif") as film:
        assert film.format == "GIF"
        assert film.n_frames >= 8  # the blank page and after every pass; the last ones are alike
        first, last = film.copy().convert("RGB"), None
        film.seek(film.n_frames - 1)
        last = film.convert("RGB")
    assert np.abs(np.asarray(first, int) - np.asarray(last, int)).max() > 50
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_no_text_can_end_the_page():
    from sample.traces.page import page

    evil = {"token": "</script><!--<script>", "id": 1, "pass": 1, "confidence": 0.5}
    made = page([{"nfe": 1, "tokens": [evil]}], q.SamplerConfig())
    assert made.count("<script>") == made.count("</script>") == 1
    assert json.loads(re.search(r"const rows = (.*);\n", made)[1])[0]["tokens"] == [evil]


def test_picture_has_the_colors_of_the_passes(tmp_path):
    """Two passes: the first and the last color of the map are there; a longer line under a surer token."""
    from matplotlib import colormaps
    from PIL import Image

    from sample.traces.picture import draw

    tokens = [{"token": t, "id": 0, "pass": p, "confidence": c} for t, p, c in [("aaaa", 1, 0.9), ("bbbb\nb", 2, 0.1)]]
    draw(tmp_path / "t.png", [{"nfe": 2, "tokens": tokens}])
    pixels = np.asarray(Image.open(tmp_path / "t.png").convert("RGB"), int).reshape(-1, 3)
    for end in (0.0, 1.0):
        color = np.array(colormaps["viridis_r"](end)[:3]) * 255
        assert (np.abs(pixels - color).max(axis=1) < 3).sum() > 500


def test_token_texts_make_the_whole_text(tokenizer):
    text = "To be — 🎭 or 文 not\n"
    ids = requests.encode(tokenizer, text)
    texts = trace.texts_of(ids, tokenizer)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "" in texts  # the first tokens of a character of several


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_picture_without_some_characters_says_so_once(write_with, tmp_path, recwarn, kind):
    """The prompt's, so of every frame."""
    file = tmp_path / f"c.{kind}"
    for prompt, is_said in {"文 🎭": True, "To — be": False}.items():
        said = write_with("--prompt", prompt, "--trace", file)
        lines = [line for line in said.err.splitlines() if str(file) in line]
        assert len(lines) == 1
        assert (f"some characters are not in the picture's font, --trace {tmp_path}/c.html has" in lines[0]) == is_said
    assert [w for w in recwarn if "Glyph" in str(w.message)] == []


def test_live_view_leaves_out_what_the_end_filled_up(tokenizer):
    """The prompt's own end token and the one that a pass wrote are shown, a mask among the fill too."""
    (end,) = requests.encode(tokenizer, "<|endoftext|>")
    ids = [end, *requests.encode(tokenizer, "IJ"), end, end, end, end]
    written = len(ids) - 4
    L = len(ids) + 2  # and padding
    canvas = q.Canvas(
        tokens=np.array([[*ids, MASK, MASK]]),
        is_masked=np.array([[False] * (len(ids) - 1) + [True] + [False] * 2]),
        written_at=np.array([[-1] + [0] * written + [-1] * 5]),
        confidence=np.ones((1, L)),
        places=np.array([[*range(1, len(ids)), L, L]]),
        prompt_length=np.array([1]),
        length=np.array([len(ids)]),
        passes=np.array([2]),
        nfe=np.array([2]),
    )
    ((_, text),) = live._rows(canvas, tokenizer)
    assert text.plain == "<|endoftext|>IJ<|endoftext|>·"


def test_live_view_draws_off_a_terminal_too(write_with):
    said = write_with("--prompt", "ROMEO:", "--live").err
    for title in ("pass 0, 8 to write", "pass 1, 7 to write", "pass 4, 4 to write", "written in 8 passes"):
        assert title in said
    assert "pass 3," not in said


# Chat


@pytest.fixture
def talk(start, capsys, monkeypatch):
    """sample.chat with these lines on standard input: (standard output, standard error, conversations asked)."""

    def run(*lines, arguments=()):
        asked, real = [], chat.encode_chat

        def spy(tokenizer, messages, *more):
            asked.append([(m["role"], m["content"]) for m in messages])
            return real(tokenizer, messages, *more)

        monkeypatch.setattr(chat, "encode_chat", spy)
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        capsys.readouterr()
        chat.main(["--model", str(start), *SHORT, "--steps", "2", *arguments])
        said = capsys.readouterr()
        return said.out, said.err, asked

    return run


def test_chat_remembers_and_forgets(talk, tmp_path):
    file = tmp_path / "said.json"
    out, err, asked = talk(
        "Who?", "And?", f"/save {file}", "/clear", "/system Be brief.", "Why?", "/nonsense", "/save", "/quit", "Never"
    )
    saved = json.loads(file.read_text())
    assert [m["role"] for m in saved] == ["user", "assistant"] * 2
    assert asked == [
        [("user", "Who?")],
        [("user", "Who?"), ("assistant", saved[1]["content"]), ("user", "And?")],
        [("system", "Be brief."), ("user", "Why?")],
    ]
    assert out.startswith(saved[1]["content"] + "\n" + saved[3]["content"] + "\n")
    assert "unknown command '/nonsense'" in err
    assert "/save takes the name of a file" in err
    _, _, again = talk("Go on.", arguments=["--history", str(file)])
    assert again == [[(m["role"], m["content"]) for m in saved] + [("user", "Go on.")]]


def test_chat_changes_settings_and_survives_wrong_ones(talk, monkeypatch):
    used, real = [], q.watch

    def spy(model, rows, settings, **options):
        used.append(settings)
        return real(model, rows, settings, **options)

    monkeypatch.setattr(q, "watch", spy)
    wrong = ["/set nope=1", "/set steps=x", "/set steps", "/set gen_length=9", "/set eos=maybe"]
    wrong += ["/set forbid=abc", "/set revise_by=random"]
    fine = ["/set revise=2", "/set revise_by=random", "/set revise=none", "/set revise_by=none"]
    _, err, _ = talk(
        "Who?", *wrong, *fine, "/set steps=4", "/set stop-at-eos=off", "/set forbid=5,6", "Who?",
        "/set steps=none", "Who?",
    )  # fmt: skip
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    parts = ["unknown setting 'nope'", "steps must be a whole number", "NAME=VALUE", "try 12", "eos 'maybe'"]
    parts += ["forbid must be ids, as 7,12, not 'abc'", "revise_by chooses"]
    for line, part in zip(errors, parts, strict=True):
        assert part in line
    assert [s.steps for s in used] == [2, 4, None]
    assert used[1].forbid == (5, 6)
    assert not used[1].stop_at_eos


def test_ctrl_c_stops_the_answer_and_not_the_program(talk, monkeypatch, tmp_path):
    real, calls = q.watch, []

    def interrupted(*arguments, **options):
        calls.append(1)
        canvases = real(*arguments, **options)
        yield next(canvases)
        if len(calls) == 1:
            raise KeyboardInterrupt
        yield from canvases

    monkeypatch.setattr(q, "watch", interrupted)
    _, err, asked = talk("First", "Second")
    assert "stopped" in err
    assert asked == [[("user", "First")], [("user", "Second")]]


# Comparing


@pytest.mark.slow
def test_compare_counts_exact_answers(write_with, start, tmp_path, capsys):
    asks = [{"prompt": t} for t in ("ROMEO:", "To be", "O")]
    write_with("--prompts", write(tmp_path / "asks.jsonl", asks), "--out", tmp_path / "own.jsonl")
    own = [row["text"] for row in lines_of(tmp_path / "own.jsonl")]
    answers = [{**ask, "answer": text} for ask, text in zip(asks, [*own[:2], own[2] + "!"], strict=True)]
    data = write(tmp_path / "data.jsonl", answers)
    compare.main(
        ["--model", str(start), *SHORT, "--data", data, "--rules", "low_confidence,threshold=0.001+left_to_right",
         "--steps", "8,4", "--out", str(tmp_path / "out")]
    )  # fmt: skip
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["results"]
    assert [(row["rule"], row["steps"]) for row in found] == [
        ("low_confidence", 8), ("low_confidence", 4), ("threshold=0.001+left_to_right", None)
    ]  # fmt: skip
    assert found[0]["exact"] == pytest.approx(2 / 3)
    assert found[0]["standard_error"] == pytest.approx((2 / 9 / 3) ** 0.5)
    assert [row["nfe"] for row in found[:2]] == [8, 4]
    low, high = found[0]["interval"]
    assert low <= 2 / 3 <= high
    assert found[0]["difference_interval"] == [0, 0]
    assert found[1]["difference_to_first"] == found[1]["exact"] - found[0]["exact"]
    areas = json.loads((tmp_path / "out" / "compare.json").read_text())["aup"]
    assert [(area["rule"], area["levels"]) for area in areas] == [
        ("low_confidence", 2), ("threshold+left_to_right", 1)
    ]  # fmt: skip
    assert "AUP" in table
    assert found[2]["nfe"] < 8
    assert all(row["tokens_per_second"] > 0 for row in found)
    assert "66.7%" in table
    assert (tmp_path / "out" / "compare.png").stat().st_size > 5000


def test_compare_without_answers(start, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", [{"prompt": "ROMEO:"}, {"prompt": "O"}])
    compare.main(["--model", str(start), *SHORT, "--data", data, "--rules", "low_confidence"])
    assert re.search(r"low_conf.* -\d\.\d{3} ", capsys.readouterr().out)


def test_log_probability_is_that_of_torch(start, tokenizer):
    """Each stride masked by hand, one row at a time, in PyTorch."""
    model = q.load(start)
    settings = q.SamplerConfig(mask_token_id=MASK, gen_length=8, block_length=4, stop_at_eos=False)
    ids = [requests.encode(tokenizer, text) for text in ("ROMEO:", "O")]
    result = q.generate(model, ids, settings)
    found = quality.log_probability(model, result, settings)
    reference = torch_model(0, vocab_size=1088, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    for row, (prompt, answer) in enumerate(zip(ids, result.answers(), strict=True)):
        for stride in range(4):
            text = [*prompt, *(MASK if i % 4 == stride else t for i, t in enumerate(answer))]
            with torch.no_grad():
                log_p = reference(torch.tensor([text])).logits[0].double().log_softmax(-1)
            for i in range(stride, 8, 4):
                at = len(prompt) + i
                assert found[row, at] == pytest.approx(log_p[at, answer[i]].item(), abs=1e-4)
        assert np.isnan(found[row, : len(prompt)]).all()


def test_distinct_share():
    assert quality.distinct_share([1, 2, 1, 2, 1, 2], n=2) == 2 / 5
    assert quality.distinct_share([1, 2, 3, 4, 5]) == quality.distinct_share([1]) == 1


def test_chats_with_an_answer_at_the_end_are_questions_with_answers(tmp_path):
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    data = write(tmp_path / "d.jsonl", [{"messages": said}])
    assert compare.read(tmp_path / "d.jsonl", None) == ([{"messages": said[:1]}], ["I."])
    assert data.endswith("d.jsonl")


# Bad input: one line, before the weights are read

FILES = {
    "empty.txt": "\n\n",
    "row.jsonl": '{"promt": "x"}\n',
    "two.jsonl": '{"prompt": "x", "infill": "<mask>"}\n',
    "list.jsonl": "[1]\n",
    "broken.jsonl": '{"prompt": "x"}\n{\n',
    "number.jsonl": '{"prompt": 3}\n',
    "talk.jsonl": '{"messages": [{"role": "user"}]}\n',
    "robot.jsonl": '{"messages": [{"role": "robot", "content": "x"}]}\n',
    "ended.jsonl": '{"messages": [{"role": "assistant", "content": "x"}]}\n',
    "system.jsonl": '{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}\n',
    "mixed.jsonl": '{"prompt": "x"}\n{"infill": "<mask>"}\n',
    "column.jsonl": '{"prompt": "x", "tokens": 3}\n',
    "some.jsonl": '{"prompt": "x", "answer": "y"}\n{"prompt": "x"}\n',
    "holes.jsonl": '{"infill": "<mask>"}\n',
    "history.json": '{"role": "user"}',
    "asks.json": '[{"role": "user", "content": "x"}]',
    "x.pdf": "prompt\nx\n",
}
GENERATE = {
    "": "nothing to write",
    "--prompt x --infill <mask>": "--prompt and --infill both",
    "--prompt x --prompts empty.txt": "--prompt and --prompts both",
    "--prompts nowhere.txt": "nowhere.txt: cannot be read",
    "--prompts x.pdf": "unknown kind of file",
    "--prompts empty.txt": "no prompt in it",
    "--prompts row.jsonl": "did you mean 'prompt'?",
    "--prompts two.jsonl": "line 1 has prompt and infill, which all say",
    "--prompts list.jsonl": "line 1 is no JSON object",
    "--prompts broken.jsonl": "line 2 is not valid JSON",
    "--prompts number.jsonl": "prompt is a number, not a text: 3",
    "--prompts talk.jsonl": "a turn has no text",
    "--prompts robot.jsonl": "a turn has an unknown speaker",
    "--prompts ended.jsonl": "the last message must be the user's",
    "--prompts system.jsonl --system z": "leave out --system",
    "--prompts mixed.jsonl": "use two files",
    "--prompts column.jsonl --out o.jsonl": "column 'tokens'",
    "--prompt x --out o.txt": "use .jsonl",
    "--prompt x --out no/o.jsonl": "no such folder",
    "--infill a<mask> --no-stop-at-eos": "--no-stop-at-eos means nothing when holes are filled",
    "--infill a<mask> --no-parallel-blocks": "--no-parallel-blocks means nothing",
    "--prompt x --trace o.pdf": "unknown kind of file",
    "--prompt x --trace no/o.png": "no such folder",
    "--prompt x --system y": "--system belongs to a chat",
    "--prompt x --history asks.json": "--history belongs to a chat",
    "--prompt x --chat --history history.json": "messages is an object, not a list of turns",
    "--prompt x --chat --history nowhere.json": "cannot be read",
    "--infill <mask> --chat --history asks.json": "not with --infill",
    "--infill x": "nothing to fill",
    "--infill <mask:0>": "nothing to fill",
    "--infill <mask> --chat": "leave out --chat",
    "--infill <mask> --gen-length 8": "--gen-length means nothing",
    "--infill <mask> --parallel-blocks": "--parallel-blocks means nothing",
    "--infill <mask> --visibility block_causal --cache dual": "use cache none (under block_causal dual is prefix)",
    "--infill <mask> --cache prefix": "no prefix to keep",
    "--prompt x --num-samples 2": "all samples are the same",
    "--prompt x --num-samples 2 --revise 2": "all samples are the same",
    "--prompt x --num-samples 0": "--num-samples must be at least 1",
    "--prompt x --batch-size 0": "--batch-size must be at least 1",
    "--prompt x --top-k 3": "needs a temperature",
    "--prompt x --top-p 2 --temperature 1": "top_p must be above 0",
    "--prompt x --threshold 0.9 --factor 1": "both say how many",
    "--prompt x --threshold 2": "threshold must be",
    "--prompt x --factor -1": "factor must be",
    "--prompt x --entropy-bound -1": "entropy_bound must be",
    "--prompt x --remasking best": "invalid choice",
    "--prompt x --remaskin random": "did you mean '--remasking'?",
    "--prompt x --revise -1": "revise must be",
    "--prompt x --revise-by luck": "invalid choice",
    "--prompt x --revise-by random": "revise_by chooses what is masked again; it needs revise above 0",
    "--prompt x --revise-by confidence --revise 0": "it needs revise above 0",
    "--prompt x --eos maybe": "invalid choice",
    "--prompt x --min-length -1": "min_length must be",
    "--prompt x --repetition-penalty 0": "repetition_penalty must be",
    "--prompt x --eos-token-ids one": "--eos-token-ids: must be ids, as 7,12, not 'one'",
    "--prompt x --forbid abc": "--forbid: must be ids, as 7,12, not 'abc'",
    "--prompt x --seed 99999999999999999999999": "--seed: must be a whole number of 0 … 4294967295",
    "--prompt x --seed 4294967296": "--seed: must be",
    "--prompt x --seed -1": "--seed: must be",
    "--prompt x --seed y": "--seed: must be",
    "--prompt --hello_you": "(as the value of --prompt: --prompt=--hello_you)",
    "--prompt x --live --hello": "unknown option '--hello'; did you mean '--help'?",
    "--prompt x --forbid 99999": "forbid 99999 is outside",
    "--prompt x --cache all": "invalid choice",
    "--prompt x --parallel-blocks": "needs visibility block_bias",
    "--prompt x --block-attention --visibility full": "give one of them",
    "--prompt x --block-length 5 --gen-length 8": "not a multiple of block_length 5",
    "--prompt x --steps 3 --gen-length 8 --block-length 4": "steps 3 is not a multiple",
    "--prompt x --data 3": "does not fit 8 device(s)",
    "--prompt x --fsdp 0": "sizes are above 0",
    "--prompt x --tensor x": "invalid whole value",
}
COMPARE = {
    "": "--data",
    "--data nowhere.jsonl": "cannot be read",
    "--data empty.txt": "--data has rows with prompts and answers",
    "--data some.jsonl": "some lines have an answer",
    "--data holes.jsonl": "has texts with holes",
    "--data column.jsonl --rules best": "unknown rule 'best'",
    "--data column.jsonl --rules threshold=x": "threshold must be a number",
    "--data column.jsonl --rules tresh=1": "unknown setting 'tresh'",
    "--data column.jsonl --rules low_confidence+steps=2": "--rules: 'steps=2' is no rule; --steps says",
    "--data column.jsonl --rules revise_by=random": "it needs revise above 0",
    "--data column.jsonl --seed 99999999999999999999999": "--seed: must be",
    "--data column.jsonl --steps 8,x": "--steps takes numbers",
    "--data column.jsonl --rules margin,margin": "'margin' and 'margin' are the same here; leave one",
    "--data column.jsonl --rules threshold=0.9,margin,threshold=.9": "'threshold=0.9' and 'threshold=.9' are the same",
    "--data column.jsonl --rules low_confidence+cfg_scale=0,low_confidence": "are the same here",
    "--data column.jsonl --rules margin --steps 32,16,32": "'margin' and 'margin' of 32 steps are the same here",
    "--data column.jsonl --limit 0": "--limit must be at least 1",
    "--data column.jsonl --steps 3 --gen-length 8 --block-length 4": "steps 3 is not a multiple",
}
CHAT = {
    "--history asks.json": "the last message must be the assistant's",
    "--history nowhere.json": "cannot be read",
    "--prompt x": "unknown option '--prompt'",
    "--seed 99999999999999999999999": "--seed: must be",
    "--threshold 2": "threshold must be",
}


@pytest.fixture
def refused(start, tmp_path, monkeypatch):
    """The one line that a program answers with; reading the weights is an error of the test."""
    for name, text in FILES.items():
        write_text(tmp_path / name, text)

    def never(*_, **__):
        raise AssertionError("the weights were read")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_folder, "load", never)

    def run(program, line, capsys):
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda: program.main(["--model", str(start), "--mask-token-id", str(MASK), *line.split()]))
        assert stopped.value.code == 2
        err = capsys.readouterr().err.splitlines()
        assert len(err) == 1, err
        return err[0]

    return run


@pytest.mark.parametrize(
    ("program", "table"), [(generate, GENERATE), (compare, COMPARE), (chat, CHAT)], ids=["generate", "compare", "chat"]
)
def test_bad_input_gets_one_line_before_the_weights_are_read(program, table, refused, capsys):
    for line, part in table.items():
        assert part in refused(program, line, capsys), line


def test_a_tokenizer_without_template_is_refused(start, tmp_path, monkeypatch):
    real = inputs.open_model

    def without(parsed):
        folder = real(parsed)
        folder.tokenizer.chat_template = None
        return folder

    monkeypatch.setattr(inputs, "open_model", without)
    for program, more in ((generate, ["--chat", "--prompt", "x"]), (chat, [])):
        with pytest.raises(q.InputError, match="has no chat template"):
            program.main(["--model", str(start), *SHORT, *more])


# As typed


@pytest.mark.parametrize(("line", "code", "part"), [("", 2, "model, prompt"), ("m", 2, "prompt"), ("--help", 0, "own")])
def test_the_example_says_what_it_takes(line, code, part, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["custom_rule.py", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "examples" / "custom_rule.py"), run_name="__main__")
    said = capsys.readouterr()
    assert stopped.value.code == code
    assert part in (said.err if code else said.out)
    assert len(said.err.splitlines()) == (1 if code else 0)


@pytest.mark.soak
@pytest.mark.slow
def test_programs_as_typed(tiny_folder, tmp_path):
    common = [
        "--model",
        tiny_folder,
        "--mask_token_id",
        MASK,
        "--gen_length",
        "16",
        "--block_length",
        "8",
        "--steps",
        8,
    ]
    bad = run_program("sample.generate", *common, "--prompts", tmp_path / "no.jsonl", check=None)
    assert_one_line_error(bad, "no.jsonl: cannot be read")
    talked = run_program("sample.chat", *common, input="Speak.\n/set steps=4\nSpeak.\n")
    assert talked.stderr.count("written in") == 2
