"""What can be wrong with a run folder."""


class RunError(RuntimeError):
    """A run folder is not what was expected of it."""


class RunExists(RunError):
    """A run, or something else, is already where a run was to be created."""


class RunLocked(RunError):
    """Another writer holds the run folder."""
