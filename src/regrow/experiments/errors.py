"""The error that the command line shows as one line."""


class UserError(Exception):
    """A mistake that the user can mend: shown as one line without a traceback, exit status 2.

    The message says what is wrong and what to do about it.
    """
