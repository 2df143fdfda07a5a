"""Quality and bytes of every method on one dataset: the table of the README.

    python benchmarks/compressors.py [--key=value ...]

Arguments go to every run, as on the command line of ``recbole-fedras``.
"""

import platform
import sys

from recbole_fedras.config import registry
from recbole_fedras.experiments.summary import cost
from recbole_fedras.experiments.tables import Table
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
        test, sent = result["test_result"], result["communication"]
        quality = {"HR@10": test["hit@10"], "NDCG@10": test["ndcg@10"]}
        nominal = {"CR nominal": sent["nominal_compression_rate"]}
        seconds = {"seconds": result["seconds"]["total"]}
        rows.append({"method": method} | quality | cost([sent]) | nominal | seconds)
    machine = platform.processor() or platform.machine()
    note = (
        f"dense FedAvg: {sent['dense_bytes'] / 1e6:,.0f} MB; {result['rounds']} rounds "
        "at most"
    )
    print(Table(f"{' '.join(argv) or 'defaults'}; {machine}", rows, note).markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
