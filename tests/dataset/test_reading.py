"""Nothing that data hold is left unread in silence: columns, fields of turns, files of folders, splits, odd rows."""

import dataclasses
import json
import os
import re
import shutil

import datasets
import pyarrow as pa
import pytest
from conftest import QWEN3_TEMPLATE, TINY, write
from pyarrow import parquet as pq

import qwen3llada_jax as q
from qwen3llada_jax.io.jsonl import BadRowError
from qwen3llada_jax.text.chat_template import ChatWriter, names_in
from qwen3llada_jax.text.conversations import Columns, read_conversation
from qwen3llada_jax.text.tokens import load_tokenizer
from train.checkpoint.base_model import find_base_model, settled
from train.config.parse import read_config
from train.config.schema import Config, DatasetConfig, EvaluationConfig, TrainingConfig
from train.data import sources
from train.data.batches import load_eval_rows, trained_on_too, training_batches
from train.data.rows import rows_of as made_of
from train.data.show_rows import shown
from train.data.tokenize import Reading, TokenizeConfig

USER, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I am."}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}}
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [CALLED]}


def rows_of(path, tokenizer, length=2000, columns=Columns(), mode="sft", split="train", column=None, **more):
    """The rows of a file or folder, as a run reads them."""
    with sources.readable(str(path)):
        source = sources.load(str(path), None, split)
        how = TokenizeConfig(mode, length, pack=False, **more)
        return made_of(source, how, tokenizer, Reading(column, columns), num_proc=None)


def texts(rows, tokenizer):
    """(prompt, answer) of each row."""
    found = [(rows.row(i).ids, rows.row(i).prompt_length) for i in range(len(rows))]
    return [(tokenizer.decode(ids[:prompt]), tokenizer.decode(ids[prompt:])) for ids, prompt in found]


def learned(tmp_path, tokenizer, *messages, **more):
    """(answers learned of one conversation, the report)."""
    row = {"messages": list(messages), **more.pop("row", {})}
    rows = rows_of(write(tmp_path / "a.jsonl", [row, {"messages": [USER, ANSWER]}]), tokenizer, **more)
    return [answer for _, answer in texts(rows, tokenizer)][:-1], rows.report


# ---- turns ---------------------------------------------------------------------------------------------------


def test_k9_an_empty_think_block_is_prompt_and_no_answer(tmp_path, qwen3_tokenizer):
    """With Qwen3's real template, every answer began with one."""
    rows = rows_of(write(tmp_path / "a.jsonl", [{"messages": [USER, ANSWER]}]), qwen3_tokenizer)
    ((prompt, answer),) = texts(rows, qwen3_tokenizer)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert answer == "I am.<|im_end|>"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_k3_reasoning_is_taught_or_the_turn_is_left_out(tmp_path, qwen3_tokenizer, field):
    turn = {**ANSWER, field: "Because I think."}
    answers, _ = learned(tmp_path, qwen3_tokenizer, USER, turn, enable_thinking=True)
    assert answers == ["<think>\nBecause I think.\n</think>\n\nI am.<|im_end|>"]
    answers, report = learned(tmp_path, qwen3_tokenizer, USER, turn)
    assert answers == []
    assert "1 left out: the answer has a reasoning while enable_thinking is off" in report


def test_k3_reasoning_that_the_template_drops_leaves_the_turn_out(tmp_path, tokenizer):
    """The bundled template knows nothing of it, nor R1's of what it wrote before `</think>`."""
    answers, report = learned(tmp_path, tokenizer, USER, {**ANSWER, "reasoning_content": "Because."})
    assert answers == []
    assert "1 left out: the chat template leaves out the reasoning of a turn of the assistant" in report
    r1 = load_tokenizer(TINY)
    r1.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% elif m.role == 'assistant' %}<A>"
        "{{ m.content.split('</think>')[-1] }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"
    )
    answers, report = learned(tmp_path, r1, USER, {"role": "assistant", "content": "<think>Hm.</think>I am."})
    assert answers == []
    assert "1 left out: the chat template does not write all that the answer says" in report


def test_k3_an_answer_that_the_template_cuts_is_left_out(tmp_path, qwen3_tokenizer):
    """Qwen3's template takes everything before the tag for reasoning."""
    answers, report = learned(
        tmp_path, qwen3_tokenizer, USER, {"role": "assistant", "content": "Close it with </think> at the end."}
    )
    assert answers == []
    assert "1 left out: the chat template does not write all that the answer says (first: " in report


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"trainable": 0}, {"masked": True},
             {"mask": 1}, {"weight": "0"}],
)  # fmt: skip
def test_k3_turns_not_to_be_learned_stay_in_the_history(tmp_path, qwen3_tokenizer, flag):
    bad, again = {"role": "assistant", "content": "A bad answer.", **flag}, {"role": "user", "content": "Again?"}
    rows = rows_of(write(tmp_path / "a.jsonl", [{"messages": [USER, bad, again, ANSWER]}]), qwen3_tokenizer)
    ((prompt, answer),) = texts(rows, qwen3_tokenizer)
    assert "A bad answer." in prompt
    assert answer == "I am.<|im_end|>"
    assert "1 answers of rows that are used left out: is not to be learned (weight 0)" in rows.report
    assert re.search(rf"turn fields: .*{next(iter(flag))}", rows.report)


def test_k3_a_weight_between_is_left_out_and_one_is_learned(tmp_path, qwen3_tokenizer):
    answers, report = learned(tmp_path, qwen3_tokenizer, USER, {**ANSWER, "weight": 0.5})
    assert answers == []
    assert "a turn's weight is neither 0 nor 1" in report
    assert learned(tmp_path, qwen3_tokenizer, USER, {**ANSWER, "weight": 1})[0] == ["I am.<|im_end|>"]


def test_k3_tools_and_their_calls_go_to_the_template(tmp_path, qwen3_tokenizer):
    said = [USER, CALL, {"role": "tool", "content": "sunny"}, ANSWER]
    row = {"messages": said, "tools": [WEATHER]}
    for tools in ([WEATHER], json.dumps([WEATHER])):  # many sets keep them as a text
        rows = rows_of(write(tmp_path / "a.jsonl", [{**row, "tools": tools}]), qwen3_tokenizer)
        (first, call), (second, answer) = texts(rows, qwen3_tokenizer)
        assert '"name": "weather", "parameters": {"city": "string"}' in first
        assert call == '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
        assert "<tool_response>\nsunny\n</tool_response>" in second
        assert answer == "I am.<|im_end|>"
        assert "columns: messages, tools\n" in rows.report


def test_k3_tools_that_the_template_does_not_know_leave_the_row_out(tmp_path, tokenizer):
    for more, why in (
        ({"tools": [WEATHER]}, "has tools, which the chat template does not write"),
        ({}, "the chat template leaves out the tool calls of a turn of the assistant"),
    ):
        answers, report = learned(tmp_path, tokenizer, USER, CALL, row=more)
        assert answers == []
        assert f"1 left out: {why}" in report


def test_k3_tools_of_typed_columns_hold_no_nulls_of_other_rows(tmp_path, qwen3_tokenizer):
    """Arrow fills the keys that only another row's call has."""
    calls = [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {"y": 2}}]
    made = [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    datasets.Dataset.from_list(made).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list(made).save_to_disk(str(tmp_path / "disk"))
    for name in ("a.parquet", "disk"):
        (_, first), (_, second) = texts(rows_of(tmp_path / name, qwen3_tokenizer), qwen3_tokenizer)
        assert '"arguments": {"x": 1}' in first
        assert '"arguments": {"y": 2}' in second


def test_k3_sharegpt_calls_and_observations(tmp_path, qwen3_tokenizer):
    talk = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "It is sunny."},
    ]
    found = texts(rows_of(write(tmp_path / "a.jsonl", [{"conversations": talk}]), qwen3_tokenizer), qwen3_tokenizer)
    assert "<tool_call>" in found[0][1]
    assert "<tool_response>\nsunny" in found[1][0]


def test_k3_a_content_in_parts_is_joined_and_a_picture_leaves_the_row_out(tmp_path, qwen3_tokenizer):
    """Qwen3's template takes a content that is no text for an empty one."""
    parts = [{"type": "text", "text": "I "}, {"type": "text", "text": "am."}]
    answers, _ = learned(tmp_path, qwen3_tokenizer, USER, {"role": "assistant", "content": parts})
    assert answers == ["I am.<|im_end|>"]
    picture = {"role": "user", "content": [*parts, {"type": "image_url", "image_url": "x.png"}]}
    answers, report = learned(tmp_path, qwen3_tokenizer, picture, ANSWER)
    assert answers == []
    assert "a turn has a part that is no text" in report


def test_k3_a_role_that_the_template_leaves_out_leaves_the_row_out(tmp_path, tokenizer):
    picky = load_tokenizer(TINY)
    picky.chat_template = tokenizer.chat_template.replace("{{-", "{% if message.role != 'tool' %}{{-", 1).replace(
        "{%- endfor %}", "{% endif %}{%- endfor %}", 1
    )
    said = [USER, {"role": "assistant", "content": "calls"}, {"role": "tool", "content": "a"}, {**ANSWER}]
    answers, report = learned(tmp_path, picky, *said)
    assert answers == ["calls<|im_end|>"]
    assert "the chat template leaves out the text of a turn of the tool" in report


def test_k3_fields_of_turns_are_named(tmp_path, qwen3_tokenizer):
    turn = {**ANSWER, "id": 7, "weight": 1}
    _, report = learned(tmp_path, qwen3_tokenizer, {**USER, "name": "Bob"}, turn)
    assert "turn fields: content, role, weight; turn fields left out: id, name" in report
    with pytest.raises(q.InputError, match=r"no turn has the field 'wieght' of dataset.turn_fields .*'weight'"):
        learned(tmp_path, qwen3_tokenizer, USER, turn, turn_fields=("wieght",))
    thought = {**ANSWER, "thinking": "Hm."}
    answers, report = learned(tmp_path, qwen3_tokenizer, USER, {**thought, "weight": 1}, turn_fields=("weight",))
    assert answers == ["I am.<|im_end|>"]  # without the reasoning, as asked
    assert "turn fields left out: thinking" in report


def test_k6_two_answers_in_a_row_are_left_out_and_named_for_what_they_are(tmp_path, qwen3_tokenizer):
    answers, report = learned(tmp_path, qwen3_tokenizer, USER, {"role": "assistant", "content": "Hm."}, ANSWER)
    assert answers == ["Hm.<|im_end|>"]
    assert "the chat template writes two turns of the assistant in a row otherwise than one by one" in report


def test_k3_a_call_in_the_history_that_the_template_drops_leaves_later_answers_out(tmp_path, tokenizer):
    """It left an empty turn of the assistant in their prompts."""
    for call in (CALL, {**CALL, "content": "I will call weather for the city."}):
        answers, report = learned(tmp_path, tokenizer, USER, call, {"role": "tool", "content": "sunny"}, ANSWER)
        assert answers == []
        assert "1 left out: the chat template leaves out the tool calls of a turn of the assistant" in report


def test_k3_what_is_written_is_told_from_what_only_looks_alike(tmp_path, tokenizer, qwen3_tokenizer):
    """A reasoning whose words stand in the answer too; arguments that are never written; a tag that is no reasoning."""
    talk = {"role": "assistant", "content": "The result is 42.", "reasoning_content": "42"}
    assert learned(tmp_path, tokenizer, USER, talk)[0] == []
    names_only = load_tokenizer(TINY)
    names_only.chat_template = tokenizer.chat_template.replace(
        "+ message.content +",
        "+ message.content + (message.tool_calls[0].function.name if message.tool_calls else '') +",
    )
    answers, report = learned(tmp_path, names_only, USER, CALL)
    assert answers == []
    assert "leaves out the arguments of tool calls of a turn of the assistant" in report
    tagged = {"role": "assistant", "content": "Use <think>a</think> tags."}
    assert learned(tmp_path, tokenizer, USER, tagged)[0] == ["Use <think>a</think> tags.<|im_end|>"]
    assert learned(tmp_path, qwen3_tokenizer, USER, tagged)[0] == []
    assert learned(tmp_path, qwen3_tokenizer, USER, {**ANSWER, "reasoning_content": " \n"})[0] == ["I am.<|im_end|>"]
    answers, report = learned(tmp_path, qwen3_tokenizer, USER, {"role": "assistant", "content": "<think>endless"})
    assert answers == []
    assert "the answer's reasoning has no end" in report
    _, report = learned(tmp_path, qwen3_tokenizer, {**USER, "reasoning_content": "x", "tool_calls": [CALLED]}, ANSWER)
    assert "turn fields left out: reasoning_content, tool_calls" in report


@pytest.mark.parametrize(
    ("row", "turn"),
    [({"label": False}, {}), ({"weight": 0}, {}), ({"train": False}, {}), ({}, {"train_on_turn": False}),
     ({}, {"loss_scale": 0}), ({}, {"skip": True}), ({}, {"label": False})],
)  # fmt: skip
def test_k3_rows_and_turns_that_say_no_are_not_learned(tmp_path, tokenizer, row, turn):
    answers, report = learned(tmp_path, tokenizer, USER, {**ANSWER, **turn}, row=row)
    assert answers == []
    assert "1 left out: is not to be learned (weight 0)" in report
    assert next(iter(row | turn)) in report.splitlines()[1 if row else 2].split(";")[0]
    pair = {"prompt": "Who?", "completion": "BAD", **row}
    rows = rows_of(write(tmp_path / "b.jsonl", [pair, {"prompt": "a", "completion": "b"}]), tokenizer)
    assert ("BAD" in tokenizer.decode(rows.values[:])) == (not row)


def test_k3_a_turn_that_is_learned_in_parts_is_left_out(tmp_path, tokenizer):
    spans = {**ANSWER, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}
    answers, report = learned(tmp_path, tokenizer, USER, spans)
    assert answers == []
    assert "parts of a turn cannot be learned" in report


def test_k3_older_calls_and_history_and_functions(tmp_path, qwen3_tokenizer):
    old = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    row = {"functions": [WEATHER["function"]], "messages": [USER, old]}
    ((prompt, call),) = texts(rows_of(write(tmp_path / "a.jsonl", [row]), qwen3_tokenizer), qwen3_tokenizer)
    assert '{"type": "function", "function": {"name": "weather"' in prompt
    assert '{"name": "weather", "arguments": {"city": "Paris"}}' in call
    row = {"instruction": "Why?", "input": None, "output": "So.", "history": [["Who?", "I am."]]}
    first, second = texts(rows_of(write(tmp_path / "b.jsonl", [row]), qwen3_tokenizer), qwen3_tokenizer)
    assert (first[1], second[1]) == ("I am.<|im_end|>", "So.<|im_end|>")
    assert "I am.<|im_end|>\n<|im_start|>user\nWhy?" in second[0]


def test_what_a_template_writes_behind_the_end_is_not_taught(tmp_path):
    """Mistral's writes EOS and a blank; a second EOS followed it."""
    mistral = load_tokenizer(TINY)
    mistral.chat_template = (
        "{% for m in messages %}{{ m.content + (eos_token + ' ' if m.role == 'assistant' else '[/INST]') }}{% endfor %}"
    )
    assert learned(tmp_path, mistral, USER, ANSWER)[0] == ["I am.<|endoftext|>"]


def test_names_in_a_template_are_those_of_messages(qwen3_tokenizer):
    names = names_in(qwen3_tokenizer.chat_template)
    assert {"role", "content", "reasoning_content", "tool_calls"} <= names.fields
    assert not {"name", "arguments", "function"} & names.fields  # those are of tool calls
    assert {"tools", "enable_thinking"} <= names.variables
    for template, fields in {
        "{% for m in messages[1:] %}{{ m['a'] }}{{ m.get('b') }}{% endfor %}{{ messages[0].c }}": {"a", "b", "c"},
        "{% set rest = messages %}{% for m in rest %}{{ m.d }}{% endfor %}": {"d"},
        "{% macro one(x) %}{{ x.e }}{% endmacro %}{{ one(messages[0]) }}": {"e"},
        "{% generation %}{{ messages[0].f }}{% endgeneration %}": {"f"},
    }.items():
        assert fields <= names_in(template).fields
    assert names_in("{% for m in messages %}{{ m | tojson }}{% endfor %}").reads("anything")


def test_enable_thinking_without_a_switch_is_refused(tokenizer):
    with pytest.raises(q.InputError, match="enable_thinking has no effect"):
        ChatWriter(tokenizer, enable_thinking=True)


# ---- columns -------------------------------------------------------------------------------------------------


def test_k3_columns_left_out_are_named_and_can_be_named(tmp_path, tokenizer):
    row = {"question": "Who?", "context": "A play.", "answer": "I.", "id": 3}
    name = write(tmp_path / "a.jsonl", [row] * 4 + [{"question": "a", "answer": "b"}])
    report = rows_of(name, tokenizer).report
    assert "columns: answer, question; columns left out: context (in 4 rows), id (in 4 rows)" in report
    asked = rows_of(name, tokenizer, columns=Columns(prompt=("context", "question"), completion="answer"))
    assert texts(asked, tokenizer)[0][0] == "<|im_start|>user\nA play.\n\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert "1 left out: has no column context" in asked.report
    with pytest.raises(q.InputError, match=r"has no column 'contxt' .*did you mean 'context'"):
        rows_of(name, tokenizer, columns=Columns(prompt=("contxt", "question"), completion="answer"))


def test_k3_columns_of_texts_left_out_are_named(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": "one", "title": "T", "url": None}])
    assert "columns: text; columns left out: title\n" in rows_of(name, tokenizer, mode="pretrain").report


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Say it.", "context": "A play.", "response": "I am."}, "Say it.\n\nA play."),  # Dolly
        ({"prompt": [USER], "completion": [ANSWER]}, "Who?"),  # TRL
        ({"prompt": "Who?", "response": "I am."}, "Who?"),
        ({"conversations": [USER, ANSWER]}, "Who?"),
        ({"messages": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "I am."}]}, "Who?"),
    ],
)
def test_k3_relatives_of_the_formats(tmp_path, tokenizer, row, prompt):
    found = texts(rows_of(write(tmp_path / "a.jsonl", [row]), tokenizer), tokenizer)
    assert found == [(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", "I am.<|im_end|>")]


def test_k3_a_system_text_beside_any_format(tmp_path, tokenizer):
    row = {"system": "Be brief.", "question": "Who?", "answer": "I."}
    rows = rows_of(write(tmp_path / "a.jsonl", [row]), tokenizer)
    assert texts(rows, tokenizer)[0][0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    twice = {"system": "Be brief.", "messages": [{"role": "system", "content": "x"}, USER, ANSWER]}
    with pytest.raises(q.InputError, match="has a column system and a system turn too"):
        rows_of(write(tmp_path / "b.jsonl", [twice]), tokenizer)


def test_k6_numbers_of_a_csv_file_stay_as_they_stand(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text('question,answer\n"How, many?",007\nWhat?,1.50\nWhy,so,many\n')
    rows = rows_of(tmp_path / "a.csv", tokenizer)
    assert [answer for _, answer in texts(rows, tokenizer)] == ["007<|im_end|>", "1.50<|im_end|>"]
    assert "1 left out: has not as many fields as the first line names columns (first: " in rows.report
    (tmp_path / "b.csv").write_text('question,answer\n"never closed,1\nx,2\n')
    with pytest.raises(q.InputError, match=r"b.csv: not valid CSV: .* \(the row begins at line 2\)"):
        rows_of(tmp_path / "b.csv", tokenizer)


def test_k3_bytes_of_a_column_are_texts_or_none(tmp_path, tokenizer):
    """Spark writes texts so; they were trained on as Python shows them."""
    table = pa.table({"prompt": ["Who?", "Who?"], "completion": ["I am é.".encode(), b"\xff\xfe"]})
    pq.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "disk"))
    for name in ("a.parquet", "disk"):
        rows = rows_of(tmp_path / name, tokenizer)
        assert [answer for _, answer in texts(rows, tokenizer)] == ["I am é.<|im_end|>"]
        assert "1 left out: column completion is an object, not a text" in rows.report


def test_k3_optional_columns_may_be_empty(tmp_path, tokenizer):
    both = Columns(prompt=("context", "question"), completion="answer")
    made = [{"context": context, "question": "Who?", "answer": "I."} for context in ("", None, "  ", "A play.")]
    found = texts(rows_of(write(tmp_path / "a.jsonl", made), tokenizer, columns=both), tokenizer)
    assert ["A play." in prompt for prompt, _ in found] == [False, False, False, True]
    assert all("user\nWho?<|im_end|>" in prompt for prompt, _ in found[:3])


# ---- odd rows ------------------------------------------------------------------------------------------------

ODD = {
    "not json": ('{"question": "x", ', "is not valid JSON"),
    "no object": ("[1, 2]", "is no JSON object"),
    "null answer": ('{"question": "x", "answer": null}', "column answer is null, not a text"),
    "number": ('{"question": "x", "answer": 18}', "column answer is a number, not a text"),
    "twice": ('{"question": "x", "answer": "a", "answer": "b"}', "has a key that stands there twice"),
    "surrogate": ('{"question": "x", "answer": "\\ud800"}', "holds half of a surrogate pair"),
    "deep": ("[" * 100_000, "is not valid JSON"),
    "other": ('{"a": 1}', "is of no format for conversations"),
}


@pytest.mark.parametrize("streaming", [False, True])
def test_k6_odd_rows_are_left_out_by_reason_with_file_and_line(tmp_path, tokenizer, streaming):
    good = json.dumps({"question": "Who?", "answer": "I am."})
    lines = [line for text, _ in ODD.values() for line in (good, text)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines) + "\n")
    with file.open("ab") as end:
        end.write(b'{"question": "\xff", "answer": "b"}\n')
    config = Config(
        training=TrainingConfig(mode="sft", max_length=64, batch_size=4, max_steps=2),
        dataset=DatasetConfig(str(file), streaming=streaming, shuffle_buffer=1 if streaming else None),
    )
    batches = training_batches(config, tokenizer, 1088)
    said = batches.report
    assert f"rows: {len(lines) + 1} = {len(ODD)} used + {len(ODD) + 1} left out" in said
    for number, (_, reason) in enumerate(ODD.values()):
        if reason != "is not valid JSON":
            assert f"left out: {reason} (first: {file}:{2 * number + 2}" in said
    assert f"2 left out: is not valid JSON (first: {file}:2" in said
    assert f"left out: is not UTF-8 text (byte 14) (first: {file}:{len(lines) + 1})" in said


@pytest.mark.parametrize("streaming", [False, True])
def test_k6_a_bad_row_stops_the_run_where_that_is_asked(tmp_path, tokenizer, streaming):
    rows = [{"question": "Who?", "answer": "I am."}, {"question": "x", "answer": ""}, {"question": "x", "answer": 3}]
    config = Config(
        training=TrainingConfig(mode="sft", max_length=64, batch_size=4, max_steps=2),
        dataset=DatasetConfig(write(tmp_path / "a.jsonl", rows), streaming=streaming, on_bad_row="stop"),
    )
    with pytest.raises(q.InputError) as caught:
        training_batches(config, tokenizer, 1088)
    where = f"{tmp_path / 'a.jsonl'}:3: column answer is a number, not a text: 3; fix the row"
    assert str(caught.value).startswith(where)


def test_k6_all_bad_is_one_short_line(tmp_path, tokenizer):
    for rows in ([{"question": "x", "answer": None}] * 3, [{"question": "x" * 9000, "answer": ["y" * 9000]}]):
        with pytest.raises(q.InputError, match="nothing to train on: none of its") as caught:
            rows_of(write(tmp_path / "a.jsonl", rows), tokenizer)
        assert len(str(caught.value)) < 500


def test_k6_a_list_of_rows_in_a_json_file(tmp_path, tokenizer):
    """As lines: also an odd row of it is left out alone, and capital suffixes are the same kind."""
    good = '{"question": "Who?", "answer": "I am."}'
    (tmp_path / "A.JSON").write_text(f'[{good}, 3, {{"question": "x", "answer": "a", "answer": "b"}}, {good}]')
    report = rows_of(tmp_path / "A.JSON", tokenizer).report
    assert "rows: 4 = 2 used + 2 left out" in report
    assert f"1 left out: is no JSON object (first: {tmp_path / 'A.JSON'}:2: 3)" in report
    assert f"1 left out: has a key that stands there twice (first: {tmp_path / 'A.JSON'}:3)" in report
    for text, part in (('{\n "data": []\n}', "holds one JSON object, not rows"), ("[1, ", "not valid JSON")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(q.InputError, match=part):
            rows_of(tmp_path / "b.json", tokenizer)


def test_k3_an_answer_to_nothing_is_counted(tmp_path, tokenizer):
    answers, report = learned(tmp_path, tokenizer, {"role": "assistant", "content": "Welcome."}, USER, ANSWER)
    assert answers == ["I am.<|im_end|>"]
    assert "1 answers of rows that are used left out: the assistant speaks first, to no prompt" in report


# ---- files and splits ----------------------------------------------------------------------------------------


def test_k3_only_the_texts_of_a_folder_are_read_and_the_others_named(tmp_path, tokenizer):
    for name in ("a.txt", "deep/b.txt", "LICENSE", "README.txt", "notes.md", "run.log", ".hidden.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"the text of {name}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.txt").write_text("the text of a linked folder")
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "deep" / "loop").symlink_to(tmp_path / "texts")
    rows = rows_of(tmp_path / "texts", tokenizer, mode="pretrain")
    found = [tokenizer.decode(rows.row(i).ids) for i in range(len(rows))]
    expected = ["the text of a.txt", "the text of deep/b.txt", "the text of a linked folder"]
    assert found == [f"{text}<|endoftext|>" for text in expected]
    assert "3 files (" in rows.report
    for left_out in ("LICENSE", "README.txt (by its name no data)", "notes.md", "run.log", ".hidden.txt (hidden)"):
        assert left_out in rows.report.split("files left out: ")[1].splitlines()[0]


def test_k3_notes_links_and_pointers_of_a_folder(tmp_path, tokenizer):
    for name in ("a.txt", "notes.txt", "log.txt", "requirements.txt", "notes_on_war.txt", "driving-test-questions.txt"):
        (tmp_path / name).write_text(f"the text of {name}")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "d.txt")
    (tmp_path / "e.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:x\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    rows = rows_of(tmp_path, tokenizer, mode="pretrain")
    found = [tokenizer.decode(rows.row(i).ids) for i in range(len(rows))]
    kept = ("a.txt", "driving-test-questions.txt", "notes_on_war.txt")
    assert found == [f"the text of {name}<|endoftext|>" for name in kept]
    assert "1 left out: is a pointer of git-lfs, not the file itself" in rows.report
    for part in ("b.txt (a link to what is read already)", "c.txt (a link to nothing)", "d.txt (no file)"):
        assert part in rows.report


def test_k5_splits_are_read_off_names_and_what_has_none_is_named(tmp_path, tokenizer):
    for name in ("train-00.jsonl", "train-01.jsonl", "valid.jsonl", "other.jsonl"):
        write(tmp_path / name, [{"text": f"of {name}"}])
    rows = rows_of(tmp_path, tokenizer, mode="pretrain")
    assert len(rows) == 2
    assert "other.jsonl (its name says no split)" in rows.report
    assert "valid.jsonl (split validation)" in rows.report
    assert len(rows_of(tmp_path, tokenizer, mode="pretrain", split="validation")) == 1
    write(tmp_path / "train-test.jsonl", [{"text": "x"}])
    with pytest.raises(q.InputError, match="names the splits test and train"):
        rows_of(tmp_path, tokenizer, mode="pretrain")


def test_k5_a_file_that_changed_but_not_its_date_is_read_anew(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": "one"}])
    before = os.stat(name)
    assert texts(rows_of(name, tokenizer, mode="pretrain"), tokenizer)[0][1] == "one<|endoftext|>"
    write(tmp_path / "a.jsonl", [{"text": "two"}])
    os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert texts(rows_of(name, tokenizer, mode="pretrain"), tokenizer)[0][1] == "two<|endoftext|>"


def test_k5_a_folder_with_a_card_is_read_as_it_says_and_anew_when_it_changed(tmp_path, tokenizer):
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: b.jsonl\n---\n")
    name = write(tmp_path / "b.jsonl", [{"text": "one"}])
    write(tmp_path / "a.jsonl", [{"text": "not this"}])
    before = os.stat(name)
    for text in ("one", "two"):
        (tmp_path / "b.jsonl").write_text(f'{{"text": "{text}"}}\n{{"broken\n')
        os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
        rows = rows_of(tmp_path, tokenizer, mode="pretrain")
        assert [answer for _, answer in texts(rows, tokenizer)] == [f"{text}<|endoftext|>"]
        assert "files left out: README.md, a.jsonl" in rows.report
        assert f"1 left out: is not valid JSON (first: {tmp_path / 'b.jsonl'}:2" in rows.report


@pytest.mark.parametrize("kind", ["file", "folder", "saved", "saved dict"])
def test_k3_parts_of_a_split(tmp_path, tokenizer, kind):
    made = [{"text": f"text {i}"} for i in range(10)]
    place = tmp_path / "data"
    if kind == "file":
        place = tmp_path / "a.jsonl"
        write(place, made)
    elif kind == "folder":
        place.mkdir()
        write(place / "train.jsonl", made)
    else:
        whole = datasets.Dataset.from_list(made)
        (whole if kind == "saved" else datasets.DatasetDict({"train": whole})).save_to_disk(str(place))
    for split, numbers in {"train[:90%]": range(9), "train[90%:]": [9], "train[2:4]": [2, 3], "train[-2:]": [8, 9],
                           "train[:1]+train[5:6]": [0, 5]}.items():  # fmt: skip
        rows = rows_of(place, tokenizer, mode="pretrain", split=split)
        assert [a for _, a in texts(rows, tokenizer)] == [f"text {i}<|endoftext|>" for i in numbers], split
    for split, part in {"trian": "has no split 'trian'", "trian[:90%]": "has no split 'trian'",
                        "train[:x]": "is no part of a split", "train[5:5]": "holds none of the 10 rows",
                        "train[:6]+train[5:]": "takes some rows twice"}.items():  # fmt: skip
        with pytest.raises(q.InputError, match=re.escape(part)):
            rows_of(place, tokenizer, mode="pretrain", split=split)
    with pytest.raises(q.InputError, match="a stream cannot be cut into parts"):
        sources.stream(str(place), None, "train[:90%]")


def evaluated(name, split, eval_split, eval_name=None, streaming=False):
    return Config(
        training=TrainingConfig(max_length=8, batch_size=1, max_steps=1),
        dataset=DatasetConfig(str(name), split=split, streaming=streaming),
        evaluation=EvaluationConfig(eval_name=eval_name, eval_split=eval_split),
    )


def warned(config: Config, tokenizer) -> str | None:
    return trained_on_too(config, training_batches(config, tokenizer, 1088), load_eval_rows(config, tokenizer, 1088))


def test_k3_held_out_rows_of_a_file_of_the_folder_are_trained_on_too(tmp_path, tokenizer):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name} {i} is long enough"} for i in range(5)])
    said = warned(evaluated(tmp_path, "train", "validation", str(tmp_path / "a.jsonl")), tokenizer)
    assert "held-out rows are trained on too" in said


def test_k14_how_many_held_out_rows_are_evaluated_is_told(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": f"text {i} is long enough to fill a row"} for i in range(20)])
    config = evaluated(name, "train[:10%]", "train[10%:]")
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=3))
    assert "evaluated: the first 24 of them" in load_eval_rows(config, tokenizer, 1088).report
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=300))
    assert "evaluated: all, some again to fill 300 rows" in load_eval_rows(config, tokenizer, 1088).report


def test_k3_a_single_file_can_be_divided_and_rows_trained_on_too_are_told(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": f"text {i} is long enough"} for i in range(10)])
    config = evaluated(name, "train[:80%]", "train[80%:]")
    assert "rows: 2 = 2 used" in load_eval_rows(config, tokenizer, 1088).report
    assert "rows: 8 = 8 used" in training_batches(config, tokenizer, 1088).report
    assert warned(config, tokenizer) is None
    for split, eval_split, eval_name, streaming in (
        ("train", "train[80%:]", None, False),
        ("train[:90%]", "train[80%:]", None, False),
        ("train", "validation", name, False),
        ("train", "validation", name, True),
    ):
        said = warned(evaluated(name, split, eval_split, eval_name, streaming), tokenizer)
        assert "held-out rows are trained on too" in said
    with pytest.raises(q.InputError, match=r"divide it \(dataset.split: train\[:90%\] and evaluation.eval_split"):
        load_eval_rows(evaluated(name, "train", "validation"), tokenizer, 1088)
    with pytest.raises(q.InputError, match=r"set evaluation.eval_split|leave evaluation.eval_split out"):
        load_eval_rows(evaluated(name, "train", "valdation", name), tokenizer, 1088)


def test_k3_a_configuration_for_what_has_none_is_refused(tmp_path, tokenizer):
    name = write(tmp_path / "a.jsonl", [{"text": "x"}])
    config = Config(dataset=DatasetConfig(name, config="main"))
    with pytest.raises(q.InputError, match=r"dataset\.config has no effect on"):
        training_batches(config, tokenizer, 1088)


def test_k14_a_hub_dataset_without_network_is_one_line_at_once(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise huggingface_hub.errors.HTTPError("Name or service not known")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(q.InputError, match="nobody/nothing: no such file or folder, and the hub cannot be reached"):
        sources.load("nobody/nothing", None, "train")


# ---- what is shown -------------------------------------------------------------------------------------------


def test_rows_are_shown_with_their_parts_marked(tmp_path, qwen3_tokenizer):
    rows = [{"question": "Who?", "answer": "I am."}, {"question": "Why? " * 9, "answer": "So it is."}]
    config = Config(
        training=TrainingConfig(mode="sft", max_length=200, batch_size=2),
        dataset=DatasetConfig(write(tmp_path / "a.jsonl", rows)),
    )
    said = shown(training_batches(config, qwen3_tokenizer, 1088), qwen3_tokenizer, 2)
    short, long = sorted(said.split("\n\n── "), key=lambda block: "Why?" in block)
    assert "seen but not learned\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>" in short
    assert re.search(r"┌ learned, \d+ tokens\nI am\.<\|im_end\|>\n┌ padding that is learned, \d+ tokens: ", short)
    assert "padding that is learned" not in long
    assert "fills the batch" in long


# ---- the reader of conversations, alone ----------------------------------------------------------------------


def test_null_fields_are_as_if_absent():
    talk = read_conversation({"messages": [{**USER, "weight": None}, {**ANSWER, "tool_calls": None, "name": None}]})
    assert talk.messages == (USER, ANSWER)
    assert talk.is_learned == (False, True)


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ("x", "a turn is a text, not an object"),
        ({"content": "x"}, "does not say who speaks"),
        ({"role": "user"}, "a turn has no text"),
        ({"role": "user", "content": 3}, "a turn's text is a number"),
        ({"role": ["user"], "content": "x"}, "unknown speaker"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {}}]}, "names no function"),
        ({"role": "assistant", "content": "x", "tool_calls": "[{"}, "tool calls are not valid JSON"),
        ({"role": "assistant", "content": "x", "reasoning": "a", "thinking": "b"}, "two reasonings"),
    ],
)
def test_turns_that_are_none(turn, why):
    with pytest.raises(BadRowError, match=why):
        read_conversation({"messages": [turn]})


def test_k9_whether_answers_think_travels_with_the_model(start, tmp_path):
    """A model that was taught to think is asked and taught so again, unless a flag says otherwise."""
    model = tmp_path / "model"
    shutil.copytree(start, model)
    shutil.copy(QWEN3_TEMPLATE, model / "chat_template.jinja")
    config = json.loads((model / "config.json").read_text())
    cases = ((True, None, True), (False, None, False), (True, "false", False), (False, "true", True))
    for own, flag, expected in cases:
        (model / "config.json").write_text(json.dumps(config | {"enable_thinking": own}))
        flags = [] if flag is None else [("dataset.enable_thinking", flag)]
        asked = read_config(None, [("model.base_model_path", str(model)), ("model.mask_token_id", "auto"),
                                   ("training.mode", "sft"), ("dataset.name", "x"), *flags])  # fmt: skip
        found = find_base_model(asked)
        assert found.config.enable_thinking is expected
        assert settled(asked, found.blocks, found.config.enable_thinking).dataset.enable_thinking is expected
        assert found.config.to_hf()["enable_thinking"] is expected
