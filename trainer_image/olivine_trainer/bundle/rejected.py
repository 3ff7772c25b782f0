"""Why one adapter stays outside while the others go on."""


class RejectedError(Exception):
    """One adapter is not taken: the sentence names what is wrong with it, and what to do instead."""
