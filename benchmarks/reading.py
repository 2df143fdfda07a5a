"""Reads a large dataset, ours and RecBole's way: seconds and memory side by side.

    python benchmarks/reading.py --rows 25000000

Each reader has a process to itself, which reads a file of random interactions, as large
as asked for and in MovieLens' proportions, into a dataset with numbered users and
items. Seconds, of the clock and of the processor, which other work on the machine does
not count for, and memory are those of that step: imports and configuration come before.
Memory is read where Linux has it.
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from tabulate import tabulate

from recbole_fedras.config import Config
from recbole_fedras.data.dataset import FederatedDataset

READERS = {"ours": FederatedDataset, "RecBole's": Dataset}
NAME = "large"


def main() -> None:
    """Write the file, start the processes, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--reader", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(*measure(arguments.reader, arguments.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), arguments.rows)
        title = f"{arguments.rows:,} rows, {size / 1e6:,.0f} MB"
        rows = []
        for reader in READERS:
            command = [sys.executable, __file__, "--reader", reader, "--folder", folder]
            output = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, cpu, megabytes = output.stdout.split()[-3:]
            measured = {"s": seconds, "CPU s": cpu, "peak MB more": megabytes}
            rows.append({title: reader} | measured)
        print(tabulate(rows, headers="keys", tablefmt="github"))


def write(folder: Path, n_rows: int) -> int:
    """Write random interactions; return the size of the file."""
    rng = np.random.default_rng(0)
    n_users, n_items = n_rows // 150 + 1, n_rows // 400 + 1  # as MovieLens-25M
    frame = pd.DataFrame(
        {
            "user_id:token": rng.integers(n_users, size=n_rows),
            "item_id:token": (n_items * rng.random(n_rows) ** 3).astype(int),
            "rating:float": rng.integers(1, 11, size=n_rows) / 2,
            "timestamp:float": 10**9 + rng.integers(10**8, size=n_rows),
        }
    )
    path = folder / NAME / f"{NAME}.inter"
    path.parent.mkdir()
    frame.to_csv(path, sep="\t", index=False)
    return path.stat().st_size


def measure(reader: str, folder: str) -> tuple[str, str, str]:
    """Return seconds, those of the processor, and the peak's megabytes above before."""
    config = Config("MF", NAME, config_dict={"data_path": folder})
    logging.disable(logging.CRITICAL)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    with config.in_use():
        READERS[reader](config)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return f"{seconds:.1f}", f"{cpu:.1f}", f"{peak() - before:,.0f}"


def peak() -> float:
    """Return this process's most memory, in megabytes, since that was forgotten."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024 / 1e6


if __name__ == "__main__":
    main()
