"""What the first run on a machine costs: seconds of processor beyond importing torch.

    python benchmarks/cold.py

Each run is a process of its own: a round of MF on ML-100K, with numba's cache empty and
then with what that left there. Seconds of processor, user and system, in all threads;
less those of ``import torch`` alone, the least of three.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

from tabulate import tabulate

KEYS = ["--epochs=1", "--eval_step=0", "--show_progress=False"]
RUN = ["-m", "recbole_fedras", *KEYS]


def seconds(folder: str, *arguments: str) -> float:
    """Run Python with its caches in a folder; return its seconds of processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"NUMBA_CACHE_DIR": folder},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch = min(seconds(folder, "-c", "import torch") for _ in range(3))
    rows = []
    for compressor in sys.argv[1:] or ["none", "FedRAS"]:
        with tempfile.TemporaryDirectory() as folder:
            run = [*RUN, f"--compressor={compressor}"]
            cold, warm = (seconds(folder, *run) - torch for _ in range(2))
        rows.append((compressor, cold, warm, cold - warm))
    print(f"import torch: {torch:.1f} s")
    headers = ["compressor", "first run", "second", "compiling"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".1f"))
