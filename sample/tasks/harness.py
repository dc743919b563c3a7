"""A model as lm-evaluation-harness asks it: three kinds of requests, each answered in the order it was asked.

What its answers have no place for is kept in `notes`: forward passes, tokens, and each likelihood's standard error.
Beside it finding.py, run.py and faults.py know the harness; it is imported when it is asked for.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import LM

from qwen3llada_jax.errors import InputError
from qwen3llada_jax.io.jsonl import BadRowError
from qwen3llada_jax.likelihood.reading import Reading
from qwen3llada_jax.model.model import Qwen3LLaDA
from qwen3llada_jax.text.chat_template import ChatWriter
from qwen3llada_jax.writing.opening import Folder

from ..measuring.passages import Window
from . import scoring, until
from .scoring import Encoder, Row, Score
from .until import Asked

Track = Callable[[Iterator[Any], str, int], Iterator[Any]]  # (what is done, what it is called, how many) → the same


@dataclass(frozen=True)
class Answering:
    """How a model answers.

    Attributes:
        how, rolling: how continuations are read, and whole texts.
        window: of whole texts.
        samples: draws of noise for each row.
        plan: of a task's generation_kwargs.
        asks_greedy: tasks whose metric looks at whether greedy decoding writes a continuation.
        writer: of chats; None: there are none.
        track: shows progress.
    """

    how: Reading
    rolling: Reading
    window: Window
    samples: int
    seed: int
    batch_size: int
    plan: Callable[[dict[str, Any]], Any]
    asks_greedy: frozenset[str]
    writer: ChatWriter | None
    track: Track


class Harness(LM):
    """A model that answers.

    The weights are read when the first question is asked: by then the harness has made all of them.

    Attributes:
        notes: (task, number of its question) → what is to be said of each of its requests, with their numbers.
        cut: contexts that lost their beginning, for the model's positions.
    """

    def __init__(self, load: Callable[[], Qwen3LLaDA], folder: Folder, answering: Answering):
        super().__init__()
        self._load, self.folder, self.answering = load, folder, answering
        self.encoder = Encoder(folder.tokenizer, shift=answering.how.shift)
        self.notes: dict[tuple[str, int], list[tuple[int, dict[str, Any]]]] = {}
        self.cut = 0

    @functools.cached_property
    def model(self) -> Qwen3LLaDA:
        """Its weights read."""
        return self._load()

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log p of each continuation behind its context; whether greedy decoding writes it, where a metric asks.

        Else that is not found out, and False, for which the harness has no other word; the notes have None.
        """
        rows = [self._fitting(self.encoder.pair(*request.args)) for request in requests]
        scores = self._scores(rows, self.answering.how, "reading")
        asked = [n for n, request in enumerate(requests) if request.task_name in self.answering.asks_greedy]
        a = self.answering
        greedy = scoring.written_greedily(self.model, self.folder, [rows[n] for n in asked], a.how, a.batch_size)
        is_greedy = dict(zip(asked, greedy, strict=True))
        found: list[tuple[float, bool]] = []
        for n, (request, one) in enumerate(zip(requests, scores, strict=True)):
            is_it, nfe = is_greedy.get(n, (None, 0))
            self._note(request, one._replace(nfe=one.nfe + nfe).told | {"is_greedy": is_it})
            found.append((one.log_p, bool(is_it)))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of each text, summed over its windows."""
        windows = [self.encoder.windows(request.args[0], self.answering.window) for request in requests]
        scores = iter(self._scores([row for rows in windows for row in rows], self.answering.rolling, "reading texts"))
        found = []
        for request, rows in zip(requests, windows, strict=True):
            of_text = [next(scores) for _ in rows]
            log_p, tokens, nfe = (sum(getattr(s, name) for s in of_text) for name in ("log_p", "tokens", "nfe"))
            error = sum(s.standard_error**2 for s in of_text) ** 0.5
            self._note(request, Score(log_p, error, tokens, nfe).told)
            found.append(float(log_p))
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes behind each context, before the first stop string."""
        a, contents, plans = self.answering, [], []
        for request in requests:
            context, given = request.args
            plan = a.plan(given)
            ids = self.encoder.whole(context) or self.encoder.before
            kept = ids[-until.room(plan.settings, self.folder.config) :]
            self.cut += len(kept) < len(ids)
            contents.append((tuple(kept), plan.until))
            plans.append(plan)
        keys = scoring.keys(a.seed, contents)
        asked = [
            Asked(ids, keys[n], plan.until, plan.most, plan.settings)
            for n, ((ids, _), plan) in enumerate(zip(contents, plans, strict=True))
        ]
        texts = dict(a.track(until.write(self.model, self.folder, asked, a.batch_size), "writing", len(asked)))
        for n, request in enumerate(requests):
            self._note(request, {"tokens": texts[n].tokens, "nfe": texts[n].nfe})
        return [texts[n].text for n in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat up to where the assistant speaks; or, without the prompt to, behind what its last turn has begun."""
        writer = self.answering.writer
        assert writer is not None
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        try:
            return writer.prompt(chat_history if add_generation_prompt else chat_history[:-1]) + begun
        except BadRowError as error:
            raise InputError(f"--chat: {error.in_full}") from error

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's."""
        return self.folder.tokenizer.chat_template or ""

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer lies."""
        return str(self.folder.path)

    def _fitting(self, row: Row) -> Row:
        row, is_cut = scoring.cut(row, self.folder.config)
        self.cut += is_cut
        return row

    def _scores(self, rows: list[Row], how: Reading, what: str) -> list[Score]:
        a = self.answering
        found = scoring.score(
            self.model, self.folder, rows, how, samples=a.samples, seed=a.seed, batch_size=a.batch_size
        )
        scores = dict(a.track(found, what, len(rows)))
        return [scores[n] for n in range(len(rows))]

    def _note(self, request: Any, said: dict[str, Any]) -> None:
        self.notes.setdefault((request.task_name, request.doc_id), []).append((request.idx, said))
