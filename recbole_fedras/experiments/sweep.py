"""Many runs: each once, in parallel, and never again."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from joblib import cpu_count
from tqdm import tqdm

from recbole_fedras.config.checkpoint import plain
from recbole_fedras.errors import ConfigError, NonFiniteError
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.version import __version__

Keys = dict[str, Any]
Outcome = dict[str, Any]
Measure = Callable[[Keys], Outcome]

#: Keys that say where a run finds what it needs, not what it does.
LOCAL = {"data_path", "gpu_id", "use_gpu"}

#: Keys of each run's own process, which a sweep sets.
QUIET = {"show_progress": False, "n_jobs": 1, "checkpoint_dir": "saved"}

#: Keys that would make runs differ from what their label says.
RELABELLING = {
    "bandwidth", "downlink_compressor", "downlink_compressor_class",
    "uplink_compressor", "uplink_compressor_class",
}  # fmt: skip

#: What is kept of an evaluated round, besides its metrics.
_CURVE = ("uplink_bytes", "downlink_bytes", "catch_up_bytes")


def run_cells(
    cells: Sequence[Keys],
    folder: Path,
    n_jobs: int,
    title: str = "Runs",
    measure: Measure | None = None,
) -> list[Outcome]:
    """Run every configuration that ``folder`` does not hold yet; return all outcomes.

    A cell is finished when its file is there, named by a digest of its keys and our
    version: a sweep that was killed goes on where it was, also on another machine that
    is given the folder, and sweeps share what they have in common. Neither a dataset's
    content nor code of one's own is part of the name: where these changed, take another
    folder.

    Parameters
    ----------
    cells : sequence of dict
        Keys of a run, as for :func:`run_recbole_fedras`.
    folder : Path
    n_jobs : int
        Processes, of one thread each; -1 for one per core.
    title : str
        Of the progress bar.
    measure : callable, optional
        What to do with the keys of a cell, instead of :func:`train_and_test`; part of
        the cell's name. A function of a module, as it is called in another process.

    Returns
    -------
    list of dict
        For each cell ``keys``; ``result``, what ``result.json`` holds; ``curve``, a
        list of evaluated rounds with metrics and bytes so far; and ``ranks``, that of
        every user's held-out item in the test, 0 if it is not among the first, empty
        where no metric counts hits. Of a run that diverged, ``result`` is None and
        ``error`` says when.

    Raises
    ------
    ConfigError
        If ``n_jobs`` is neither; before any run.
    Exception
        The first that a run raised, when those under way have ended.
    """
    if n_jobs < 1 and n_jobs != -1:
        raise ConfigError(f"n_jobs={n_jobs} must be -1 or at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    measure = measure or train_and_test
    paths = [file_of(cell, folder, measure) for cell in cells]
    due = dict(zip(paths, cells, strict=True))
    missing = {path: cell for path, cell in due.items() if not path.is_file()}
    with tqdm(
        total=len(due), initial=len(due) - len(missing), desc=title, unit="run"
    ) as bar:
        for path, outcome in _outcomes(measure, missing, n_jobs):
            _write(path, outcome)
            bar.update()
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def file_of(cell: Keys, folder: Path, measure: Measure) -> Path:
    """Name a configuration's outcome by what it says, in whatever order."""
    named = [__version__, _identity(cell)]
    if measure is not train_and_test:
        named.append(measure.__name__)
    text = json.dumps(named, sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _identity(cell: Keys) -> Keys:
    elsewhere = LOCAL | QUIET.keys()
    return {key: plain(value) for key, value in cell.items() if key not in elsewhere}


def _outcomes(
    measure: Measure, missing: dict[Path, Keys], n_jobs: int
) -> Iterator[tuple[Path, Outcome]]:
    """Yield outcomes as runs end; after an error start no more, and raise it last."""
    if not missing:
        return
    workers = min(cpu_count() if n_jobs == -1 else n_jobs, len(missing))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _end_with_sweep) as pool:
        running: dict[Future[Outcome], Path] = {
            pool.submit(_run_cell, measure, cell): path
            for path, cell in missing.items()
        }
        failed: Exception | None = None
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    path = running.pop(future)
                    if future.cancelled():
                        continue
                    try:
                        outcome = future.result()
                    except BrokenProcessPool as error:
                        raise ChildProcessError(
                            "the process of a run was killed, maybe for want of "
                            "memory: try fewer --jobs"
                        ) from error
                    except Exception as error:  # let those under way end, and keep them
                        failed = failed or error
                        pool.shutdown(wait=False, cancel_futures=True)
                    else:
                        yield path, outcome
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed is not None:
        raise failed


def _end_with_sweep() -> None:
    """Let this process end when the sweep's is killed, and work for nobody."""

    def watch() -> None:
        if sweep := multiprocessing.parent_process():
            sweep.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_cell(measure: Measure, cell: Keys) -> Outcome:
    """Measure in a folder of its own, quietly."""
    keys = {"data_path": str(Path(cell.get("data_path", "dataset/")).resolve())}
    before = Path.cwd()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="recbole-fedras-") as scratch:
        os.chdir(scratch)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                outcome = measure(cell | keys | QUIET)
        except NonFiniteError as error:
            outcome = {"result": None, "error": str(error)}
        finally:
            os.chdir(before)
            logging.disable(logging.NOTSET)
    return {"keys": _identity(cell)} | outcome


def train_and_test(keys: Keys) -> Outcome:
    """Run once, and keep what is small: ``result``, ``curve`` and ``ranks``."""
    result = run_recbole_fedras(config_dict=keys)
    run = Path(result.pop("run_folder"))
    curve = list(_curve(run / "rounds.csv"))
    return {"result": result, "curve": curve, "ranks": _ranks(run / "ranks.csv")}


def _curve(path: Path) -> Iterator[dict[str, float]]:
    sums = dict.fromkeys(_CURVE, 0.0)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for key in _CURVE:
                sums[key] += float(row[key])
            metrics = {
                key: float(value)
                for key, value in row.items()
                if key.startswith("valid_") and value
            }
            if metrics:
                yield {"round": int(row["round"]), **sums, **metrics}


def _ranks(path: Path) -> list[int]:
    if not path.is_file():  # no metric counts hits
        return []
    with path.open(encoding="utf-8") as file:
        return [int(row["rank"]) for row in csv.DictReader(file)]


def _write(path: Path, outcome: Outcome) -> None:
    """Write to a temporary file, then replace: what is there is whole."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(temporary, path)
