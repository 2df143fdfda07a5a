"""What a federated run is configured by, as plain validated values."""

from __future__ import annotations

from dataclasses import dataclass, field

#: A size of batches that no client's samples fill.
ALL_SAMPLES = 2**62

SERVER_OPTIMIZERS = ("sgd", "adam", "adagrad", "yogi")
USER_OPTIMIZERS = ("sgd", "adam")
BUDGETS = ("nominal", "wire")


@dataclass(frozen=True, slots=True)
class ServerOptimization:
    """How the server steps.

    Attributes
    ----------
    optimizer : {'sgd', 'adam', 'adagrad', 'yogi'}
    learning_rate : float
        1 with ``sgd`` is FedAvg: the aggregate is added as it is.
    betas : tuple of float
        Decay of the mean, and (but for ``adagrad``) of the squares.
    tau : float
        Added to the root of the squares: how adaptive the step is.
    bias_correction : bool
        Of ``adam``: whether it is Adam's own, corrected for its start.
    """

    optimizer: str = "sgd"
    learning_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3
    bias_correction: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the aggregate is added as it is."""
        return self.optimizer == "sgd" and self.learning_rate == 1


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How a client trains in one participation (FedRAS, Algorithm 1, ClientLocalTrain).

    Attributes
    ----------
    learning_rate : float
        Of SGD on the *summed* loss of a batch, for item embeddings.
    user_learning_rate : float
        The same for user embeddings, each of which is in every sample of a batch.
    theta_learning_rate : float
        Of SGD on the *mean* loss of a batch, for the network.
    local_epochs : int
        Passes over the client's data, tau in the paper.
    batch_size : int
        Samples per step, positives and negatives together.
    n_negatives : int
        Fresh negatives for each positive and epoch.
    rho_shared, rho_private : float
        How far sharpness-aware minimisation goes uphill before it takes a gradient, in
        the shared and in the private parameters; both 0: plain SGD.
    pairwise : bool
        Whether the loss is BPR's, of pairs, instead of the binary cross-entropy.
    upload_gradient : bool
        Whether clients take one step on all their samples and send its gradient. The
        rates of items and network then are what it is scaled by, of the summed loss.
    user_optimizer : {'sgd', 'adam'}
        Of user embeddings; Adam's state is private and lasts.
    weight_decay : float
        Times a parameter, it is added to the gradient that a step takes: of the user,
        the network, and each row of items that is in the step's batch.
    """

    learning_rate: float
    user_learning_rate: float
    theta_learning_rate: float
    local_epochs: int
    batch_size: int
    n_negatives: int
    rho_shared: float = 0.0
    rho_private: float = 0.0
    pairwise: bool = False
    upload_gradient: bool = False
    user_optimizer: str = "sgd"
    weight_decay: float = 0.0

    @property
    def sharpness_aware(self) -> bool:
        """Whether there is anything uphill of the parameters to look at."""
        return self.rho_shared > 0 or self.rho_private > 0


@dataclass(frozen=True, slots=True)
class Federation:
    """Who takes part and how updates are combined.

    Attributes
    ----------
    seed : int
    client_fraction : float
        Share of all eligible clients that form a round's cohort.
    compression_rates : tuple of float
        Of each bandwidth tier; one entry where all clients are alike.
    aggregation, replica : str
        Names of the aggregator and of the replica policy.
    budget : {'nominal', 'wire'}
        What a compression rate counts: values of items, as papers do, or all bytes.
    downlink_feedback : bool
        Whether the server encodes what its table is ahead of the replica, the errors
        of earlier downlinks included, instead of the newest aggregate.
    uplink_feedback : bool
        Whether clients add to an update what earlier ones lost.
    optimization : ServerOptimization
        How the server steps.
    max_update_norm : float
        Published: an update whose values have a larger norm together is refused.
    report_loss : bool
        Whether clients tell their training loss with an update.
    attack_share : float
        Share of the clients that are hostile, if there is an attack.
    """

    seed: int
    client_fraction: float
    compression_rates: tuple[float, ...]
    aggregation: str
    replica: str = "broadcast"
    budget: str = "nominal"
    downlink_feedback: bool = False
    uplink_feedback: bool = False
    optimization: ServerOptimization = field(default_factory=ServerOptimization)
    max_update_norm: float = 1e6
    report_loss: bool = True
    attack_share: float = 0.0

    def most_participants(self, n_clients: int) -> int:
        """Return how many clients a cohort has at most."""
        return int(n_clients * self.client_fraction) + 1
