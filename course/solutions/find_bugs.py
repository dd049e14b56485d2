"""Solution of lesson 5, and what gives each of them away."""

BUGS = {
    # Steps 1 and 2 are those of the good run; then it falls behind, margins end at 2, not 8: the
    # gradient is right, but most of each update is lost
    "A": "bfloat16_weights",
    # Its curves are as good as the good run's. But logps and lengths of step 1, before any
    # training, are others: other answers are on the side of chosen. What it says are habits again
    "B": "sorted_sides",
    # Answers of 24 tokens, and log-probs of -116, in a world where answers have half a dozen words
    "C": "prompt_counted",
    # The same lengths, but log-probs of -16 at step 1, under the reference itself: it cannot have
    # been this model, with this video, that wrote these answers
    "D": "no_video",
    # Margins are 0 and the loss is ln 2 at every step, though log-probs move
    "E": "moving_reference",
}
