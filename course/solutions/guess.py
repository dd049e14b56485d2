"""What is known by now: the table of `make loop` in docs/study.md."""

ACCURACY_AFTER_ROUND_1 = 0.906
PAIRS_IN_ROUND_4 = 107
RECALL_AFTER_ROUND_4 = 0.14
