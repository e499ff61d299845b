"""The errors that are the user's to mend."""


class InputError(ValueError):
    """What the user gave cannot be used; the message names it, where it stands, and the remedy.

    The commands print the message without a traceback and leave with exit status 2.
    """


class WriteError(OSError):
    """A file of a run cannot be written; the message names it, and what is still intact.

    The commands print the message without a traceback and leave with exit status 4.
    """
