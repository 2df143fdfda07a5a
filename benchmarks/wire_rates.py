"""What a nominal compression rate is on the wire: the table of docs/bytes.md.

    python benchmarks/wire_rates.py

A downlink in which every item has changed, of tables as large as those of the three
datasets of the FedRAS paper, d = 32; sizes depend on no values but KLT's, and on no
dataset's data.
"""

import numpy as np
import torch
from tabulate import tabulate

from recbole_fedras.compressor import Budget, Compressor, RoundContext, RowUpdate
from recbole_fedras.config import registry
from recbole_fedras.errors import BudgetError
from recbole_fedras.wire.message import Header, Kind, Message

ITEMS = {"ML-100K": 1682, "ML-1M": 3706, "Lastfm-2K": 12399}
RATES = (0.90625, 0.9375, 0.96875)
DIM = 32


def main() -> None:
    """Encode and print a Markdown table."""
    rows = []
    shipped = registry.shipped("compressor")
    for name in sorted(shipped, key=str.lower):
        made = registry.load_class("compressor_class", shipped[name], Compressor)
        if made.needs_base:
            continue  # as FedRAS
        row = {"wire CR at nominal": name}
        for rate in RATES:
            for dataset, n_items in ITEMS.items():
                row[f"{rate:.2%} {dataset}"] = wire_rate(made(), n_items, rate)
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def wire_rate(compressor: Compressor, n_items: int, rate: float) -> str:
    """Return 1 - bytes of the message / bytes of the table in float32."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n_items, DIM)) * rng.lognormal(0, 1, (n_items, 1))
    update = RowUpdate(torch.arange(n_items), torch.from_numpy(values).float())
    budget, ctx = Budget(n_items, DIM, rate), RoundContext(0, 0, n_items, DIM)
    try:
        compressor.validate(budget)
    except BudgetError:
        return "cannot"
    payload = compressor.encode_broadcast(update, [budget], ctx)[0]
    size = len(Message.of(payload, Header(Kind.DOWNLINK, 1, 0, 1, 0)))
    return f"{1 - size / (4 * n_items * DIM):.2%}"


if __name__ == "__main__":
    main()
