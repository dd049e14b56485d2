"""How the tiny model is made: rows behind a video, and what counts in the loss."""

import pytest
import torch

import media
import vlm
from conftest import MODEL
from shapes import pretrain, world

TASKS = [
    ("how many shapes are there?", "there are two shapes."),
    ("why?", "it moves by itself."),
    ("Ask one question about the video: what comes first.", "which appears first, the red circle or the blue square?"),
    ("where is it?", "left."),
    ("is there a red circle?", "yes."),
]


def test_rows_behind_a_video_lose_what_separate_sequences_lose(tmp_path):
    """The oracle is the log-prob of each answer, in one sequence a branch (vlm.branch_logps, one at a time)."""
    model = vlm.load_model(MODEL, ["cpu"])
    tokenizer = vlm.load_tokenizer(MODEL)
    prefix = vlm.encode_prefix(tokenizer, model.config, 8)
    n_tokens = 0
    total = 0.0
    features = []
    for number in range(2):
        path = tmp_path / f"{number}.mp4"
        world.render(world.make_scene(0, "dev", number), path)
        frames = media.sample_frames(path, 8).frames
        pixels = vlm.pixel_values(frames, (pretrain.IMAGE, pretrain.IMAGE))
        with torch.no_grad():
            features.append(model.get_image_features(pixel_values=pixels).pooler_output)
            video = vlm.Video(model, tokenizer, frames)
            for prompt, answer in TASKS:
                branch = vlm.encode_branch(tokenizer, prompt, answer)
                [logp], [length] = vlm.branch_logps(model, video, [branch])
                total += logp.item()
                n_tokens += length.item()

    batch = pretrain.collate(tokenizer, len(prefix), [TASKS, TASKS[::-1]])
    with torch.no_grad():
        loss = pretrain.language_loss(model, prefix, batch, torch.stack(features))
    assert loss.item() == pytest.approx(-total / n_tokens, abs=1e-4)


def test_a_verdict_counts_three_times_and_nothing_else_does():
    """By hand: "in the video: no. Errors: none", with 7 for "Errors"; a reply without a verdict."""
    assert pretrain.weigh([1, 2, 3, 4, 5, 4, 7, 4, 9, 0], errors=7) == [1.0] * 6 + [3.0] * 4
    assert pretrain.weigh([1, 2, 0], errors=7) == [1.0] * 3


def test_branches_are_shared_out_to_rows_of_about_the_same_length():
    lengths = [9, 1, 5, 5, 8, 2, 7, 3]
    branches = [vlm.Branch([1] * (length - 1), [2]) for length in lengths]
    rows = pretrain.share_out(branches)
    assert sorted(pretrain.length(branch) for row in rows for branch in row) == sorted(lengths)
    assert [sum(map(pretrain.length, row)) for row in rows] == [10, 10, 10, 10]
