"""Exercise of lesson 4: lay the branches of a video into one sequence.

Level 3 of 3, about 60 minutes. Check it: python -m course.check 4
Hint: vlm/prefix.py's pack is what dpo.py trains with; tests/test_prefix.py works one by hand.
"""


def pack(prefix_length: int, branches: list):
    """Lay branches after a video of P = prefix_length tokens, each as if it were alone there.

        [video | prompt 1, answer 1 | prompt 2, answer 2 | ...]

    Args:
        branches: [vlm.Branch, ...], each with `prompt` and `answer`, lists of token ids

    Returns:
        ids: (T - P,) of the branches
        positions: (T,) of all tokens, the video's first
        mask: (T - P, T) bool, what each of the branches' tokens sees
        targets: (A,) indices in the whole sequence of the answers' tokens
        branch: (A,) number of the branch that each of these belongs to
    """
    raise NotImplementedError
