"""How the tiny model is made: rows behind a video, and what counts in the loss."""

import pytest
import torch

import media
import vlm
from conftest import MODEL
from shapes import pretrain, texts, world

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


def test_a_step_of_the_language_phase_trains_the_language_model_alone(tmp_path, monkeypatch):
    model = vlm.load_model(MODEL, ["cpu"])
    model.save_pretrained(tmp_path)
    vlm.load_tokenizer(MODEL).save_pretrained(tmp_path)
    monkeypatch.setattr(pretrain, "WORKERS", 1)
    scenes = [world.make_scene(0, "pretrain", 0)]
    features = torch.zeros(1, pretrain.N_FRAMES, pretrain.GRID**2, model.config.text_config.hidden_size)
    try:
        pretrain.train_language(0, str(tmp_path), features, scenes, [(texts.PHASES[0], 1)], seed=0, batch_size=2)
    finally:
        torch.distributed.destroy_process_group()
    trained = vlm.load_model(tmp_path, ["cpu"])
    for (name, before), (_, after) in zip(model.named_parameters(), trained.named_parameters()):
        is_trained = "language_model.layers" in name and before.ndim == 2
        assert not is_trained or not torch.equal(before, after), name
        assert "language_model" in name or "lm_head" in name or torch.equal(before, after), name


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
