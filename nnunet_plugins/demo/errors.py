"""The demo's one exception."""


class DemoError(Exception):
    """Something the user has to know or to change; the message says what, without a traceback."""
