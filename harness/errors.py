"""What the program says to a request that it can not carry out. In a file of its own: --help needs no more."""


class UsageError(Exception):
    """What the user gave can not be used; the message is one sentence that says why. Exit status 2.

    The sentence stays on one line whatever it quotes: what can not be printed is written as an escape.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in sentence)
        )
