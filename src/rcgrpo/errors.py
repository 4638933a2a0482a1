"""The one exception that the command line turns into a message and exit code 2."""


class UserError(Exception):
    """A mistake of the user: the message names the field, the value and the cure."""
