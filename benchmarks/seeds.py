"""Mean accuracy and bytes over seeds, of several configurations side by side.

    python benchmarks/seeds.py --seeds="2020 1 2 3 4" --run="--compressor=none" \
        --run="--preset=best" [--key=value ...]

Every ``--run`` is a configuration; other arguments go to all of them, as on the command
line of ``recbole-fedras``. The defaults are README's comparison. Finished runs are kept
in ``--output`` and never run twice.
"""

import argparse
import platform
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

from recbole_fedras.config import Config
from recbole_fedras.experiments.sweep import run_cells


def main(argv: list[str]) -> None:
    """Run every configuration with every seed and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", default="2020 1 2 3 4")
    parser.add_argument("--run", action="append", dest="runs")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--output", default="seeds")
    arguments, common = parser.parse_known_args(argv)
    seeds = [int(seed) for seed in arguments.seeds.split()]
    runs = arguments.runs or ["--compressor=none", "--preset=best"]
    shared = Config(argv=common).external_config_dict
    cells = [
        shared | Config(argv=run.split()).external_config_dict | {"seed": seed}
        for run in runs
        for seed in seeds
    ]
    outcomes = run_cells(cells, Path(arguments.output), arguments.jobs)
    results = [outcome["result"] for outcome in outcomes]
    groups = [results[i : i + len(seeds)] for i in range(0, len(results), len(seeds))]
    print(f"{' '.join(common) or 'defaults'}; seeds {seeds}; {platform.processor()}")
    rows = [
        {"run": f"`{run}`"} | summary(own, groups[0])
        for run, own in zip(runs, groups, strict=True)
    ]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def summary(own: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, str]:
    """Return the columns of a configuration; ``first`` is what it is compared with."""
    row = {}
    for metric in own[0]["test_result"]:
        values = [result["test_result"][metric] for result in own]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        row[metric] = f"{mean(values):.4f}{spread}"
        before = mean(result["test_result"][metric] for result in first)
        row[f"{metric} - first"] = f"{mean(values) - before:+.4f}"
    cost = [result["communication"] for result in own]
    dense = mean(run["dense_bytes"] for run in cost) / 2
    for direction in ("uplink", "downlink"):
        size = mean(run[f"{direction}_bytes"] for run in cost)
        row[f"CR wire, {direction}"] = f"{1 - size / dense:.2%}"
    row["catch-up MB"] = f"{mean(run['catch_up_bytes'] for run in cost) / 1e6:,.0f}"
    row["seconds"] = f"{mean(result['seconds']['total'] for result in own):.0f}"
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
