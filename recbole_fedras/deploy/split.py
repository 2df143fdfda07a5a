"""A dataset taken apart to try a deployment with: folders of users, list of items."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recbole_fedras.config import Config
from recbole_fedras.data.dataset import catalogue_of
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.protocol import block_of
from recbole_fedras.run.setup import load_data


def split(config: Config, n_shards: int, output: Path) -> list[Path]:
    """Write the interactions of a dataset's users to a folder for each shard.

    A deployment over these folders, with the catalogue that is written beside them,
    has the numbers of the simulation, and so its bits.

    Parameters
    ----------
    config : Config
    n_shards : int
    output : Path
        ``output/0``, ``output/1``, ... are data paths; ``output/catalogue.txt`` has the
        items.

    Returns
    -------
    list of Path

    Raises
    ------
    ConfigError
        If there are fewer blocks of users than shards.
    DataError
        If the dataset comes split, or is no file.
    """
    settings, data = config.run_settings(), config.data_settings()
    name = settings.dataset
    file = Path(settings.data_path) / f"{name}.inter"
    if not file.is_file():
        raise DataError(f"there is no file {file}; only a whole one can be split")
    dataset = load_data(config)
    users = dataset.field2id_token[dataset.uid_field][1:]
    block = block_of(config.federation().client_fraction)
    n_blocks = -(-len(users) // block)
    if not 1 <= n_shards <= n_blocks:
        raise ConfigError(
            f"--shards={n_shards} is not allowed; it must be from 1 to {n_blocks}: "
            f"{block} consecutive users train together, as client_fraction says"
        )
    bounds = np.linspace(0, n_blocks, n_shards + 1).round().astype(int) * block
    shard_of = {
        str(user): shard
        for shard in range(n_shards)
        for user in users[bounds[shard] : bounds[shard + 1]]
    }
    folders = [output / str(shard) for shard in range(n_shards)]
    with file.open(encoding=data.form.encoding) as lines:
        header = next(lines)
        separator = data.form.separator
        fields = [field.partition(":")[0] for field in header.strip().split(separator)]
        place = fields.index(dataset.uid_field)
        rows: list[list[str]] = [[header] for _ in folders]
        for line in lines:
            user = line.rstrip("\n").split(separator)[place]
            if user in shard_of:
                rows[shard_of[user]].append(line)
    for folder, own in zip(folders, rows, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        path = folder / name / f"{name}.inter"
        path.write_text("".join(own), encoding=data.form.encoding)
    (output / "catalogue.txt").write_bytes(catalogue_of(dataset).to_bytes() + b"\n")
    return folders
