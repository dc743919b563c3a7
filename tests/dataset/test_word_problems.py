"""The word problems of benchmarks.word_problems: worked out from their words, in GSM8K's format, held out for good."""

import math
import re

import pytest
from conftest import TINY

import qwen3llada_jax as q
from benchmarks import word_problems
from sample import compare
from sample.comparing import quality

HELD_OUT, LEARNED = 60, 700
SUM = re.compile(r"<<(\d+)([-+*])(\d+)=(\d+)>>(\d+)")


@pytest.fixture(scope="module")
def problems():
    return word_problems.make_problems(HELD_OUT, LEARNED)


def read(question: str) -> tuple[list[int], list[int], int]:
    """(bags and what is in each, or what there is; what is added, or below 0 taken away; the end), from the words."""
    *sentences, asked = re.findall(r"[^.?]+[.?]", question)
    who = re.fullmatch(r" How many has (\w+) now\?", asked)[1]
    begin = re.fullmatch(rf"{who} had (?:(\d+) bags of )?(\d+) \w+\.", sentences[0])
    start, changes = [int(n) for n in begin.groups() if n], []
    for sentence in sentences[1:]:
        more = re.fullmatch(rf" (?:(?!{who})\w+ gave {who}|{who} found) (\d+) more\.", sentence)
        less = re.fullmatch(rf" {who} (?:gave (?!{who})\w+|lost) (\d+)\.", sentence)
        assert bool(more) != bool(less), sentence
        changes.append(int(more[1]) if more else -int(less[1]))
    return start, changes, math.prod(start) + sum(changes)


def test_every_answer_is_worked_out_right(problems):
    orders, counts = set(), set()
    for row in [*problems[0], *problems[1]]:
        (count, *bags), changes, end = read(row["question"])
        *lines, last = row["answer"].split("\n")
        assert last == f"#### {end}"
        for line, n in zip(lines, [*bags, *changes], strict=True):
            [(left, operation, right, inside, outside)] = SUM.findall(line)
            assert eval(f"{left}{operation}{right}") == int(inside) == int(outside) >= 1, line  # digits only
            is_swapped = (int(left), int(right)) == (abs(n), count) and n != count
            assert is_swapped or (int(left), int(right)) == (count, abs(n)), line
            orders.add((operation, is_swapped))
            count = int(inside)
        assert count == end
        counts.add(len(lines))
    assert counts == {1, 2}
    assert orders == {("+", True), ("+", False), ("*", True), ("*", False), ("-", False)}


def test_gsm8ks_matches_find_each_answer_and_no_other(problems):
    answers = [row["answer"] for row in problems[0]]
    for how in ("gsm8k-strict", "gsm8k-flexible"):
        match = quality.match_of(how)[1]
        quality.check_references(match, answers, how)
        for row in problems[0]:
            end = read(row["question"])[2]
            assert match(f"It is.\n#### {end}", row["answer"])
            assert not match(f"It is.\n#### {end + 1}", row["answer"])


def test_nothing_held_out_is_learned(problems):
    held_out, learned = problems
    assert (len(held_out), len(learned)) == (HELD_OUT, LEARNED)
    questions = [row["question"] for row in [*held_out, *learned]]
    assert len(set(questions)) == len(questions)

    def steps(row):
        start, changes, _ = read(row["question"])
        return (*start, "then", *changes)

    twice = {steps(row) for row in held_out if row["answer"].count("<<") == 2}
    assert len(twice) > 20
    assert not twice & {steps(row) for row in learned}


def test_held_out_rows_do_not_depend_on_what_is_learned(problems):
    assert word_problems.make_problems(HELD_OUT, 5) == (problems[0], problems[1][:5])


def test_the_file_is_read_and_fits_a_row(problems, tmp_path):
    word_problems.make_folder(tmp_path, 20)
    rows, answers = compare.read(tmp_path / "held_out.jsonl", None)
    assert (len(answers), answers[:HELD_OUT]) == (word_problems.HELD_OUT, [row["answer"] for row in problems[0]])
    assert rows[3]["messages"][-1] == {"role": "user", "content": problems[0][3]["question"]}
    tokenizer = q.load_tokenizer(TINY)
    for row in [*problems[0], *problems[1]]:
        answer = tokenizer(row["answer"]).input_ids
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
        )
        assert len(answer) < word_problems.ANSWER_LENGTH
        assert len(asked) + word_problems.ANSWER_LENGTH <= word_problems.ROW_LENGTH
