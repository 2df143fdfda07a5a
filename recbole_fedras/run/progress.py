"""What a user sees of rounds under way, and how it can end them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

from recbole_fedras.federation.round import RoundReport
from recbole_fedras.numeric.compiling import COMPILING
from recbole_fedras.run.report import megabytes
from recbole_fedras.run.stages import ticking


def compiling() -> str:
    """Say which kernels numba compiles; empty if none."""
    module = COMPILING.module
    return f"compiling {module} (once on this machine)" if module else ""


class ProgressBar:
    """One bar over all rounds, with the newest figures behind it.

    It says what keeps a round, and does not count compiling to the time left.

    Parameters
    ----------
    n_rounds, done : int
        Rounds in all, and those completed before.
    show : bool

    Attributes
    ----------
    figures : dict of str to str
    doing : str
        What goes on between two rounds; empty: a round.
    """

    def __init__(self, n_rounds: int, done: int, show: bool) -> None:
        self.figures: dict[str, str] = {}
        self.doing = self._said = ""
        self._compiled = COMPILING.seconds
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=n_rounds,
            initial=done,
            desc="Rounds",
            unit="round",
            disable=not show,
            dynamic_ncols=True,
            mininterval=0.2 if self._live else 10,
        )

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        self._ticks = ExitStack()
        if not self._bar.disable:
            self._ticks.enter_context(ticking(self._tick))
        return self

    def __exit__(self, *error: Any) -> None:
        self._ticks.close()
        self._say("")
        self._bar.__exit__(*error)

    def _tick(self) -> None:
        self._say(compiling() or self.doing)
        if self._live:
            self._bar.refresh()

    def _say(self, doing: str) -> None:
        """Put what goes on into the bar or, where that is no terminal, on a line."""
        if self._live:
            said = ", ".join(filter(None, ("Rounds", doing)))
            self._bar.set_description_str(said, refresh=False)
        elif doing not in ("", "evaluating", self._said):
            self._said = doing
            tqdm.write(f"recbole-fedras: {doing}", sys.stderr)

    def advance(
        self, report: RoundReport, totals: dict[str, int], seconds: float
    ) -> None:
        """Show one more round; ``totals`` are the ledger's."""
        compiled = COMPILING.seconds - self._compiled
        self._compiled += compiled
        if not self._bar.disable:  # the time left follows from the time since then
            self._bar.last_print_t += compiled
        self.figures |= {
            "loss": "?" if report.loss is None else f"{report.loss:.4f}",
            "clients/s": f"{report.n_clients / max(seconds - compiled, 1e-9):.0f}",
            "up": megabytes(totals["uplink_bytes"]),
            "down": megabytes(totals["downlink_bytes"]),
        }
        self._bar.set_postfix(self.figures, refresh=False)
        self._bar.update()


class Interrupt:
    """Whether the user, or the system, has asked for an end: a round may finish first.

    Attributes
    ----------
    asked : bool
    """

    def __init__(self) -> None:
        self.asked = False

    def _note(self, signum: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM instead of stopping at once; a second one stops.

        Elsewhere than in the main thread signals cannot be noted.
        """
        self.asked = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, self._note) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, previous, strict=True):
                signal.signal(number, handler)
