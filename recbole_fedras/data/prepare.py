"""Turns the published files of datasets into RecBole's atomic files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from recbole_fedras.errors import DataError

_TAGS = "user_taggedartists.dat"
_RATINGS = "ratings.dat"

#: Where the published files come from; their licences forbid to pass them on.
SOURCES = {
    "lastfm-2k": (_TAGS, "https://grouplens.org/datasets/hetrec-2011/"),
    "lastfm-2k-raw": (_TAGS, "https://grouplens.org/datasets/hetrec-2011/"),
    "ml-1m": (_RATINGS, "https://grouplens.org/datasets/movielens/1m/"),
}


def prepare(dataset: str, source: str | Path, output: str | Path) -> pd.DataFrame:
    """Write ``{output}/{dataset}/{dataset}.inter`` and return its rows.

    Parameters
    ----------
    dataset : {'lastfm-2k', 'lastfm-2k-raw', 'ml-1m'}
    source : str or Path
        The published file, or its folder.
    output : str or Path
        RecBole's ``data_path``.

    Raises
    ------
    DataError
        If the dataset is unknown, or the file is missing or of another form.
    """
    if dataset not in SOURCES:
        raise DataError(f"dataset={dataset!r} must be one of {', '.join(SOURCES)}")
    name, url = SOURCES[dataset]
    path = Path(source) / name if Path(source).is_dir() else Path(source)
    if not path.is_file():
        raise DataError(
            f"there is no file {path}; download {name} from {url} (its licence forbids "
            "us to pass it on) and give its path or folder"
        )
    try:
        rows = _CONVERTERS[dataset](path)
    except (ValueError, KeyError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise DataError(f"{path} is not the {name} of {url}: {error}") from error
    if rows.empty:
        raise DataError(f"{path} holds no interactions that are kept")
    folder = Path(output) / dataset
    folder.mkdir(parents=True, exist_ok=True)
    types = {"user_id": "token", "item_id": "token"}
    header = [f"{field}:{types.get(field, 'float')}" for field in rows]
    rows.to_csv(folder / f"{dataset}.inter", sep="\t", index=False, header=header)
    return rows


def read_tags(path: Path) -> pd.DataFrame:
    """Read HetRec-2011 Last.fm's tag assignments of users who made five or more.

    One row for each tag, in the order of the file; ``timestamp`` is the date, in
    seconds.
    """
    columns = ["userID", "artistID", "day", "month", "year"]
    tags = pd.read_csv(path, sep="\t", usecols=columns, dtype="int64")
    tags = tags[tags.groupby("userID")["userID"].transform("size") >= 5]
    dates = pd.to_datetime(tags[["year", "month", "day"]])
    return pd.DataFrame(
        {
            "user_id": tags["userID"],
            "item_id": tags["artistID"],
            "timestamp": dates.astype("datetime64[s]").astype("int64").astype(float),
        }
    )


def read_listeners(path: Path) -> pd.DataFrame:
    """Read whom users tagged: distinct pairs, of users who have two or more.

    A pair has the date of its earliest tag, and the place of its first row in the file.
    These are the 70,390 interactions of 1,482 users with 12,399 artists of the FedRAS
    paper's Table 2.
    """
    tags = read_tags(path)
    earliest = tags.groupby(["user_id", "item_id"])["timestamp"].transform("min")
    pairs = tags.assign(timestamp=earliest).drop_duplicates(["user_id", "item_id"])
    return pairs[pairs.groupby("user_id")["user_id"].transform("size") >= 2]


def read_ratings(path: Path) -> pd.DataFrame:
    """Read MovieLens-1M's ratings, in the order of the file."""
    columns = ["user_id", "item_id", "rating", "timestamp"]
    ratings = pd.read_csv(path, sep="::", names=columns, dtype="int64", engine="python")
    return ratings.astype({"rating": float, "timestamp": float})


_CONVERTERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "lastfm-2k": read_listeners,
    "lastfm-2k-raw": lambda path: read_tags(path).merge(
        read_listeners(path)["user_id"].drop_duplicates(), on="user_id"
    ),
    "ml-1m": read_ratings,
}
