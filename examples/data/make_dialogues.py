"""Make the small SFT set from Shakespeare: who answers whom, as chat messages of several turns.

    python examples/data/make_dialogues.py

Reads shakespeare/{train,valid}.txt and writes dialogue/{train,valid}.jsonl. A scene's consecutive speeches by
two people become a conversation: the first speaker is the user, the second the assistant.
"""

import json
from pathlib import Path

HERE = Path(__file__).parent
LONGEST = 160  # characters of one speech
TURNS = 2  # user-assistant pairs at most
LIMITS = {"train": 1500, "valid": 100}


def speeches(text: str) -> list[tuple[str, str]]:
    """(speaker, words) of every speech, in order."""
    parts = (part.split(":\n", 1) for part in text.strip().split("\n\n") if ":\n" in part)
    return [(speaker.strip(), words.strip()) for speaker, words in parts]


def conversations(text: str) -> list[dict]:
    """Runs of short speeches in which two people take turns."""
    found, lines, at = [], speeches(text), 0
    while at + 1 < len(lines):
        (one, _), (two, _) = lines[at], lines[at + 1]
        run = []
        while at + len(run) < len(lines) and len(run) < 2 * TURNS:
            speaker, words = lines[at + len(run)]
            if speaker != (one, two)[len(run) % 2] or len(words) > LONGEST or one == two:
                break
            run.append(words)
        run = run[: len(run) // 2 * 2]
        if run:
            roles = ("user", "assistant")
            found.append({"messages": [{"role": roles[i % 2], "content": words} for i, words in enumerate(run)]})
        at += max(len(run), 1)
    return found


def main() -> None:
    for split, limit in LIMITS.items():
        rows = conversations((HERE / "shakespeare" / f"{split}.txt").read_text())[:limit]
        with (HERE / "dialogue" / f"{split}.jsonl").open("w") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"{split}: {len(rows)} conversations, {sum(len(r['messages']) // 2 for r in rows)} answers")


if __name__ == "__main__":
    main()
