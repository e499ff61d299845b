"""The one error that is the user's to mend."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names it, where it stands, and the remedy.

    The commands print the message without a traceback and leave with exit status 2.
    """
