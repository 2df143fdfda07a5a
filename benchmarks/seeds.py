"""Mean accuracy and bytes over seeds, of several configurations side by side.

    python benchmarks/seeds.py --seeds=2020,1,2,3,4 --run="--compressor=none" \
        --run="--preset=best" [--key=value ...]

Every ``--run`` is a configuration; other arguments go to all of them, as on the command
line of ``recbole-fedras``. The defaults are the comparison of README.
"""

import argparse
import platform
import sys
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from recbole_fedras.quick_start import run_recbole_fedras


def main(argv: list[str]) -> None:
    """Run every configuration with every seed and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", default="2020,1,2,3,4")
    parser.add_argument("--run", action="append", dest="runs")
    arguments, common = parser.parse_known_args(argv)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = arguments.runs or ["--compressor=none", "--preset=best"]
    results: dict[str, list[dict[str, Any]]] = {run: [] for run in runs}
    progress = tqdm([(run, seed) for seed in seeds for run in runs], unit="run")
    for run, seed in progress:
        progress.set_postfix_str(f"{run} seed {seed}")
        result = run_recbole_fedras(
            config_dict={"show_progress": False, "seed": seed},
            argv=[*common, *run.split()],
        )
        results[run].append(result)
    print(f"{' '.join(common) or 'defaults'}; seeds {seeds}; {platform.processor()}")
    print(
        tabulate(
            [
                {"run": run} | summary(own, results[runs[0]])
                for run, own in results.items()
            ],
            headers="keys",
            tablefmt="github",
            disable_numparse=True,
        )
    )


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
    for direction in ("uplink", "downlink"):
        size = mean(run[f"{direction}_bytes"] for run in cost)
        dense = mean(run["dense_bytes"] for run in cost) / 2
        row[f"CR wire, {direction}"] = f"{1 - size / dense:.2%}"
    row["seconds"] = f"{mean(result['seconds']['total'] for result in own):.0f}"
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
