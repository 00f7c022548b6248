"""The error for a request that the program cannot carry out. In a file of its own, because --help needs no more."""


class UsageError(Exception):
    """An input that cannot be used; the message is one sentence that says why. Exit status 2.

    The sentence stays on one line whatever it quotes: characters that cannot be printed are written as escapes.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in sentence)
        )
