"""The one exception that means "the input is wrong": its message names the thing and the mend."""


class InputError(ValueError):
    """Bad input from outside (a file, a flag, a token id). Programs print it as one line and exit with 2."""
