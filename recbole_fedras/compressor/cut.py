"""Base, RCR and RSC: less to send, or sent less often, instead of compressed."""

from recbole_fedras.compressor.none import NoCompression


class Base(NoCompression):
    """Embeddings of ``floor(d (1 - CR))`` dimensions, one at least.

    Source: FedMF and FedNCF, the "Base" of FedRAS (KDD 2025), Table 1.

    **Wire**: as without compression.

    **Departures**: as without compression.
    """

    cuts = "embedding_size"


class RCR(NoCompression):
    """Reduced communication rounds: ``floor(T (1 - CR))`` of T, one at least.

    Source: FedRAS (KDD 2025), Table 5.

    **Wire**: as without compression; the whole run's bytes are to be compared.

    **Departures**: as without compression.
    """

    cuts = "epochs"


class RSC(NoCompression):
    """Reduced sample of clients: a cohort of ``floor(|S| (1 - CR))``.

    Source: FedRAS (KDD 2025), Table 5.

    **Wire**: as without compression; the whole run's bytes are to be compared.

    **Departures**: as without compression. A rate that leaves nobody is refused.
    """

    cuts = "client_fraction"
