"""Quality and bytes of every method on one dataset: the table of the README.

    python benchmarks/compressors.py [--key=value ...]

Arguments go to every run, as on the command line of ``recbole-fedras``.
"""

import platform
import sys

from tabulate import tabulate

from recbole_fedras.config import registry
from recbole_fedras.quick_start import run_recbole_fedras


def main(argv: list[str]) -> None:
    """Run one after the other and print a Markdown table."""
    names = {*registry.names("compressor")} - {"BinaryCodes"}  # LightFR's
    methods = {name: {"compressor": name} for name in names}
    methods["LightFR"] = {"model": "LightFR"}
    rows = []
    for method in sorted(methods, key=str.lower):
        result = run_recbole_fedras(
            config_dict=methods[method] | {"show_progress": False}, argv=argv
        )
        cost, test = result["communication"], result["test_result"]
        rows.append(
            {
                "method": method,
                "HR@10": f"{test['hit@10']:.4f}",
                "NDCG@10": f"{test['ndcg@10']:.4f}",
                "uplink MB": f"{cost['uplink_bytes'] / 1e6:,.0f}",
                "downlink MB": f"{cost['downlink_bytes'] / 1e6:,.0f}",
                "catch-up MB": f"{cost['catch_up_bytes'] / 1e6:,.0f}",
                "CR nominal": f"{cost['nominal_compression_rate']:.2%}",
                "CR wire": f"{cost['wire_compression_rate']:.2%}",
                "seconds": f"{result['seconds']['total']:.0f}",
            }
        )
    print(
        f"{' '.join(argv) or 'defaults'}; {platform.processor() or platform.machine()}"
    )
    dense = cost["dense_bytes"] / 1e6
    print(f"dense FedAvg: {dense:,.0f} MB; {result['rounds']} rounds at most")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main(sys.argv[1:])
