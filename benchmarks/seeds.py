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

from recbole_fedras.config import Config
from recbole_fedras.experiments.sweep import Sweep
from recbole_fedras.experiments.tables import SPREAD, Table

Result = dict[str, Any]


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
    outcomes = Sweep(Path(arguments.output), arguments.jobs).run(cells)
    results = [outcome["result"] for outcome in outcomes]
    groups = [results[i : i + len(seeds)] for i in range(0, len(results), len(seeds))]
    rows = [
        {"run": f"`{run}`"} | summary(results, groups[0])
        for run, results in zip(runs, groups, strict=True)
    ]
    title = f"{' '.join(common) or 'defaults'}; seeds {seeds}; {platform.processor()}"
    print(Table(title, rows).markdown())


def summary(
    results: list[dict[str, Any]], first: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the columns of a configuration; ``first`` is what it is compared with."""
    row: dict[str, Any] = {}
    for metric in results[0]["test_result"]:
        values = [result["test_result"][metric] for result in results]
        before = mean(result["test_result"][metric] for result in first)
        row[metric] = mean(values)
        row[metric + SPREAD] = stdev(values) if len(values) > 1 else None
        row[f"{metric} - first"] = mean(values) - before
    for name in results[0].get("exposure", ()):  # of an attack's targets
        row[name] = mean(result["exposure"][name] for result in results)
    cost = [result["communication"] for result in results]
    dense = mean(run["dense_bytes"] for run in cost) / 2
    for direction in ("uplink", "downlink"):
        size = mean(run[f"{direction}_bytes"] for run in cost)
        row[f"CR wire, {direction}"] = 1 - size / dense
    row["catch-up MB"] = mean(run["catch_up_bytes"] for run in cost) / 1e6
    row["seconds"] = mean(result["seconds"]["total"] for result in results)
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
