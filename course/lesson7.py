"""Checks of lesson 7: memory by hand, against what tools.memory counts."""

from pathlib import Path

import common
from course.wrong import demand
from tools import memory
from vlm import placement

EXERCISE = "memory_table"
PAGE = "7_at_the_real_size.md"
MODEL = Path(common.__file__).parent / "tests" / "fixtures" / "internvl2_5-8b"
GIB = 2**30
# Number of devices, and GiB of each: the "GB" of GPUs are 2^30 bytes
MACHINES = {"1 x 24 GB": (1, 24), "2 x 80 GB": (2, 80), "4 x 80 GB": (4, 80)}


def plan(n_devices: int, *words: str) -> list[memory.Row]:
    """Ask tools.memory what the devices need -> a row for each."""
    options = memory.parse_args([str(MODEL), "--activation-checkpointing", *words])
    config = placement.read_config(MODEL)
    return memory.plan(config, [f"device {number}" for number in range(n_devices)], options)


def compare(exercise, name: str, expected: float, hints: dict[float, str]):
    """Demand a figure within 2%; a hint says what gives a factor of the right one."""
    value = getattr(exercise, name)
    if value is None:
        raise NotImplementedError
    factor = value / expected
    near = [text for wrong, text in hints.items() if abs(factor / wrong - 1) < 0.02]
    hint = near[0] if near else ""
    demand(abs(factor - 1) < 0.02, f"{name} is {value:.2f}. {hint}".strip())


GB = {GIB / 1e9: "That is in units of 10^9 bytes; this table counts GiB."}


def check_weights(exercise):
    """Check that weights in bfloat16 take 2 bytes each."""
    [row] = plan(1)
    hints = {2.0: "Four bytes each is float32.", 0.958: "The vision tower is loaded, too."}
    compare(exercise, "WEIGHTS", row.weights / GIB, hints | GB)


def check_gradients(exercise):
    """Check that what is trained has a gradient of its own type, and what is frozen has none."""
    [row] = plan(1)
    hints = {
        8.08 / 7.74: "The vision tower and the projector are frozen: they have none.",
        2.0: "They have the type of the weights, bfloat16.",
    }
    compare(exercise, "GRADIENTS", row.gradients / GIB, hints | GB)


def check_adamw(exercise):
    """Check that AdamW holds masters, their gradients and two moments, all in float32."""
    [row] = plan(1)
    hints = {
        0.5: "Two moments alone. The weights that AdamW updates are float32 copies, the masters, "
        "and they have gradients in float32: an update of 5e-7 is lost in bfloat16.",
        0.75: "Three of the four: masters, their gradients, two moments.",
    }
    compare(exercise, "ADAMW", row.optimizer / GIB, hints | GB)


def check_cache(exercise):
    """Check that the cache holds keys and values of all layers for each token of the video."""
    [row] = plan(1)
    hints = {
        4.0: "Keys and values have 8 heads, not 32: several queries share them (GQA).",
        0.5: "There are keys, and there are values.",
        2.0: "bfloat16 has two bytes.",
    }
    compare(exercise, "CACHE", row.cache / GIB, hints | GB)


def check_factors(exercise):
    """Check that a layer (in, out) has factors A (r, in) and B (out, r), and AdamW two moments."""
    [row] = plan(1, "--tune", "lora")
    n_factors = row.gradients / 4  # float32
    hints = {
        1 / 32: "There are 32 layers.",
        1 / 16: "The rank is 16.",
        1e6: "It is asked in millions.",
        45.09 / 41.94: "k and v have 8 heads of 128, not 32: they go from 4,096 to 1,024.",
    }
    compare(exercise, "FACTORS", n_factors / 1e6, hints)
    hints = {
        2.0: "Factors are float32 already: there are no masters beside them.",
        0.5: "AdamW has two moments.",
    }
    compare(exercise, "ADAMW_OF_FACTORS", row.optimizer / GIB, hints | GB)


def check_fits(exercise):
    """Check that the fullest device decides, and that some room is left on it."""
    for name, words in {"FULL_FITS": (), "LORA_FITS": ("--tune", "lora")}.items():
        for machine, said in getattr(exercise, name).items():
            if said is None:
                raise NotImplementedError
            n_devices, size = MACHINES[machine]
            fullest = max(row.training for row in plan(n_devices, *words)) / GIB
            demand(
                said == (fullest < 0.9 * size),
                f"{name} on {machine}: the fullest of {n_devices} needs {fullest:.1f} GiB of "
                f"{size}, of which a tenth should stay free.",
            )


CHECKS = [check_weights, check_gradients, check_adamw, check_cache, check_factors, check_fits]
