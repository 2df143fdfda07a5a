"""What users are told: errors of ours that end a command in one line.

All but the last four are ValueErrors too. An error of any other class is a bug, here
or in a user's class, and keeps its traceback.
"""


class ConfigError(ValueError):
    """A key, an option or an argument that is not allowed, or that is unknown."""


class DataError(ValueError):
    """A file or a dataset that is missing, damaged or unfit for the configuration."""


class BudgetError(ConfigError):
    """A compression rate that leaves a method too few bytes to work with."""


class PayloadError(ValueError):
    """Received bytes that are not a payload of the expected form."""


class VersionError(PayloadError):
    """A message that builds on a version other than the one its receiver holds."""


class NonFiniteError(ArithmeticError):
    """A loss, parameter or score that is not finite: training has diverged."""


class FederationError(RuntimeError):
    """A round that cannot be closed, as no client's update counts."""


class AbsentError(FederationError):
    """Fewer shards than a round needs: it may be run again once they are back."""


class KilledError(ChildProcessError):
    """A process of ours that something else has ended."""


#: What ends a command in one line; those derived from them too.
TOLD = (ConfigError, DataError, NonFiniteError, FederationError, KilledError)
