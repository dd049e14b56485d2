"""A video is read once: packed training and shared decoding give what separate sequences give."""

import copy

import pytest
import torch
import transformers

import dpo
import generate
import prompts
import vlm
from conftest import MODEL
from vlm import prefix

QUESTIONS = ["which way does the red square move?", "how many shapes are there?", "why does the blue triangle move?"]
ANSWERS = ["it moves up.", "there are two shapes.", "because the red square hits it."]
PROMPTS = [prompts.fill(prompts.DEFAULT.answer, question=question) for question in QUESTIONS]


@pytest.fixture
def video(model, tokenizer, frames):
    return vlm.Video(model, tokenizer, frames)


@pytest.fixture
def branches(tokenizer):
    """Each question with each answer."""
    branches = []
    for prompt in PROMPTS:
        branches += [vlm.encode_branch(tokenizer, prompt, answer) for answer in ANSWERS]
    return branches


# ------------------------------------------------------------------------------
# Training: one packed sequence


def test_pack_by_hand():
    # Two video tokens; branch 0: prompt 7, answer 8 9; branch 1: prompt 5 6, answer 4
    packed = vlm.pack(2, [vlm.Branch([7], [8, 9]), vlm.Branch([5, 6], [4])])
    assert packed.ids.tolist() == [7, 8, 9, 5, 6, 4]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert packed.targets.tolist() == [3, 4, 7]
    assert packed.branch.tolist() == [0, 0, 1]
    assert packed.mask.int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]


def logp_alone(model, video, branch):
    """Oracle: one ordinary causal sequence, every position scored, no mask and no positions given."""
    ids = torch.cat([video.ids, torch.tensor([branch.prompt + branch.answer])], 1)  # (1, T)
    logps = model(ids, **video.inputs, use_cache=False).logits[0, :-1].log_softmax(-1)  # (T - 1, vocabulary)
    of_tokens = logps.gather(1, ids[0, 1:, None])[:, 0]  # (T - 1,)
    return of_tokens[-len(branch.answer) :].sum()


def logps_alone(model, video, branches):
    return torch.stack([logp_alone(model, video, branch) for branch in branches])


def test_packed_log_probs_and_gradients_equal_separate_ones(model, video, branches):
    model = copy.deepcopy(model)
    parameters = dpo.freeze_weights(model)  # those that are not frozen
    weights = torch.linspace(-1, 1, len(branches))  # so that no two branches could be exchanged unseen

    packed, lengths = vlm.branch_logps(model, video, branches)
    packed_gradients = torch.autograd.grad((packed * weights).sum(), parameters)
    separate = logps_alone(model, video, branches)
    separate_gradients = torch.autograd.grad((separate * weights).sum(), parameters)

    assert lengths.tolist() == [len(branch.answer) for branch in branches]
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-6)
    for mine, theirs in zip(packed_gradients, separate_gradients):
        largest = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, atol=1e-5 * max(1, largest), rtol=1e-4)


def test_parts_tokenized_apart_are_the_whole_text(model, tokenizer):
    context = "<IMG_CONTEXT>" * model.config.image_seq_length
    frames = f"Frame1: <img>{context}</img>\nFrame2: <img>{context}</img>\n"
    chat = [
        {"role": "user", "content": frames + PROMPTS[0]},
        {"role": "assistant", "content": ANSWERS[0]},
    ]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    prefix = vlm.encode_prefix(tokenizer, model.config, 2)
    prompt, answer = vlm.encode_branch(tokenizer, PROMPTS[0], ANSWERS[0])
    assert prefix + prompt + answer == whole


# ------------------------------------------------------------------------------
# Answering: one cache


def answer_alone(model, tokenizer, video, prompt, max_new_tokens):
    """Oracle: transformers' own generate on one sequence, without a cache made before -> (text, whole)."""
    end = tokenizer.eos_token_id
    ids = torch.tensor([vlm.encode_branch(tokenizer, prompt).prompt])
    ids = torch.cat([video.ids, ids], 1)  # (1, T)
    out = model.generate(
        ids,
        **video.inputs,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=end,
        pad_token_id=end,
    )
    answer = out[0, ids.shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True).strip(), end in answer


def check_answers(model, tokenizer, video):
    [answers] = vlm.decode(model, tokenizer, [video], [PROMPTS], 20)
    assert answers == [answer_alone(model, tokenizer, video, prompt, 20) for prompt in PROMPTS]
    assert all(text for text, _ in answers)


def test_answers_from_one_cache_equal_one_generate_each(model, tokenizer, video):
    check_answers(model, tokenizer, video)


def test_the_video_is_read_once(model, tokenizer, frames, monkeypatch):
    """Whatever is asked: the tower runs once, without gradients, and the video is prefilled for the first question."""
    language_model = model.model.language_model
    forward = language_model.forward
    lengths = []

    def watched(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(language_model, "forward", watched)
    video = vlm.Video(model, tokenizer, frames)
    assert not video.inputs["mm_encoder_outputs"]["image"].pooler_output.requires_grad
    for prompt in PROMPTS:
        vlm.decode(model, tokenizer, [video], [[prompt]], 3)
    n_video = video.ids.shape[1]
    assert [length for length in lengths if length >= n_video] == [n_video]


def test_an_answer_that_meets_the_limit_is_not_whole(model, tokenizer, video):
    [[(_, whole)]] = vlm.decode(model, tokenizer, [video], [PROMPTS[:1]], 2)
    assert not whole


@pytest.fixture
def videos(model, tokenizer, frames):
    """The video, the video backwards, and the video with its colors exchanged."""
    return [vlm.Video(model, tokenizer, shown.copy()) for shown in (frames, frames[::-1], frames[..., ::-1])]


def test_videos_decoded_together_answer_as_each_alone(model, tokenizer, videos):
    # Each has another number of prompts: where a video has fewer, rows stand in
    what = prompts.fill(prompts.DEFAULT.answer, question="which objects are in the video?")
    asked = [[what], [what, *PROMPTS], [*PROMPTS[1:], what]]
    together = vlm.decode(model, tokenizer, videos, asked, 20)
    for video, own, answers in zip(videos, asked, together, strict=True):
        assert answers == [answer_alone(model, tokenizer, video, prompt, 20) for prompt in own]
    assert together[1][0] != together[2][-1]  # they look at their own videos: others have other colors


def test_sampling_does_not_depend_on_the_other_videos(model, tokenizer, videos):
    asked = [PROMPTS[:1], PROMPTS, PROMPTS[1:]]
    noise = generate.Noise(0, "abcdef", 2.0, 1.0)
    together = vlm.decode(model, tokenizer, videos, asked, 20, noise)
    for video, own, names, answers in zip(videos, asked, ("a", "bcd", "ef"), together, strict=True):
        noise = generate.Noise(0, names, 2.0, 1.0)
        assert [answers] == vlm.decode(model, tokenizer, [video], [own], 20, noise)


def test_rows_that_stand_in_end_at_once():
    """By hand: rows 0 and 2 have prompts of their own, row 1 is made to say 3, the end."""
    scores = torch.tensor([[1.0, 2.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 1.0]])
    processed = prefix.OwnRows([0, 2], end=3)(torch.zeros(3, 1), scores)
    assert processed.argmax(-1).tolist() == [1, 3, 2]
    assert processed[[0, 2]].equal(scores[[0, 2]])


def test_a_model_with_other_attention_is_refused(tokenizer, video):
    # It would see only what comes after the video, and answer all the same
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(MODEL).eval()
    with pytest.raises(AssertionError, match="not load_model's"):
        vlm.decode(theirs, tokenizer, [video], [QUESTIONS], 2)


# ------------------------------------------------------------------------------
# Both, with grouped-query attention


@pytest.fixture
def grouped(model, tmp_path):
    """A random model whose four query heads share two key heads, as those of InternVL2.5 do."""
    config = copy.deepcopy(model.config)
    config.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    transformers.InternVLForConditionalGeneration(config).save_pretrained(tmp_path)
    return vlm.load_model(tmp_path, ["cpu"])


def test_grouped_query_attention(grouped, tokenizer, frames, branches):
    video = vlm.Video(grouped, tokenizer, frames)
    packed, _ = vlm.branch_logps(grouped, video, branches)
    torch.testing.assert_close(packed, logps_alone(grouped, video, branches))
    check_answers(grouped, tokenizer, video)


# ------------------------------------------------------------------------------
# Sampling


def test_sampling_depends_on_seed_row_and_step_alone(model, tokenizer, video):
    def draw(names, seed=0):
        """Sample an answer to the first question for each of these rows."""
        noise = generate.Noise(seed, names, 2.0, 1.0)
        [answers] = vlm.decode(model, tokenizer, [video], [PROMPTS[:1] * len(names)], 20, noise)
        return [text for text, _ in answers]

    together = draw("abcdefgh")
    # The order of the batch does not matter, nor which other rows are in it
    assert draw("hgfedcba") == together[::-1]
    assert draw("a") + draw("b") + draw("c") == together[:3]
    # The row and the seed do
    assert len(set(together)) > 1
    assert draw("abcdefgh", seed=1) != together


def test_noise_draws_from_the_softmax():
    # The Gumbel-max trick: argmax(logits / t + Gumbel noise) falls on i with probability softmax(logits / t)_i
    logits = torch.tensor([1.0, 0.0, -1.0])
    scores = logits.repeat(4000, 1)
    drawn = generate.Noise(0, range(4000), 0.5, 1.0)(None, scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    expected = (logits / 0.5).softmax(-1)
    torch.testing.assert_close(shares, expected, atol=0.025, rtol=0)  # three standard errors
    # The first alone has 0.87 of the mass, so that it is the whole nucleus of 0.8
    nucleus = generate.Noise(0, range(4000), 0.5, 0.8)(None, scores).argmax(-1)
    assert nucleus.tolist() == [0] * 4000
