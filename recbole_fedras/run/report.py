"""What a run leaves behind: its folder, its rounds, its result, and the table shown."""

from __future__ import annotations

import csv
import json
import re
import textwrap
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import get_local_time
from tabulate import tabulate

from recbole_fedras.config.checkpoint import plain, replacing
from recbole_fedras.errors import DataError
from recbole_fedras.federation.round import RoundReport
from recbole_fedras.federation.simulation import PHASES
from recbole_fedras.wire.ledger import DIRECTIONS
from recbole_fedras.wire.payload import PARTS

_BEGUN = "rounds_begun"
#: Characters that the name of a run's folder may have, but for the time.
_LONGEST = 120


def run_name(beginning: str, changed: dict[str, Any]) -> str:
    """Return what a folder is called, with what its run has other than by default.

    Examples
    --------
    >>> run_name("MF-FedRAS-ml-100k", {"epochs": 6, "topk": [5, 10]})
    'MF-FedRAS-ml-100k-epochs=6-topk=5_10'
    """
    parts = (f"{key}={_plain_name(value)}" for key, value in changed.items())
    return "-".join([beginning, *parts])[:_LONGEST].rstrip("-_.")


def _plain_name(value: Any) -> str:
    """Write a value with characters that are plain to every shell and file system."""
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")


class RunFolder:
    """A folder that belongs to one run.

    Holds ``config.yaml``, ``rounds.csv``, ``result.json``, ``ranks.csv`` (of the test),
    ``best.pth`` (best validation score) and ``last.pth`` (newest state), for
    ``--resume``. Where noise cannot be drawn again, ``rounds_begun`` says how many
    rounds have begun, before anybody is asked for anything.

    Parameters
    ----------
    parent : str or Path
    name : str
        Beginning of the folder's name; time and, where needed, a number follow.
    """

    def __init__(self, parent: str | Path, name: str) -> None:
        base = Path(parent) / f"{name}-{get_local_time()}"
        self.path = base
        attempt = 1
        while True:
            try:
                self.path.mkdir(parents=True)
                break
            except FileExistsError:
                attempt += 1
                self.path = base.with_name(f"{base.name}-{attempt}")
        self.best = self.path / "best.pth"
        self.last = self.path / "last.pth"

    def write_config(self, resolved: dict[str, Any]) -> None:
        """Write every key and value; the file works as a config file."""
        document = yaml.safe_dump(resolved, sort_keys=True, allow_unicode=True)
        (self.path / "config.yaml").write_text(document, encoding="utf-8")

    def write_rounds(self, rows: list[dict[str, Any]]) -> None:
        """Write one line per round."""
        fields = list(dict.fromkeys(key for row in rows for key in row))
        with (self.path / "rounds.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, restval="")
            writer.writeheader()
            writer.writerows(rows)

    def write_begun(self, n_rounds: int) -> None:
        """Write how many rounds have begun; it is on the disk at once."""
        with replacing(self.path / _BEGUN) as file:
            file.write(str(n_rounds).encode())

    def write_ranks(self, users: Iterable[str], ranks: Iterable[int], k: int) -> None:
        """Write where each user's held-out item stood in the test, from 1.

        The rank is 0 where that is not among the first ``k``, and a column says so.
        """
        with (self.path / "ranks.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["user", "rank", f"among the first {k}"])
            for user, rank in zip(users, ranks, strict=True):
                writer.writerow([user, rank, "yes" if rank else "no"])

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``."""
        document = json.dumps(
            _without_infinity(plain(result)), indent=2, allow_nan=False
        )
        (self.path / "result.json").write_text(document + "\n", encoding="utf-8")


def rounds_begun(checkpoint: str | Path) -> int:
    """Read how many rounds have begun in the run that a checkpoint is from.

    Raises
    ------
    DataError
        If nothing beside it says so.
    """
    path = Path(checkpoint).with_name(_BEGUN)
    try:
        return int(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"resume={str(checkpoint)!r}: {path} is missing or damaged; it says how "
            "many rounds have told something of users, which epsilon rests on with "
            "dp_noise_source=os: put it back, or start anew"
        ) from error


def _without_infinity(value: Any) -> Any:
    """Replace what JSON has no number for by None."""
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def round_row(round: int, report: RoundReport) -> dict[str, Any]:
    """Return a round's line of ``rounds.csv``, before evaluation."""
    row: dict[str, Any] = {"round": round, "loss": report.loss}
    row["clients"] = report.n_clients
    row["absent"] = report.n_invited - report.n_clients
    row["refused"] = "; ".join(map(str, report.refusals))
    row |= report.metrics
    row |= report.bytes
    for direction in DIRECTIONS:  # as papers count: values of items only
        row[f"{direction}_nominal_bytes"] = report.bytes[f"{direction}_items_bytes"]
    row |= {f"seconds_{phase}": seconds for phase, seconds in report.seconds.items()}
    return row


def communication(
    totals: dict[str, int],
    table_bytes: int,
    theta_bytes: int,
    participations: float,
    mb_per_s: dict[str, float],
) -> dict[str, Any]:
    """Sum up a run's ledger.

    Parameters
    ----------
    totals : dict
        ``Ledger.totals``.
    table_bytes, theta_bytes : int
        Size of the item table and of the network in float32.
    participations : float
        Clients in all rounds. If a run cuts embeddings, rounds or cohorts instead of
        compressing, table and participations are those without the cut.
    mb_per_s : dict
        What a client's link carries in each direction, 10^6 bytes a second.

    Returns
    -------
    dict
        ``charged_compression_rate`` stands first: every byte, catch-up included, beside
        ``dense_bytes``, which plain FedAvg would have sent: table and network, both
        ways, at each participation. ``wire_compression_rate`` leaves catch-up out,
        ``nominal_compression_rate`` compares float values of items with whole item
        tables, as papers do.
        ``per_participation`` has means over participations, each of one uplink, with
        the seconds that one takes on the link. What is sent once is no value of items.
    """
    sent = sum(totals[f"{direction}_bytes"] for direction in DIRECTIONS)
    dense = 2 * (table_bytes + theta_bytes) * participations
    values = sum(totals[f"{direction}_items_bytes"] for direction in DIRECTIONS)
    catch_up = totals["catch_up_bytes"]
    summary: dict[str, Any] = {
        "charged_compression_rate": 1 - (sent + catch_up) / dense
    }
    for key in ("uplink_bytes", "downlink_bytes", "catch_up_bytes"):
        summary[key] = totals[key]
    summary["dense_bytes"] = round(dense)
    summary["nominal_compression_rate"] = 1 - values / (
        2 * table_bytes * participations
    )
    summary["wire_compression_rate"] = 1 - sent / dense
    summary["parts"] = {
        direction: {part: totals[f"{direction}_{part}_bytes"] for part in PARTS}
        for direction in DIRECTIONS
    }
    summary["messages"] = {
        direction: totals[f"{direction}_messages"] for direction in DIRECTIONS
    }
    each: dict[str, float] = {}
    for direction in DIRECTIONS:
        mean = totals[f"{direction}_bytes"] / totals["uplink_messages"]
        each[f"{direction}_bytes"] = mean
        each[f"{direction}_seconds"] = mean / (1e6 * mb_per_s[direction])
    each["catch_up_bytes"] = catch_up / totals["uplink_messages"]
    summary["per_participation"] = each
    return summary


def seconds_by_phase(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Add up the seconds of all rounds; ``total`` is the whole rounds' time."""
    phases = [*PHASES, "evaluation", "total"]
    return {
        phase: sum(row.get(f"seconds_{phase}", 0.0) for row in rows) for phase in phases
    }


def result_table(result: dict[str, Any]) -> str:
    """Render result and cost side by side for the terminal."""
    cost, seconds = result["communication"], result["seconds"]
    each = cost["per_participation"]
    lines = [
        ("run", f"{result['model']} + {result['compressor']} on {result['dataset']}, "
                f"seed {result['seed']}, {result['rounds']} rounds"),
        *_lines_of_changes(result["changed"]),
        ("best round", f"{result['best_round']} of 0 to {result['rounds'] - 1}"),
        *(
            (f"{phase} {metric}", f"{value:.4f}")
            for phase in ("best_valid", "test")
            for metric, value in (result[f"{phase}_result"] or {}).items()
        ),
        *((f"exposure {name}", f"{value:.4f}")
          for name, value in result.get("exposure", {}).items()),
        *_privacy_lines(result.get("privacy")),
        *(
            (direction, f"{megabytes(cost[f'{direction}_bytes'])}; each time "
                        f"{each[f'{direction}_bytes'] / 1e3:,.1f} kB, "
                        f"{each[f'{direction}_seconds']:.3f} s on the link")
            for direction in DIRECTIONS
        ),
        ("catch-up", megabytes(cost["catch_up_bytes"])),
        ("dense FedAvg", megabytes(cost["dense_bytes"])),
        *_lines_of_world(result.get("world", {})),
        *(
            (f"{metric}, worst by {name}", f"{group['worst']:.4f}; {group['gap']:.4f} "
                                           "below the best")
            for name, group in result.get("groups", {}).items()
            for metric in list(group)[:1]
        ),
        ("compression rate, all charged", f"{cost['charged_compression_rate']:.2%}"),
        ("compression rate, no catch-up", f"{cost['wire_compression_rate']:.2%}"),
        ("compression rate, nominal", f"{cost['nominal_compression_rate']:.2%}"),
        *((f"seconds, {phase}", f"{value:.1f}") for phase, value in seconds.items()),
    ]  # fmt: skip
    return str(tabulate(lines, tablefmt="simple_outline", disable_numparse=True))


def _lines_of_changes(changed: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what is other than by default, on lines that are not too long."""
    said = textwrap.wrap(", ".join(f"{key}={value}" for key, value in changed.items()))
    return [("" if place else "not as by default", line)
            for place, line in enumerate(said)]  # fmt: skip


def _privacy_lines(privacy: dict[str, Any] | None) -> list[tuple[str, str]]:
    if privacy is None:
        return []
    found = "no noise, no guarantee"
    if privacy["epsilon"] is not None:
        found = f"epsilon {privacy['epsilon']:.3g}, delta {privacy['delta']:.2g}"
        found += ", to whoever does not know the seed" * (
            privacy["noise_source"] == "seed"
        )
    return [(f"{privacy['mode']} privacy of users", found)]


def _lines_of_world(totals: dict[str, float]) -> list[tuple[str, str]]:
    """Say what rounds took in a described world, if there is one."""
    if not totals:
        return []
    return [
        ("time in the world", f"{totals['world_seconds'] / 3600:,.4g} h"),
        (
            "invited in vain",
            f"{totals['late']:.0f} late, {totals['dropped']:.0f} dropped out",
        ),
        ("energy of clients", f"{totals['world_joules']:,.4g} J"),
        ("peak memory of a client", megabytes(totals["client_peak_bytes"])),
    ]


def megabytes(size: float) -> str:
    """Render bytes as MB (10^6)."""
    return f"{size / 1e6:,.2f} MB"
