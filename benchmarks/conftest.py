"""Prints, after pytest-benchmark's own report, the table of ratios to the naive way."""

import platform
from importlib.metadata import version
from itertools import groupby

import pytest
from cpuinfo import get_cpu_info
from joblib import cpu_count
from tabulate import tabulate

LIBRARIES = ("torch", "numpy", "scikit-learn", "numba", "recbole")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Print medians, their ratio to the group's naive way, and figures beside them."""
    done = [bench for bench in config._benchmarksession.benchmarks if bench.stats.data]
    groups = list(dict.fromkeys(bench.group for bench in done))
    done.sort(key=lambda bench: groups.index(bench.group))
    rows = []
    for group, benches in groupby(done, key=lambda bench: bench.group):
        members = list(benches)
        naive = [b.stats.median for b in members if b.name.startswith("naive")]
        errors = [b.extra_info["error"] for b in members if "error" in b.extra_info]
        for bench in members:
            seconds, extra = bench.stats.median, bench.extra_info
            row = {
                "stage": group if bench is members[0] else "",
                "how": bench.name,
            }
            row["seconds"] = f"{seconds:.3g}"
            row["faster"] = f"{naive[0] / seconds:.1f} x" if naive else ""
            if "per client" in extra:
                row["ms a client"] = f"{seconds / extra['per client'] * 1e3:.3f}"
            if "error" in extra:
                row["error"] = f"{extra['error'] / errors[0]:.3f}"
            rows.append(row)
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    write = terminalreporter.write_line
    write("")
    write(f"{get_cpu_info()['brand_raw']}, {cpu_count()} cores")
    write(f"Python {platform.python_version()}, {versions}")
    write("")
    table = {"headers": "keys", "tablefmt": "github", "disable_numparse": True}
    write(tabulate(rows, **table))
