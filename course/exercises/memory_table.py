"""Exercise of lesson 7: how much memory does a model of 8 billion weights need?

Level 2 of 3, about 40 minutes. Check it: python -m course.check 7
Everything that you need to calculate with is in tests/fixtures/internvl2_5-8b/config.json and in
the lesson. All figures are GiB (2^30 bytes); within 2% is right. tools.memory may be asked then.

It is InternVL2.5-8B: 8.08 billion weights, of which 7.74 billion are the language model's. Weights
are bfloat16; a video has 8,448 tokens.
"""

# dpo.py trains all weights of the language model. On one device:
WEIGHTS = None
GRADIENTS = None
ADAMW = None  # masters, the gradients that AdamW reads, and two moments

# The cache of one video while questions about it are answered
CACHE = None

# --tune lora --lora-rank 16: factors beside q, k, v, o, gate, up and down of each of 32 layers
FACTORS = None  # how many numbers they have in all, in millions
ADAMW_OF_FACTORS = None

# Which of these hold the training? (True or False, for each.) Activations come on top of what you
# calculated: on the fullest device 5 GiB of one, 18 of two, 13 of four. Layers are shared evenly
FULL_FITS = {"1 x 24 GB": None, "2 x 80 GB": None, "4 x 80 GB": None}
LORA_FITS = {"1 x 24 GB": None, "2 x 80 GB": None, "4 x 80 GB": None}
