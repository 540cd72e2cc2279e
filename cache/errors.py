"""The errors a person may see. Each message is one line that names the file, record or option and the fix.

The command line prints an `EnsembleError` without traceback and exits with its `exit_code`. Every class also inherits
the builtin that a Python caller would already catch.
"""


class EnsembleError(Exception):
    """A mistake or a state of the disk that a person can put right."""

    exit_code = 1


class UsageError(EnsembleError, ValueError):
    """A wrong option, parameter or name: nothing was started."""

    exit_code = 2


class InputError(EnsembleError, ValueError):
    """A file or record that cannot be used as it is."""


class MissingFileError(EnsembleError, FileNotFoundError):
    """A file or folder that should be there and is not."""

    def __str__(self) -> str:
        """Return the message alone (OSError would print it as a one-element tuple)."""
        return str(self.args[0]) if self.args else "a file is missing"


class StoreError(EnsembleError, ValueError):
    """A store on disk that does not have the documented layout, or is damaged."""


class StorageError(EnsembleError, RuntimeError):
    """A storage that cannot be reached or read, or refuses. Not an OSError: nothing of it may be taken for damage."""


class ClaimsLostError(StoreError):
    """A process was silent for longer than a lease, and another one may have taken over what it had claimed."""


class FingerprintError(StoreError):
    """A store or a fit that was made from something else than what is here now."""


class WeightsError(EnsembleError, ValueError):
    """Weights that do not fit the expert, or cannot be had."""


class ExpertCodeError(EnsembleError, RuntimeError):
    """An expert's own code that fails, or gives something else than its spec says: no fault of any record."""


class TooManyBadRecordsError(EnsembleError):
    """The work was finished, but more records were bad than `--max-bad` allows."""

    exit_code = 3


class DownloadError(EnsembleError, ConnectionError):
    """A file that a server does not give, or not as it was published."""
