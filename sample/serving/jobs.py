"""A text that is being written: what was asked, and how far it is, as its reader may see it at any moment."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qwen3llada_jax.sampling.config import SamplerConfig
from qwen3llada_jax.writing.requests import Request


@dataclass(frozen=True)
class Progress:
    """How far a text is.

    Attributes:
        ids: that nothing will change, without the end of the text.
        draft: of the places behind them in the current block; None: still masked.
        passes, confidence: of ids and draft: the row's pass (from 1; 0: none yet), and the token's probability in it.
        nfe: forward passes so far.
        finish: why the text ends: `stop` or `length`; None: it is being written.
        error: why nothing more is written.
        status: of the answer that says so: 400 where other settings would be written.
    """

    ids: tuple[int, ...] = ()
    draft: tuple[int | None, ...] = ()
    passes: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    nfe: int = 0
    finish: str | None = None
    error: str | None = None
    status: int = 500

    @property
    def is_begun(self) -> bool:
        """There is something to tell."""
        return self.nfe > 0 or self.is_done

    @property
    def is_done(self) -> bool:
        """Nothing more will come."""
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class Job:
    """One text to write. Its writer sets `progress`, its reader looks at it, and may cancel it.

    Attributes:
        settings: complete but for the model, with `eos_token_ids`; of whole blocks.
        length: tokens of its row.
        most: tokens of the text, which is cut there.
        stops: strings that it ends before.
        known: tokens of its prompt that were kept of the turn before, and not read again.
        told: called, in the writer's thread, whenever there is something new.
    """

    request: Request
    settings: SamplerConfig
    seed: int
    length: int
    most: int
    stops: tuple[str, ...]
    told: Callable[[], None]
    progress: Progress = Progress()
    known: int = 0
    since: float = field(default_factory=time.monotonic)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def fills(self) -> bool:
        """Whether it has holes to fill."""
        return None in self.request.ids

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end its text; what fills a hole has no end."""
        return () if self.fills else self.settings.eos_token_ids or ()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody still waits for it."""
        return self._cancelled.is_set()

    def tell(self, progress: Progress) -> None:
        """Show how far it is."""
        self.progress = progress
        self.told()
