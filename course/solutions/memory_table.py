"""A solution of lesson 7, as it would be written on paper."""

GIB = 2**30
LANGUAGE = 7.74e9
HIDDEN, INTERMEDIATE, LAYERS, KEYS, RANK = 4096, 14336, 32, 8 * 128, 16

WEIGHTS = 2 * 8.08e9 / GIB
GRADIENTS = 2 * LANGUAGE / GIB
ADAMW = (4 + 4 + 4 + 4) * LANGUAGE / GIB
CACHE = 8448 * LAYERS * 2 * KEYS * 2 / GIB  # tokens, layers, keys and values, numbers, bytes

IN_AND_OUT = 2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INTERMEDIATE)
FACTORS = LAYERS * RANK * IN_AND_OUT / 1e6
ADAMW_OF_FACTORS = 8 * FACTORS * 1e6 / GIB  # two moments: the factors are float32 already

FULL_FITS = {"1 x 24 GB": False, "2 x 80 GB": False, "4 x 80 GB": True}
LORA_FITS = {"1 x 24 GB": True, "2 x 80 GB": True, "4 x 80 GB": True}
