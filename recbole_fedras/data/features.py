"""What the dataset says of its items, as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recbole.utils import FeatureType
from sklearn.preprocessing import MultiLabelBinarizer

from recbole_fedras.errors import DataError

Floats = NDArray[np.float32]


def item_features(dataset: Any, fields: Sequence[str] | None) -> Floats:
    """Return features of all items but [PAD], shape (n_items, n_features).

    Tokens become indicators, numbers are standardised, and a field that
    ``preload_weight`` names (RecBole's way to load vectors from a file, of text for
    instance) gives the vectors loaded.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
    fields : sequence of str, or None
        Of the ``.item`` file, or of ``preload_weight``; None: all that are loaded.

    Raises
    ------
    DataError
        If a field is not there, or none is.
    """
    table = dataset.item_feat
    of_items = {dataset.iid_field, *dataset.alias["item_id"]}
    preloaded = [name for name in dataset._preloaded_weight if name in of_items]
    columns = [] if table is None else list(table)
    columns = [name for name in columns if name != dataset.iid_field]
    known = [name for name in columns if name not in preloaded] + preloaded
    for field in known if fields is None else fields:
        if field not in known:
            raise DataError(
                f"item_features={fields!r} is not allowed; loaded are {known}"
            )
    chosen = known if fields is None else list(fields)
    if not chosen:
        raise DataError(
            "item_base=features needs features of items: set load_col to fields of the "
            ".item file, as {inter: [...], item: [item_id, ...]}, or preload_weight"
        )
    return np.concatenate([_field(dataset, field) for field in chosen], axis=1)


def _field(dataset: Any, field: str) -> Floats:
    """Return one field's features; row 0 of RecBole's tables is [PAD], no item."""
    if field in dataset._preloaded_weight:
        vectors = dataset.get_preload_weight(field)[1 : dataset.item_num]
        return _finite(field, vectors)
    values = dataset.item_feat[field].numpy()[1:]
    kind = dataset.field2type[field]
    if kind in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ):
        rows = values.reshape(len(values), -1)
        encoder = MultiLabelBinarizer(classes=range(len(dataset.field2id_token[field])))
        indicators: Floats = encoder.fit_transform(rows)[:, 1:].astype(np.float32)
        return indicators  # without that of [PAD]
    numbers = _finite(field, values.reshape(len(values), -1))
    numbers -= numbers.mean(0)
    numbers /= np.maximum(numbers.std(0), np.float32(1e-6))
    return numbers


def _finite(field: str, values: NDArray[Any]) -> Floats:
    floats: Floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise DataError(
            f"item_features: field {field!r} has values that are missing for every "
            "item, not finite, or beyond float32"
        )
    return floats


def principal_components(features: Floats, dim: int, std: float) -> Floats:
    """Reduce features to ``dim`` columns, of standard deviation ``std`` in all.

    Where there are fewer columns than that, the rest are zeros.
    """
    # A tenth of a second to import, for who has features only.
    from sklearn.decomposition import PCA

    n = min(dim, *features.shape)
    model = PCA(n, svd_solver="full").fit(features)
    # scikit-learn fixes the signs of components.
    reduced = np.zeros((len(features), dim), np.float32)
    reduced[:, :n] = model.transform(features)
    return reduced * np.float32(std / max(float(reduced.std()), 1e-12))
