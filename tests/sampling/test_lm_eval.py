"""Tasks of lm-evaluation-harness: its answers are transformers' and the library's own, and the same every time."""

import json
import math
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import DATA, ROOT, TINY, refuses, write
from transformers import AutoModelForCausalLM

import qwen3llada_jax as q
from qwen3llada_jax.likelihood.reading import reading_of
from qwen3llada_jax.writing.opening import open_folder
from sample import evaluate
from sample.tasks import faults, finding, scoring
from sample.tasks import run as tasks

pytest.importorskip("lm_eval")
SMOLLM2 = ROOT / "out" / "smollm2" / "hf"
LINES = [x.strip() for x in (DATA / "shakespeare" / "valid.txt").read_text().split("\n") if len(x) > 30][:24]
CHAT = {
    "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "output_type": "generate_until",
    "metric_list": [{"metric": "exact_match", "ignore_case": True}],
}  # fmt: skip


def halves(line: str) -> tuple[str, str]:
    words = line.split(" ")
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of tasks: choices, a word to guess, texts, and writing by greedy decoding or drawing."""
    folder = tmp_path_factory.mktemp("tasks")
    ends = [halves(line)[1] for line in LINES]
    choices = [
        {"begin": halves(line)[0] + " " * (n % 2), "ends": [ends[n], ends[n - 1], ends[n - 2][:9]], "right": 0}
        for n, line in enumerate(LINES[:6])
    ]
    write(folder / "choices.jsonl", [*choices, {"begin": "", "ends": ["The", "Zounds, my", "a"], "right": 1}])
    write(folder / "texts.jsonl", [{"text": "\n".join(LINES[:9])}, {"text": LINES[3]}])
    write(folder / "asks.jsonl", [{"question": halves(x)[0], "answer": halves(x)[1]} for x in LINES[:5]])
    common = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1}}
    fifth = halves(LINES[4])[1].split(" ")[0]
    late = "{{question if answer.split(' ')[0] != '" + fifth + "' else gone.x}}"
    guess = {
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{answer.split(' ')[0]}}",
        "output_type": "loglikelihood",
    }
    kinds = {
        "choices": ("choices", {
            "output_type": "multiple_choice", "doc_to_text": "{{begin}}", "doc_to_choice": "ends",
            "doc_to_target": "right", "target_delimiter": " ",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }),
        "guess": ("asks", guess | {
            "output_type": "loglikelihood", "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        }),
        "texts": ("texts", {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        }),
        "greedy": ("asks", CHAT | {
            "generation_kwargs": {"until": [",", "e "], "max_gen_toks": 22, "do_sample": False, "temperature": 0.4},
        }),
        "drawn": ("asks", CHAT | {
            "repeats": 2, "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 9, "temperature": 0.9},
        }),
        "shots": ("asks", CHAT | {
            "fewshot_split": "test", "num_fewshot": 2, "generation_kwargs": {"until": "<|im_end|>", "max_gen_toks": 8},
        }),
        "beams": ("asks", CHAT | {"generation_kwargs": {"until": ["x"], "num_beams": 4}}),
        "stop": ("asks", CHAT | {"generation_kwargs": {"until": 5}}),
        "many": ("asks", CHAT | {"generation_kwargs": {"max_gen_toks": "many"}}),
        "alone": ("asks", CHAT | {"num_fewshot": 0}),
        "mean": ("asks", CHAT | {"metric_list": [{"metric": "exact_match", "aggregation": "no_such_mean"}]}),
        "late": ("asks", CHAT | {"doc_to_text": late}),
        "filter": ("asks", CHAT | {"filter_list": [{"name": "x", "filter": [{"function": "no_such_filter"}]}]}),
    }  # fmt: skip
    for name, (data, of_task) in kinds.items():
        files = {"dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": f"my_{name}", **common, **files, **of_task}))
    return folder


def ran(place, out, names: str, *more, model=TINY) -> tuple[dict, dict]:
    """(results.json, what the samples of each task say)."""
    evaluate.main([
        "--model", str(model), "--tasks", names, "--include-path", str(place), "--dtype", "float32", "--out", str(out),
        *map(str, more),
    ])  # fmt: skip
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    samples = {
        name: [json.loads(x) for x in (out / f"samples_{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in names.split(",")
    }
    return found["results"], samples


def measured(samples: list[dict], name: str) -> np.ndarray:
    return np.array([said[name] for sample in samples for said in sample["measured"]], np.float64)


@pytest.fixture(scope="module")
def theirs():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def log_p(theirs, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return theirs(torch.tensor(ids)[None]).logits[0].log_softmax(-1)


@pytest.fixture(scope="module")
def exact(place, tmp_path_factory):
    return ran(place, tmp_path_factory.mktemp("exact"), "my_choices,my_guess,my_texts", "--window", 48, "--stride", 47)


@pytest.mark.slow
def test_an_autoregressive_models_answers_are_transformers(exact, theirs, tokenizer):
    results, samples = exact
    eos, right = tokenizer.eos_token_id, []
    for sample in samples["my_choices"] + samples["my_guess"]:
        for (context, end), said in zip(sample["arguments"], sample["measured"], strict=True):
            whole = tokenizer(context + end).input_ids
            given = tokenizer(context.rstrip()).input_ids
            ids = [*(given or [eos]), *whole[len(given) :]]
            logs, begin = log_p(theirs, ids), len(given or [eos])
            expected = sum(float(logs[i - 1, ids[i]]) for i in range(begin, len(ids)))
            assert said["log_likelihood"] == pytest.approx(expected, abs=1e-4)
            assert (said["standard_error"], said["tokens"]) == (0, len(ids) - begin)
            if sample in samples["my_guess"]:
                is_greedy = logs[begin - 1 : -1].argmax(-1).tolist() == ids[begin:]
                assert said["is_greedy"] is is_greedy
                right.append(is_greedy)
            else:
                assert (said["is_greedy"], said["nfe"]) == (None, 1)
    assert results["my_guess"]["acc,none"] == np.mean(right)
    lls = np.split(measured(samples["my_choices"], "log_likelihood"), 7)
    best = [x.argmax() for x in lls]
    assert results["my_choices"]["acc,none"] == pytest.approx(np.mean(np.array(best) == [0] * 6 + [1]))
    assert {tuple(map(len, s["doc"]["ends"])) for s in samples["my_choices"]} != {(1, 1, 1)}


@pytest.mark.slow
def test_whole_texts_in_the_harnesss_windows(exact, theirs, tokenizer):
    """Disjoint ones, each behind one token, the first behind EOS: what its `hf` does with 47 positions."""
    results, samples = exact
    nats, size = 0.0, 0
    for sample in samples["my_texts"]:
        ids = [tokenizer.eos_token_id, *tokenizer(sample["doc"]["text"]).input_ids]
        of_text, tokens = 0.0, 0
        for begin in range(0, len(ids) - 1, 47):
            part = ids[begin : begin + 48]
            logs = log_p(theirs, part)
            of_text += sum(float(logs[i - 1, part[i]]) for i in range(1, len(part)))
            tokens += len(part) - 1
        (said,) = sample["measured"]
        assert said["log_likelihood"] == pytest.approx(of_text, rel=1e-5)
        assert said["tokens"] == tokens == len(ids) - 1
        assert said["nfe"] == -(-tokens // 47)
        nats, size = nats + of_text, size + len(sample["doc"]["text"].encode())
    assert samples["my_texts"][0]["measured"][0]["nfe"] >= 3
    assert results["my_texts"]["bits_per_byte,none"] == pytest.approx(-nats / size / math.log(2), rel=1e-5)


@pytest.mark.soak
def test_texts_end_before_the_first_stop_string_and_rows_as_soon_as_it_is_final(place, tmp_path):
    """A pass more than the tokens that are needed to see it, none for what follows; as `q.generate` writes them."""
    _, samples = ran(place, tmp_path / "a", "my_greedy", "--batch-size", 2)
    folder = open_folder(TINY)
    model = folder.load("float32")
    prompts = [folder.tokenizer(s["arguments"][0][0]).input_ids for s in samples["my_greedy"]]
    settings = folder.ending(q.SamplerConfig(gen_length=22))
    stopped = 0
    for sample, ids in zip(samples["my_greedy"], q.generate(model, prompts, settings).answers(), strict=True):
        texts = [folder.tokenizer.decode(ids[:n]) for n in range(23)]
        needed = next((n for n, text in enumerate(texts) if "," in text or "e " in text), 22)
        ((written,),) = sample["resps"]
        assert written == texts[needed].split(",")[0].split("e ")[0]
        assert sample["measured"] == [{"tokens": needed, "nfe": needed}]
        stopped += needed < 22
    assert stopped >= 3
    blocks = ["--visibility", "block_bias", "--block-length", 4, "--steps", 12]
    _, found = ran(place, tmp_path / "b", "my_greedy", *blocks)
    nfe, tokens = (measured(found["my_greedy"], name) for name in ("nfe", "tokens"))
    assert (tokens <= np.minimum(2 * nfe, 22)).all()  # two passes a block
    assert (tokens >= np.minimum(2 * nfe - 3, 22)).all()
    assert nfe.min() < 12
    for sample in found["my_greedy"]:
        assert "," not in sample["resps"][0][0]


@pytest.mark.soak
def test_the_batch_changes_nothing_and_the_seed_does(place, tmp_path):
    """Bounds by draws of noise, and drawn texts; twice of one question are two texts."""
    names, blocks = "my_choices,my_drawn", ["--visibility", "block_causal", "--block-length", 4, "--samples", 4]
    one, eight, again, other = (
        ran(place, tmp_path / str(n), names, *blocks, "--batch-size", size, "--seed", seed)
        for n, (size, seed) in enumerate([(1, 3), (8, 3), (8, 3), (8, 4)])
    )
    assert eight == again
    assert one[0]["my_choices"] == eight[0]["my_choices"]
    for name in ("log_likelihood", "standard_error"):
        pair = [measured(x[1]["my_choices"], name) for x in (one, eight)]
        np.testing.assert_allclose(*pair, atol=1e-4)
        assert np.abs(pair[0] - measured(other[1]["my_choices"], name)).max() > 1e-2
    texts = [[s["resps"][0] for s in x[1]["my_drawn"]] for x in (one, eight, other)]
    assert texts[0] == texts[1] != texts[2]
    assert all(a != b for a, b in texts[0])
    assert measured(one[1]["my_choices"], "nfe").max() == 4

    # The bound is the library's, by the request's own key.
    folder = open_folder(TINY)
    model, how = folder.load("float32"), reading_of(folder.config, visibility="block_causal", block_length=4)
    encoder = scoring.Encoder(folder.tokenizer, shift=how.shift)
    rows = [encoder.pair(*pair) for sample in one[1]["my_choices"] for pair in sample["arguments"]]
    expected = q.nelbo(
        model, [row.ids for row in rows], prompt_length=[row.given for row in rows], samples=4,
        key=scoring.keys(3, rows), block_length=4, mask_token_id=folder.config.mask_token_id,
    )  # fmt: skip
    np.testing.assert_allclose(measured(one[1]["my_choices"], "log_likelihood"), -expected.mean, rtol=1e-4)
    np.testing.assert_allclose(
        measured(one[1]["my_choices"], "standard_error"), expected.standard_error, rtol=1e-3, atol=1e-4
    )
    assert expected.standard_error.max() > 0.01


@pytest.mark.soak
def test_examples_are_turns_of_the_chat(place, tmp_path, tokenizer):
    _, samples = ran(place, tmp_path / "a", "my_shots", "--chat", "--system", "Be brief.", "--limit", 2)
    answers = {halves(line)[0]: halves(line)[1] for line in LINES}
    for sample in samples["my_shots"]:
        context = sample["arguments"][0][0]
        turns = [turn.split("\n", 1) for turn in context.replace("<|im_end|>\n", "").split("<|im_start|>")[1:]]
        assert [role for role, _ in turns] == ["system", *["user", "assistant"] * 3]
        assert turns[0][1] == "Be brief."
        for (_, question), (_, answer) in zip(turns[1:-2:2], turns[2:-1:2], strict=True):
            assert answers[question] == answer
        assert turns[-2][1] == sample["doc"]["question"]
        assert context.endswith("<|im_start|>assistant\n")
        assert sample["measured"][0]["nfe"] <= 8


def test_what_stands_before_a_text_and_what_positions_hold(tokenizer):
    encoder, eos = scoring.Encoder(tokenizer, shift=True), tokenizer.eos_token_id
    assert encoder.pair("  ", "a b") == scoring.Row([eos, *tokenizer("  a b").input_ids], 1)
    assert encoder.pair("", "").ids == [eos]
    assert scoring.Encoder(tokenizer, shift=False).pair("", "a").given == 0
    row = encoder.pair("My lord, ", "I come")
    assert row.ids == tokenizer("My lord, I come").input_ids
    assert row.given == len(tokenizer("My lord,").input_ids)
    config = q.ModelConfig(64, 16, 16, 1, 2, 1, 8, max_position_embeddings=5, shift=True)
    assert scoring.cut(scoring.Row([1, 2, 3, 4, 5, 6, 7], 4), config) == (scoring.Row([3, 4, 5, 6, 7], 2), True)
    refuses(lambda: scoring.cut(scoring.Row([1, 2, 3, 4, 5, 6, 7], 2), config), "5 tokens is beyond the 5 positions")


@pytest.mark.slow
def test_what_cannot_be_run_is_refused_in_a_line(place, tmp_path, monkeypatch):
    texts = write(tmp_path / "t.jsonl", [{"text": "a"}])
    (tmp_path / "gone.yaml").write_text((place / "texts.yaml").read_text().replace("texts.jsonl", "gone.jsonl"))
    (tmp_path / "group.yaml").write_text("group: mine\ntask: [my_texts]\n")
    (tmp_path / "hub.yaml").write_text("task: hub\ndataset_path: nobody/nothing\ntest_split: test\n")
    for arguments, parts in (
        ((), ("--data FILE or --tasks NAMES",)),
        (("--data", texts, "--tasks", "x"), ("one of the two",)),
        (("--data", texts, "--steps", "8"), ("--steps is of --tasks",)),
        (("--data", texts, "--num-fewshot", "2"), ("--num-fewshot is of --tasks",)),
        (("--tasks", "my_choices", "--temperature", "1"), ("--temperature is of writing",)),
        (("--tasks", "my_choices", "--window", "8"), ("--window is of whole texts",)),
        (("--tasks", "my_choices", "--system", "x"), ("--system belongs to a chat",)),
        (("--tasks", "my_choices,my_ch*"), ()),
        (("--tasks", "nowhere.yaml"), ("nowhere.yaml: there is no such file",)),
        (("--tasks", str(tmp_path / "gone.yaml")), ("cannot be made ready", "dataset_kwargs")),
        (("--tasks", str(tmp_path / "hub.yaml")), ("cannot be made ready", "hub")),
        (("--tasks", f"{place / 'texts.yaml'},my_texts"), ("my_texts stands there twice",)),
        (("--tasks", "my_beams"), ("my_beams", "'num_beams'")),
        (("--tasks", "my_greedy", "--top-k", "3"), ("top_k", "temperature above 0")),
        (("--tasks", "my_greedy", "--gen-length", "1024"), ("no place for a question", "--gen-length")),
        (("--tasks", "my_texts", "--include-path", "nowhere"), ("given twice",)),
        (("--tasks", "my_stop"), ("--tasks my_stop", "until is a text or a list of them, not 5")),
        (("--tasks", "my_many"), ("--tasks my_many", "max_gen_toks is a number, not many")),
        (("--tasks", "my_alone", "--num-fewshot", "2"), ("--num-fewshot", "my_alone is asked without examples")),
        (("--tasks", "my_mean"), ("--tasks my_mean", "aggregation of the metric 'exact_match'")),
        (("--tasks", "my_filter"), ("--tasks my_filter: cannot be made ready", "no_such_filter")),
        (("--tasks", str(tmp_path / "group.yaml")), ("group.yaml: a group of tasks", "--include-path")),
        (("--tasks", "my_drawn,my_greedy", "--num-fewshot", "9"), ("--tasks my_drawn", "Sample larger")),
        (("--tasks", "my_drawn,my_late", "--out", str(tmp_path / "out")), ("--tasks my_late", "'gone' is undefined")),
    ):
        command = ["--model", str(TINY), *arguments]
        if "--tasks" in arguments:
            command += ["--include-path", str(place)]
        if parts:
            refuses(lambda c=command: evaluate.main(c), *parts)
    assert not (tmp_path / "out").exists()
    folder = open_folder(TINY)
    for kwargs, part in (({"do_sample": True}, "no temperature"), ({"max_length": 9}, "'max_length'")):
        flags = evaluate.Flags(model=str(TINY), tasks="x")
        refuses(lambda k=kwargs, f=flags: tasks.plan_of(k, f, folder, "t"), "--tasks t", part)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refuses(lambda: evaluate.main(["--model", str(TINY), "--tasks", "x"]), "pip install lm-eval")


def test_a_fault_below_our_answers_keeps_its_traceback():
    """The harness fails while it asks, or while the model answers: only the first is the task's."""
    at_work = {"__name__": "sample.tasks.harness"}
    exec("def answer():\n    return {}['ours']", at_work)

    def judge(task_name, answer):
        return answer() if answer else {}["theirs"]

    with pytest.raises(KeyError, match="ours"), faults.told({"a", "b"}):
        judge("a", at_work["answer"])
    with pytest.raises(MemoryError), faults.told({"a"}):
        raise MemoryError

    def of_a_task():
        with faults.told({"a", "b"}):
            judge("b", None)

    refuses(of_a_task, "--tasks b: the harness cannot run it", "KeyError: 'theirs'", "test_lm_eval.py:")


@pytest.mark.soak
def test_an_unknown_task_is_told_the_nearest(place):
    refuses(lambda: finding.ready("my_choises", place), "--tasks my_choises", "did you mean 'my_choices'")


def test_flags_win_over_a_tasks_settings_and_those_over_the_models():
    folder = open_folder(TINY)
    given = {"until": "<|im_end|>", "max_new_tokens": 50, "do_sample": True, "temperature": 0.7, "top_p": 0.9}

    def plan(kwargs, **flags):
        return tasks.plan_of(kwargs, evaluate.Flags(model=str(TINY), tasks="x", **flags), folder)

    found = plan(given)
    assert (found.most, found.settings.gen_length, found.until) == (50, 50, ("<|im_end|>",))
    assert (found.settings.temperature, found.settings.top_p) == (0.7, 0.9)
    assert folder.tokenizer.convert_tokens_to_ids("<|im_end|>") in found.settings.eos_token_ids
    assert plan(given | {"do_sample": False}).settings.temperature == 0
    won = plan(given, gen_length=30, block_length=8, temperature=0.3, visibility="block_bias")
    assert (won.most, won.settings.gen_length, won.settings.temperature) == (30, 32, 0.3)
    assert plan({}).most == 256
    assert plan({"until": [","]}).settings.eos_token_ids == plan({}).settings.eos_token_ids


@pytest.mark.soak
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"SmolLM2 is not at {SMOLLM2}: `make smollm2` fetches it")
def test_a_real_model_answers_as_transformers(place, tmp_path):
    """Twice the same, and the same texts and judgments one by one as eight at once."""
    eight, again, one = (
        ran(place, tmp_path / name, "my_choices,my_guess,my_texts,my_greedy", "--batch-size", size, model=SMOLLM2)
        for name, size in (("eight", 8), ("again", 8), ("one", 1))
    )
    assert eight == again
    results, samples = eight
    for task, found in results.items():
        for name, value in found.items():
            assert one[0][task][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))
    assert [x["resps"] for x in one[1]["my_greedy"]] == [x["resps"] for x in samples["my_greedy"]]
    for task in ("my_choices", "my_guess", "my_texts"):
        pair = [measured(x[task], "log_likelihood") for x in (one[1], samples)]
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4)
    reference = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    tokenizer = q.load_tokenizer(SMOLLM2)
    for sample in samples["my_choices"]:
        for (context, end), said in zip(sample["arguments"], sample["measured"], strict=True):
            given = tokenizer(context.rstrip()).input_ids or [tokenizer.bos_token_id]
            whole = tokenizer(context + end).input_ids
            ids = whole if context.strip() else given + whole
            logs = log_p(reference, ids)
            expected = sum(float(logs[i - 1, ids[i]]) for i in range(len(given), len(ids)))
            assert said["log_likelihood"] == pytest.approx(expected, abs=1e-3)
    assert 0 < results["my_texts"]["bits_per_byte,none"] < 2
