"""Check of lesson 5: the bugs are named."""

from course import bugs
from course.wrong import demand

EXERCISE = "find_bugs"
PAGE = "5_training_in_fact.md"
NAMES = (
    "sorted_sides",
    "swapped_sides",
    "moving_reference",
    "prompt_counted",
    "no_end_of_turn",
    "bfloat16_weights",
    "no_video",
    "gradients_add_up",
)
HINTS = {
    "A": "Steps 1 and 2 are right. What is different from then on: the gradient, or what becomes "
    "of it?",
    "B": "Its curves are as good as the good run's. Compare logps and lengths of step 1, before "
    "any training, with the good run's.",
    "C": "How long are the answers that it trains on, and how long are those in the pairs?",
    "D": "Step 1 is the reference itself. How likely does it find its own answers?",
    "E": "What is a margin the difference of? Which of the four log-probs makes it 0 each time?",
}


def check_names(exercise):
    """Check that what is named is in the lesson's list."""
    named = {letter: exercise.BUGS.get(letter) for letter in HINTS}
    if not any(named.values()):
        raise NotImplementedError
    for letter, said in named.items():
        demand(
            said in (*NAMES, None), f"{letter}: {said!r} is not in the list: {', '.join(NAMES)}."
        )


def check_bugs(exercise):
    """Check that all five runs are explained."""
    right = [letter for letter in HINTS if exercise.BUGS[letter] == bugs.LETTERS[letter]]
    wrong = [letter for letter in HINTS if letter not in right]
    if wrong:
        hints = " ".join(f"{letter}: {HINTS[letter]}" for letter in wrong)
        demand(False, f"{len(right)} of 5 are right ({', '.join(right) or 'none'}). {hints}")


CHECKS = [check_names, check_bugs]
