"""The range coder, held to constriction's: the same words, and back."""

import constriction
import numpy as np

from recbole_fedras.compressor import range_coder


def constriction_words(columns, histograms):
    encoder = constriction.stream.queue.RangeEncoder()
    for column, histogram in zip(columns.astype(np.int32), histograms, strict=True):
        shares = histogram / histogram.sum()
        model = constriction.stream.model.Categorical(shares, perfect=False)
        encoder.encode(column, model)
    return encoder.get_compressed()


def test_words_are_those_of_constriction():
    """Of all sizes and skews; long ones, so that some words wait for a carry."""
    rng = np.random.default_rng(0)
    sizes = [(n, 3) for n in range(1, 60)] + [(20_000, 4)] * 4
    for n, n_columns in sizes:
        n_symbols = int(rng.integers(2, 18))
        drawn = rng.geometric(rng.choice([0.05, 0.5, 0.95]), (n_columns, n)) - 1
        columns = np.minimum(drawn, n_symbols - 1)
        counts = [np.bincount(column, minlength=n_symbols) for column in columns]
        histograms = np.stack(counts)
        words = range_coder.encode(columns, histograms)
        np.testing.assert_array_equal(words, constriction_words(columns, histograms))
        decoded, announced = range_coder.decode(words, histograms, n)
        assert announced
        np.testing.assert_array_equal(decoded, columns)


def test_other_words_are_not_what_is_announced():
    columns = np.random.default_rng(0).integers(0, 5, (2, 300))
    histograms = np.stack([np.bincount(column, minlength=5) for column in columns])
    words = range_coder.encode(columns, histograms)
    for bad in (words[:5], words ^ np.uint32(1 << 31), words[:0]):
        assert not range_coder.decode(bad, histograms, 300)[1]


def test_no_columns_take_no_words():
    nothing = np.zeros((0, 7), np.int64)
    assert len(range_coder.encode(nothing, nothing)) == 0
