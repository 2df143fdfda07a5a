"""K-means of up to ten million rows beside faiss and scikit-learn's MiniBatchKMeans.

    python benchmarks/clustering.py --sizes 100000 1000000 10000000

A group for 32 rows, as at a compression rate of 96.88 %. Rows are made up, like those
of a server's aggregate: around 1,000 directions, with noise of full rank as large as
these, coordinates of less and less weight, lengths by a log-normal distribution. Each
method has a process and one thread to itself. Seconds are of the clustering, those of
the processor do not count other work on the machine; peaks are of the whole process,
with the rows. What would take more than ``--seconds`` by its seconds at the size before
(they grow with rows times groups) is not run. faiss is no dependency: pip install
faiss-cpu. *bits an index* are those that it is sent with, coded by how large groups
are, of those that it would take otherwise; *saved* is what that takes off a message,
with actions in float32 and in int8; *coding* are the seconds to write and to read.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

DIM, ROWS_OF_GROUP, PASSES = 64, 32, 10
BLOCK = 2**18


def ours(rows: Any, n_groups: int) -> tuple[Any, Any]:
    """Cluster as FedRAS does."""
    from recbole_fedras.compressor.fedras.kmeans import kmeans

    kmeans(rows[: 20 * ROWS_OF_GROUP], 20, 1)  # compiles, or loads from the cache
    return started(), kmeans(rows, n_groups, PASSES)


def faiss(rows: Any, n_groups: int) -> tuple[Any, Any]:
    """Cluster by Lloyd's algorithm from random rows, with as many passes as ours."""
    from faiss import Kmeans

    start = started()
    model = Kmeans(DIM, n_groups, niter=PASSES, seed=0, min_points_per_centroid=1)
    model.train(rows)
    return start, (model.centroids, model.index.search(rows, 1)[1][:, 0])


def mini_batch(rows: Any, n_groups: int) -> tuple[Any, Any]:
    """Cluster by scikit-learn, with its defaults, which soon stop."""
    from sklearn.cluster import MiniBatchKMeans

    start = started()
    model = MiniBatchKMeans(n_groups, random_state=0).fit(rows)
    return start, (model.cluster_centers_, model.labels_)


METHODS: dict[str, Callable[[Any, int], tuple[Any, Any]]] = {
    "ours": ours,
    "faiss": faiss,
    "MiniBatchKMeans": mini_batch,
}


def started() -> tuple[float, float]:
    """Read the clocks."""
    return time.process_time(), time.perf_counter()


def main() -> None:
    """Run each method at each size; print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seconds", type=float, default=600, help="most for a run")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(*measure(arguments.methods[0], arguments.sizes[0]))
        return
    if "faiss" in arguments.methods and find_spec("faiss") is None:
        print("faiss is not installed (pip install faiss-cpu): left out")
        arguments.methods.remove("faiss")
    table, rates = [], {}
    for n in arguments.sizes:
        errors: dict[str, float] = {}
        for method in arguments.methods:
            cells = [f"{n:,} into {n // ROWS_OF_GROUP:,}", method]
            expected = rates.get(method, 0.0) * n**2
            if method != "ours" and expected > arguments.seconds:
                table.append([*cells, f"not run: about {expected:,.0f}"])
                continue
            cpu, wall, errors[method], gigabytes, *coding = in_process(method, n)
            rates[method] = cpu / n**2
            share = errors[method] / errors.get("ours", np.nan)
            measured = [f"{cpu:.1f}", f"{wall:.1f}", f"{share:.3f}", f"{gigabytes:.2f}"]
            table.append([*cells, *measured, *coding_cells(n, *coding)])
            print(*table[-1], file=sys.stderr, flush=True)
    headers = [
        *("rows of 64", "method", "CPU s", "s"),
        *("error / ours", "peak GB", "bits an index", "saved", "coding s"),
    ]
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


def coding_cells(
    n: int, bits: float, of_floats: float, of_bytes: float, write: float, read: float
) -> list[str]:
    """Say what an index takes, what a message saves by that, and in which time."""
    plain = (n // ROWS_OF_GROUP - 1).bit_length()
    saved, times = f"{of_floats:.1%}, {of_bytes:.1%}", f"{write:.2f}, {read:.2f}"
    return [f"{bits:.2f} of {plain}", saved, times]


def in_process(method: str, n: int) -> list[float]:
    """Return what a process of its own measures."""
    command = [sys.executable, __file__, "--one", "--methods", method]
    output = subprocess.run(
        [*command, "--sizes", str(n)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [float(word) for word in output.stdout.splitlines()[-1].split()]


def measure(method: str, n: int) -> tuple[float, ...]:
    """Return seconds of CPU and of the clock, squared error, peak in GB, coding."""
    rows = make_rows(n)
    (cpu, wall), (centroids, groups) = METHODS[method](rows, n // ROWS_OF_GROUP)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    status = Path("/proc/self/status").read_text()
    gigabytes = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    error = 0.0
    for block in blocks(n):
        away = rows[block] - centroids[groups[block]]
        error += float(np.einsum("ij,ij->", away, away, dtype=np.float64))
    return cpu, wall, error, gigabytes, *coding(centroids, groups.astype(np.int64))


def coding(centroids: Any, groups: Any) -> tuple[float, ...]:
    """Return bits an index, shares of messages saved, seconds to write and to read."""
    from recbole_fedras.compressor.fedras import assignments
    from recbole_fedras.wire.payload import Layout, Payload

    n, n_groups = len(groups), len(centroids)
    plain = Layout().ints("assignments", n_groups, n).size
    assignments.put_assignments(Payload(), centroids[:2], groups[:999] % 2, 1)  # warm
    saved = []
    for value_bytes in (4, 1):
        payload, start = Payload(), time.perf_counter()
        assignments.put_assignments(payload, centroids, groups, value_bytes)
        write, start = time.perf_counter() - start, time.perf_counter()
        assignments.get_assignments(payload, n_groups, n)
        read = time.perf_counter() - start
        message = plain + value_bytes * centroids.size
        saved.append((plain - payload.size) / message)
    return 8 * payload.size / n, *saved, write, read


def make_rows(n: int) -> Any:
    """Draw rows, a block at a time."""
    rng = np.random.default_rng(0)
    weights = (1 + np.arange(DIM, dtype=np.float32)) ** -0.5
    centres = rng.standard_normal((1000, DIM), np.float32)
    rows = np.empty((n, DIM), np.float32)
    for block in blocks(n):
        part = rows[block]
        rng.standard_normal(out=part, dtype=np.float32)
        part += centres[rng.integers(len(centres), size=len(part))]
        part *= weights
        part *= rng.lognormal(0, 1, (len(part), 1)).astype(np.float32)
    return rows


def blocks(n: int) -> Iterator[slice]:
    """Go through n rows, some at a time."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


if __name__ == "__main__":
    main()
