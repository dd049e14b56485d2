"""The prompts of all stages, and the error types: the words that are used unless a file has others.

They are ours: the paper's prompts stand in no copy of it that could be read. A word in braces is a
field, which a stage fills in. `python generate.py --prompts list` prints them as a file to edit.
"""

# Stage 1, generate.py: a question. Each has a prompt of its own, so that all questions about a
# video are decoded as one batch; the prompts go through the aspects of their kind in turn, so that
# the questions differ.
QUESTION = (
    "Write one question about this video. It should be about {aspect}. Name objects by how they "
    "look, ask only about what is really shown, and make sure that watching the video is needed to "
    "answer it. Reply with the question alone."
)
NUMBER = 3  # of each kind, about each video
# The kinds of questions, and the aspects that each may be about
ASPECTS = {
    "spatial": (
        "where two objects are in relation to each other",
        "which objects there are and where each one is",
        "visual details such as number, color, shape or size",
    ),
    "temporal": (
        "the order in which things happen",
        "cause and effect: why something happens",
        "how something changes: its motion, place or state",
    ),
}

# Stage 1, and whatever else asks: the training of stage 4 puts its answers behind these words
ANSWER = "{question}\nAnswer from what the video shows, in one short sentence."

# What an answer may have wrong, and how the critique's prompt explains it
ERROR_TYPES = {
    "factual_inaccuracy": "something that the video contradicts",
    "temporal_ordering": "wrong order of events",
    "spatial_relationship": "wrong place or direction between objects",
    "object_hallucination": "something that is not there",
    "causal_reasoning": "wrong cause",
    "detail_omission": "something that matters is left out",
}

# Stage 2, critique.py. verdict.py reads its last line, "Errors: ..."
CRITIQUE = (
    "Somebody was asked about this video.\n"
    "Question: {question}\n"
    "Their answer: {initial}\n"
    "Check the answer against the video. First say what the video shows about the question. Then "
    'end with one line that begins with "Errors:" and names each kind of error in the answer, out '
    'of {error_types}. If the answer is right, that line is "Errors: none".'
)

# Stage 3, refine.py
REVISION = (
    "Somebody was asked about this video.\n"
    "Question: {question}\n"
    "Their answer: {initial}\n"
    "A review of the answer: {critique}\n"
    "Answer the question again: mend what the review found wrong, keep what is right, and go by "
    "what the video shows. Reply with the new answer alone, in one short sentence."
)
