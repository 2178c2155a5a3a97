"""The one kind of error a user causes and a user can fix."""


class UserError(ValueError):
    """What was wrong, what was expected and what to do, in one sentence.

    The command line prints the sentence alone and exits with code 2; from Python it is an ordinary `ValueError`.
    """
