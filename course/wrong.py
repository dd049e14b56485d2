"""What a check says of an exercise that is not right yet."""


class Wrong(Exception):
    """What is wrong, and what to think of, in a sentence or two."""


def demand(condition, sentence: str):
    """Raise Wrong with a sentence unless the condition holds."""
    if not condition:
        raise Wrong(sentence)
