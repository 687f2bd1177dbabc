"""Errors that are the user's to mend: the command line prints them without a traceback."""


class ExperimentError(Exception):
    """Something outside the code is wrong; the message says what, and the way out."""


class ConfigError(ExperimentError):
    """An option, or a combination of options, that cannot work."""


class DataError(ExperimentError):
    """A data file that is missing, damaged or not what it should be; the message names it."""


class WriteError(ExperimentError):
    """A result that cannot be written; the message names the file."""
