"""What a federated run is configured by, as plain validated values."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

#: A size of batches that no client's samples fill.
ALL_SAMPLES = 2**62

SERVER_OPTIMIZERS = ("sgd", "adam", "adagrad", "yogi")
USER_OPTIMIZERS = ("sgd", "adam")
BUDGETS = ("nominal", "wire")
SAMPLINGS = ("fixed", "poisson")


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
class SecureAggregation:
    """How clients mask what the server may only see the sum of.

    Attributes
    ----------
    neighbours : int
        Clients that each shares masks with.
    bound : float
        Values of an update beyond it are cut.
    """

    neighbours: int
    bound: float


@dataclass(frozen=True, slots=True)
class Federation:
    """Who takes part and how updates are combined.

    Attributes
    ----------
    seed : int
    client_fraction : float
        Share of all eligible clients that form a round's cohort.
    sampling : {'fixed', 'poisson'}
        Whether a cohort has a fixed size, or each client takes part by itself with that
        share as probability.
    compression_rates : tuple of float
        Of each bandwidth tier; one entry where all clients are alike.
    uplink_share : float
        Of what a rate leaves of both directions together, what clients may send.
    compress_network : bool
        Whether the rate is the network's too, either way.
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
    secure : SecureAggregation or None
        None: the server sees each update.
    client_seed : int or None
        Of what clients draw for themselves: negatives, and what transforms add. A
        server need not know it; None: ``seed``, which it knows.
    over_selection : float
        Clients at work for each update that is wanted.
    staleness_window : int
        Versions that an update may be behind when it comes; 0: who is late is left out.
    staleness_exponent : float
        An update that is n versions behind has the weight ``(1 + n) ** -exponent``.
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
    sampling: str = "fixed"
    secure: SecureAggregation | None = None
    client_seed: int | None = None
    over_selection: float = 1.0
    staleness_window: int = 0
    staleness_exponent: float = 0.5
    uplink_share: float = 0.5
    compress_network: bool = False

    def most_participants(self, n_clients: int) -> int:
        """Return how many clients a cohort has at most."""
        if self.sampling == "poisson":
            return n_clients
        wanted = int(n_clients * self.client_fraction) + 1
        return wanted if self.over_selection == 1 else self.invited(wanted)

    def invited(self, wanted: int) -> int:
        """Return how many clients are at work so that so many are in time."""
        return ceil(wanted * self.over_selection - 1e-9)

    def weight(self, staleness: int) -> float:
        """Return the weight of an update that is so many versions behind."""
        return float((1 + staleness) ** -self.staleness_exponent)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a described world has in common for all its clients (docs/time.md).

    Attributes
    ----------
    uplink, downlink : float
        Usual speed of a link, bytes a second.
    flops : float
        Usual speed of a device, operations a second that training reaches.
    availability : float
        Probability that a client is there when a round begins.
    activity_correlation : float
        Of a client's activity and the speed of its link, from -1 to 1.
    dropout : float
        Probability that a client that was invited is lost before it uploads.
    deadline : float or None
        Seconds that a round waits for answers.
    server_seconds : float
        That the server takes for a round.
    uplink_joules, downlink_joules : float
        That a client's radio takes for a byte.
    flop_joules : float
        That a client's processor takes for an operation.
    """

    uplink: float
    downlink: float
    flops: float
    availability: float = 1.0
    activity_correlation: float = 0.0
    dropout: float = 0.0
    deadline: float | None = None
    server_seconds: float = 0.0
    uplink_joules: float = 0.0
    downlink_joules: float = 0.0
    flop_joules: float = 0.0
