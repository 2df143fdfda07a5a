"""Base, RCR and RSC: less to send, or sent less often, instead of compressed."""

from recbole_fedras.compressor.none import NoCompression


class Base(NoCompression):
    """Embeddings of ``floor(d (1 - CR))`` dimensions, one at least.

    Source: FedMF and FedNCF, the "Base" of FedRAS (KDD 2025), section 5.1 and Table 1.

    **Wire**: as without compression.

    **Departures**: as without compression.

    Examples
    --------
    The run's embeddings have 2 of 32 dimensions; what they are is sent whole:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> update = row_update(np.arange(64), np.ones((64, 2), np.float32))
    >>> ctx = RoundContext(0, 2020, n_items=64, dim=2)
    >>> payload = Base().encode(update, Budget(64, 2, 0.9375), ctx)
    >>> payload.part_bytes()["items"], Base.cuts
    (512, 'embedding_size')
    """

    cuts = "embedding_size"


class RCR(NoCompression):
    """Reduced communication rounds: ``floor(T (1 - CR))`` of T, one at least.

    Source: FedRAS (KDD 2025), appendix A.1 and Table 5.

    **Wire**: as without compression; the whole run's bytes are to be compared.

    **Departures**: as without compression.

    Examples
    --------
    A message is what it would be without; the run has fewer rounds:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> update = row_update(np.arange(64), np.ones((64, 32), np.float32))
    >>> ctx = RoundContext(0, 2020, n_items=64, dim=32)
    >>> payload = RCR().encode(update, Budget(64, 32, 0.9375), ctx)
    >>> payload.part_bytes()["items"], RCR.cuts
    (8192, 'epochs')
    """

    cuts = "epochs"


class RSC(NoCompression):
    """Reduced sample of clients: a cohort of ``floor(|S| (1 - CR))``.

    Source: FedRAS (KDD 2025), appendix A.1 and Table 5.

    **Wire**: as without compression; the whole run's bytes are to be compared.

    **Departures**: as without compression. A rate that leaves nobody is refused.

    Examples
    --------
    A message is what it would be without; a round has fewer clients:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> update = row_update(np.arange(64), np.ones((64, 32), np.float32))
    >>> ctx = RoundContext(0, 2020, n_items=64, dim=32)
    >>> payload = RSC().encode(update, Budget(64, 32, 0.9375), ctx)
    >>> payload.part_bytes()["items"], RSC.cuts
    (8192, 'client_fraction')
    """

    cuts = "client_fraction"
