"""Many runs: each once, in parallel, and never again."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from joblib import cpu_count
from tqdm import tqdm

from recbole_fedras.config import registry
from recbole_fedras.data.place import folder_of
from recbole_fedras.errors import (
    ConfigError,
    FederationError,
    KilledError,
    NonFiniteError,
)
from recbole_fedras.experiments.failures import reason_of
from recbole_fedras.experiments.identity import (
    Identity,
    Keys,
    Measure,
    Outcome,
    Resolver,
)
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.provenance import is_other_code, made_by
from recbole_fedras.experiments.runs import Runs
from recbole_fedras.run.stages import ticking

#: Digits by which the folder of a run is found.
_SHORT = 8

#: Keys of each run's own process, which a sweep sets.
QUIET = {"show_progress": False, "n_jobs": 1, "checkpoint_dir": "saved"}

#: Keys that would make runs differ from what their label says.
RELABELLING = {
    "bandwidth", "cut", "downlink_compressor", "downlink_compressor_class",
    "uplink_compressor", "uplink_compressor_class", "uplink_share",
}  # fmt: skip


class Sweep:
    """Runs configurations that a folder does not hold yet.

    A run is finished when the folder holds it, by what it computed: every key
    resolved, our defaults included, the measure, the dataset's files and those of
    classes of one's own (not what these import). A sweep that was killed goes on where
    it was, also on another machine that is given the folder. What other code of ours
    has made is taken, and says so.

    Parameters
    ----------
    folder : Path
    n_jobs : int
        Processes, of one thread each; -1 for one per core.
    redo : bool
        Whether to run again what other code has made.
    beside : Path, optional
        A folder of folders of runs, which are taken too.
    resolver : Resolver, optional
        What finds the runs' identities; by default those of recommenders.
    keep_models : bool
        Whether the folders of runs are kept, in ``models``.

    Raises
    ------
    ConfigError
        If ``n_jobs`` is neither.

    Attributes
    ----------
    models : Path or None
        Where they are kept, if they are.
    """

    def __init__(
        self,
        folder: Path,
        n_jobs: int = -1,
        redo: bool = False,
        beside: Path | None = None,
        resolver: Resolver | None = None,
        keep_models: bool = False,
    ) -> None:
        if n_jobs < 1 and n_jobs != -1:
            raise ConfigError(f"n_jobs={n_jobs} must be -1 or at least 1")
        self.folder = folder
        self.models = folder / "models" if keep_models else None
        self._n_jobs = n_jobs
        self._redo = redo
        self._resolver = resolver or Resolver()
        self._runs = Runs(folder, beside)

    def find(self, cell: Keys, measure: Measure = train_and_test) -> Outcome | None:
        """Return a configuration's finished run, if there is one.

        Raises
        ------
        ConfigError
            If it is no configuration.
        """
        return self._find(self._resolver.identity(cell, measure), measure)

    def run(
        self,
        cells: Sequence[Keys],
        title: str = "Runs",
        measure: Measure = train_and_test,
        tolerant: bool = False,
    ) -> list[Outcome]:
        """Run every configuration that is not finished; return all outcomes.

        Parameters
        ----------
        cells : sequence of dict
            Keys of a run, as for :func:`run_recbole_fedras`.
        title : str
            Of the progress bar.
        measure : callable, optional
            What to do with the keys of a cell. A function of a module, as it is called
            in another process.
        tolerant : bool
            Whether others go on when a run raises; its ``error`` is the reason then.

        Returns
        -------
        list of dict
            For each cell what it is (:class:`Identity`); ``made``, by what; ``result``,
            what ``result.json`` holds; ``curve``, a list of evaluated rounds with
            metrics and bytes so far; and ``ranks``, that of every user's held-out item
            in the test, 0 if it is not among the first, empty where no metric counts
            hits. Of a run that diverged, ``result`` is None and ``error`` says when.

        Raises
        ------
        ConfigError
            For what is no configuration; before any run.
        KilledError
            If the process of a run was killed.
        Exception
            The first that a run raised, when those under way have ended.
        """
        named = {}
        for cell in cells:
            identity = self._resolver.identity(cell, measure)
            named[identity.name] = (identity, cell)
        found = {
            name: self._find(identity, measure) for name, (identity, _) in named.items()
        }
        missing = {name: named[name][1] for name, run in found.items() if run is None}
        for cell in missing.values():
            self._resolver.require(cell)
        done = len(named) - len(missing)
        run_cell = partial(_run_cell, measure, self.models, tolerant)
        with _bar(len(named), done, title) as bar:
            for name, outcome in _outcomes(run_cell, missing, self._n_jobs):
                found[name] = self._keep(named[name][0], outcome, measure)
                bar.update()
        outcomes = {name: run for name, run in found.items() if run is not None}
        self._runs.keep(run for run in outcomes.values() if not run.get("raised"))
        return [outcomes[self._resolver.identity(cell, measure).name] for cell in cells]

    def _find(self, identity: Identity, measure: Measure) -> Outcome | None:
        found = self._runs.find(identity)
        if found is None or (self._redo and is_other_code(found, measure)):
            return None
        wanted = self.models if measure is train_and_test and found["result"] else None
        if wanted and not any(wanted.glob(f"*-{identity.name[:_SHORT]}")):
            return None
        return found

    def _keep(self, identity: Identity, outcome: Outcome, measure: Measure) -> Outcome:
        run = identity._asdict() | {"made": made_by(measure)} | outcome
        if not run.get("raised"):
            self._runs.add(identity, run)
        return run


@contextlib.contextmanager
def _bar(total: int, done: int, title: str) -> Iterator[Any]:
    """Show a bar over runs; on a terminal its clock ticks."""
    with tqdm(total=total, initial=done, desc=title, unit="run") as bar:
        live = sys.stderr.isatty()
        with ticking(bar.refresh) if live else contextlib.nullcontext():
            yield bar


def _outcomes(
    run_cell: Callable[[str, Keys], Outcome], missing: dict[str, Keys], n_jobs: int
) -> Iterator[tuple[str, Outcome]]:
    """Yield outcomes as runs end; after an error start no more, and raise it last."""
    if not missing:
        return
    workers = min(cpu_count() if n_jobs == -1 else n_jobs, len(missing))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _end_with_sweep) as pool:
        running = {
            pool.submit(run_cell, name, cell): name for name, cell in missing.items()
        }
        try:
            yield from _as_they_end(pool, running)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _as_they_end(
    pool: ProcessPoolExecutor, running: dict[Future[Outcome], str]
) -> Iterator[tuple[str, Outcome]]:
    failed: Exception | None = None
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            name = running.pop(future)
            if future.cancelled():
                continue
            try:
                outcome = future.result()
            except BrokenProcessPool as error:
                raise KilledError(
                    "the process of a run was killed, maybe for want of memory: try "
                    "fewer --jobs"
                ) from error
            except Exception as error:  # let those under way end, and keep them
                failed = failed or error
                pool.shutdown(wait=False, cancel_futures=True)
            else:
                yield name, outcome
    if failed is not None:
        raise failed


def _end_with_sweep() -> None:
    """Let this process end when the sweep's is killed, and work for nobody."""

    def watch() -> None:
        if sweep := multiprocessing.parent_process():
            sweep.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_cell(
    measure: Measure, models: Path | None, tolerant: bool, name: str, cell: Keys
) -> Outcome:
    """Measure in a folder of its own, quietly; keep what it leaves there if asked."""
    # Where it is from here, which may be RecBole's own copy.
    given = registry.read_properties(".", "overall") | {"data_path": "dataset/"} | cell
    folder = Path(folder_of(given["dataset"], given["data_path"]))
    keys = {"data_path": str(folder.resolve().parent)}
    before = Path.cwd()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="recbole-fedras-") as scratch:
        os.chdir(scratch)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                outcome = measure(cell | keys | QUIET)
            if models is not None:
                _keep_folders(before / models, name)
        except (NonFiniteError, FederationError) as error:
            outcome = {"result": None, "error": str(error)}
        except Exception as error:
            if not tolerant:
                raise
            outcome = {"result": None, "error": reason_of(error), "raised": True}
        finally:
            os.chdir(before)
            logging.disable(logging.NOTSET)
    return outcome


def _keep_folders(models: Path, name: str) -> None:
    """Move the folders of runs, of which they are found by name."""
    models.mkdir(parents=True, exist_ok=True)
    for folder in Path(str(QUIET["checkpoint_dir"])).glob("*/"):
        shutil.move(folder, models / f"{folder.name}-{name[:_SHORT]}")
