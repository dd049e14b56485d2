"""Checks of lesson 4: one packed sequence is as good as separate ones."""

import tempfile
from pathlib import Path
from unittest import mock

import torch

import media
import vlm
from course.wrong import Wrong, demand
from shapes import world
from vlm import prefix

EXERCISE = "packing"
PAGE = "4_a_video_is_read_once.md"
MODEL = Path(__file__).parent.parent / "shapes" / "model"
QUESTIONS = ("which way does the red square move?", "how many shapes are there?")
ANSWERS = ("it moves up.", "there are two shapes.", "it moves.")


def call(exercise, n_video: int, branches: list):
    """Call the exercise's pack."""
    packed = exercise.pack(n_video, branches)
    demand(
        isinstance(packed, tuple) and len(packed) == 5,
        "pack returns (ids, positions, mask, targets, branch), as vlm.Packed.",
    )
    return prefix.Packed(*(torch.as_tensor(part) for part in packed))


def small(exercise):
    """Pack two branches behind two video tokens; the first has prompt 7 and answer 8 9."""
    return call(exercise, 2, [vlm.Branch([7], [8, 9]), vlm.Branch([5, 6], [4])])


def check_ids(exercise):
    """Check that behind a video of 2 tokens, [7 | 8 9] and [5 6 | 4] lie one after another."""
    ids = small(exercise).ids.tolist()
    demand(ids == [7, 8, 9, 5, 6, 4], f"ids are {ids}, not [7, 8, 9, 5, 6, 4].")


def check_positions(exercise):
    """Check that every branch counts on from the video, as if it were alone behind it."""
    positions = small(exercise).positions.tolist()
    if positions == list(range(8)):
        raise Wrong(
            "Positions are 0 to 7: the second branch stands at 5. Alone behind the video it would "
            "stand at 2, and a rotary position is part of what a token means."
        )
    expected = [0, 1, 2, 3, 4, 2, 3, 4]
    demand(positions == expected, f"Positions are {positions}, not {expected} (the video's first).")


def check_mask(exercise):
    """Check that a token sees the video, and of its own branch itself and what is before it."""
    mask = small(exercise).mask.bool()
    demand(
        mask.shape == (6, 8),
        f"The mask has the shape {tuple(mask.shape)}, not (6, 8): a row for each token of the "
        "branches, a column for each of the sequence. The video needs no rows: it is causal.",
    )
    demand(mask[:, :2].all(), "A token does not see all of the video.")
    demand(
        not mask[3:, 2:5].any(),
        "The second branch sees the first. Chosen and rejected would read each other, and nothing "
        "would look wrong: losses fall faster, since an answer can be copied.",
    )
    demand(
        not mask[0, 3] and not mask[0, 4] and not mask[3, 6],
        "A token sees what comes after it: it would be told the word that it is to predict.",
    )
    own = [mask[row, 2 + row] for row in range(6)]
    demand(all(own), "A token does not see itself.")
    demand(mask[2, 2] and mask[2, 3], "A token does not see what is before it in its own branch.")


def check_targets(exercise):
    """Check that targets are the answers' tokens, counted from the start of the sequence."""
    packed = small(exercise)
    targets = packed.targets.tolist()
    hint = ""
    if targets == [2, 3, 6]:
        hint = " Those are the tokens before them, which predict them; the caller subtracts 1."
    if targets == [1, 2, 5]:
        hint = " They count from the end of the video; the video's tokens count, too."
    demand(targets == [3, 4, 7], f"They are {targets}, not [3, 4, 7].{hint}")
    branch = packed.branch.tolist()
    demand(branch == [0, 0, 1], f"Their branches are {branch}, not [0, 0, 1].")


def check_model(exercise):
    """Check that log-probs of the tiny model equal those of separate sequences, to 1e-5."""
    # In float32 rounding alone comes to 1e-5, more or less by the machine
    model = vlm.load_model(MODEL, ["cpu"]).double()
    tokenizer = vlm.load_tokenizer(MODEL)
    video = vlm.Video(model, tokenizer, draw_frames())
    branches = []
    for question in QUESTIONS:
        branches += [vlm.encode_branch(tokenizer, question, answer) for answer in ANSWERS]
    with mock.patch.object(prefix, "pack", lambda *args: call(exercise, *args)), torch.no_grad():
        packed, _ = vlm.branch_logps(model, video, branches)
        alone = [logp_alone(model, video, branch) for branch in branches]
    difference = (packed - torch.stack(alone)).abs().max().item()
    demand(
        difference < 1e-5,
        f"They differ by up to {difference:.2g} nats from six ordinary sequences, each alone "
        "behind the video.",
    )


def draw_frames():
    """Draw a scene of the tiny world and take 8 frames of it, uint8 (8, height, width, 3)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "scene.mp4"
        world.render(world.make_scene(0, "dev", 2), path)
        return media.sample_frames(path, 8).frames


def logp_alone(model, video, branch):
    """Compute an answer's log-prob in one ordinary causal sequence, without mask or positions."""
    ids = torch.cat([video.ids, torch.tensor([branch.prompt + branch.answer])], 1)  # (1, T)
    logps = model(ids, **video.inputs, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[-len(branch.answer) :].sum()


CHECKS = [check_ids, check_positions, check_mask, check_targets, check_model]
