"""Exercise of lesson 1: draw a token by an argmax.

Level 1 of 3, about 30 minutes. Check it: python -m course.check 1
Hint: what the stage does is generate.Noise; write yours first.
"""


class Noise:
    """Noise that turns the argmax over logits into a draw from their softmax.

    The decoder calls it once a step and takes the argmax of what it returns. The noise of a row
    depends on the seed, the row's id and the step alone.
    """

    def __init__(self, seed: int, row_ids: list[str], temperature: float):
        """Prepare the noise of these rows."""
        raise NotImplementedError

    def __call__(self, input_ids, scores):
        """Add one step's noise to scores, (rows, vocabulary) -> (rows, vocabulary).

        input_ids: the tokens so far, which are not needed
        """
        raise NotImplementedError
