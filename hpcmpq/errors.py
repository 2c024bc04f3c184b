"""Failures that a user can act on. Each message is one sentence that says what to do next."""


class UserError(Exception):
    """Bad input: the command line prints the message without a traceback and exits with 2."""


class PlanMismatch(UserError):
    """A run directory holds results of another configuration."""


class IncompleteCalibration(UserError):
    """Work units are missing; `hpcmpq calibrate` finishes them."""


class CorruptShard(UserError):
    """A shard's checksum or shape is wrong; `hpcmpq calibrate` recomputes it."""


class Infeasible(Exception):
    """No assignment meets the budgets: exit status 3. The message says the smallest reachable value."""


class Interrupted(Exception):
    """Stopped by a signal with everything finished so far on disk: exit status 75, same command goes on."""
