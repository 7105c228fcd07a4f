"""The error that a user reads. Loads nothing."""


class InputError(Exception):
    """Something the user has to know or to change; the message says what, and commands show it without a traceback."""
