"""Exercise of lesson 0: guess three cells of the loop's table, before you see it.

Level 1 of 3, two minutes. Check it after `make loop`: python -m course.check 0
There is no wrong answer; but a guess that was written down teaches, and one that was not does not.
"""

# The base answers 62% of the questions. After one round, which share is right?
ACCURACY_AFTER_ROUND_1 = None  # such as 0.75

# Round 1 makes some 400 pairs of its 1,200 answers. How many does round 4 make of as many?
PAIRS_IN_ROUND_4 = None  # such as 400

# Of what is wrong, the base's critique finds 89%. Which share does the model find after round 4?
RECALL_AFTER_ROUND_4 = None  # such as 0.89
