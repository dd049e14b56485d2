"""A video is read once: packed training and shared decoding give what separate sequences give."""

import copy

import pytest
import torch
import transformers

import common
import generate
from conftest import MODEL

QUESTIONS = ["which way does the red square move?", "how many shapes are there?", "why does the blue triangle move?"]
ANSWERS = ["it moves up.", "there are two shapes.", "because the red square hits it."]


@pytest.fixture
def branches(tokenizer):
    return [
        common.encode_branch(tokenizer, common.ANSWER_PROMPT.format(question=question), answer)
        for question in QUESTIONS
        for answer in ANSWERS
    ]


def alone(model, video, prompt, answer):
    """Oracle: one ordinary causal sequence, pixels features and all, every position scored, no mask and no positions given."""
    ids = torch.cat([video.ids, torch.tensor([prompt + answer])], 1)
    logps = model(ids, **video.inputs, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[-len(answer) :, 0].sum()


def test_pack_by_hand():
    # two video tokens; branch 0: prompt 7, answer 8 9; branch 1: prompt 5 6, answer 4
    ids, positions, mask, targets, branch = common.pack(2, [([7], [8, 9]), ([5, 6], [4])])
    assert ids.tolist() == [7, 8, 9, 5, 6, 4]
    assert positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert targets.tolist() == [3, 4, 7] and branch.tolist() == [0, 0, 1]
    assert mask.int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]


def test_packed_log_probs_and_gradients_equal_separate_ones(model, tokenizer, frames, branches):
    video = common.Video(model, tokenizer, frames)
    weights = torch.linspace(-1, 1, len(branches))  # so that no two branches could be exchanged unseen
    parameters = list(model.model.language_model.parameters())

    packed, lengths = common.branch_logps(model, video, branches)
    packed_gradients = torch.autograd.grad((packed * weights).sum(), parameters)
    separate = torch.stack([alone(model, video, *branch) for branch in branches])
    separate_gradients = torch.autograd.grad((separate * weights).sum(), parameters)

    assert lengths.tolist() == [len(answer) for _, answer in branches]
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-6)
    for mine, theirs in zip(packed_gradients, separate_gradients):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * max(1, theirs.abs().max().item()), rtol=1e-4)


@pytest.fixture
def grouped(model, tokenizer, tmp_path):
    """A random model whose four query heads share two key heads, as those of InternVL2.5 do (grouped-query attention)."""
    config = copy.deepcopy(model.config)
    config.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    transformers.InternVLForConditionalGeneration(config).save_pretrained(tmp_path)
    return common.load_model(tmp_path, ["cpu"])


def test_grouped_query_attention(grouped, tokenizer, frames, branches):
    video = common.Video(grouped, tokenizer, frames)
    torch.testing.assert_close(
        common.branch_logps(grouped, video, branches)[0],
        torch.stack([alone(grouped, video, *branch) for branch in branches]),
    )
    test_decoding_behind_one_cache_equals_one_generate_each(grouped, tokenizer, frames)


def test_decoding_behind_one_cache_equals_one_generate_each(model, tokenizer, frames):
    video = common.Video(model, tokenizer, frames)
    prompts = [common.ANSWER_PROMPT.format(question=question) for question in QUESTIONS]
    end = tokenizer.eos_token_id
    for (text, whole), prompt in zip(common.decode(model, tokenizer, video, prompts, 20), prompts):
        ids = torch.cat([video.ids, torch.tensor([common.encode_branch(tokenizer, prompt)[0]])], 1)
        out = model.generate(
            ids,
            **video.inputs,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=end,
            pad_token_id=end,
        )[0, ids.shape[1] :]
        assert whole == (end in out) and text == tokenizer.decode(out, skip_special_tokens=True).strip() != ""


def test_the_video_is_read_once(model, tokenizer, frames, monkeypatch):
    """However much is asked: the tower runs for the first question alone, without gradients, and the video is prefilled once."""
    lengths, forward = [], model.model.language_model.forward
    monkeypatch.setattr(
        model.model.language_model,
        "forward",
        lambda *args, **kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]) or forward(*args, **kwargs),
    )
    video = common.Video(model, tokenizer, frames)
    assert not video.inputs["mm_encoder_outputs"]["image"].pooler_output.requires_grad
    for question in QUESTIONS:
        common.decode(model, tokenizer, video, [common.ANSWER_PROMPT.format(question=question)], 3)
    assert [length for length in lengths if length >= video.ids.shape[1]] == [video.ids.shape[1]]


def test_a_model_with_other_attention_is_refused(model, tokenizer, frames):
    # it would see only what stands behind the video, and answer all the same
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(MODEL).eval()
    with pytest.raises(AssertionError, match="not load_model's"):
        common.decode(theirs, tokenizer, common.Video(model, tokenizer, frames), QUESTIONS, 2)


def test_an_answer_that_meets_the_limit_is_not_whole(model, tokenizer, frames):
    video = common.Video(model, tokenizer, frames)
    [(_, whole)] = common.decode(model, tokenizer, video, [common.ANSWER_PROMPT.format(question=QUESTIONS[0])], 2)
    assert not whole


def test_parts_tokenized_apart_are_the_whole_text(model, tokenizer):
    question, answer = common.ANSWER_PROMPT.format(question=QUESTIONS[0]), ANSWERS[0]
    context = "<IMG_CONTEXT>" * model.config.image_seq_length
    chat = [
        {"role": "user", "content": f"Frame1: <img>{context}</img>\nFrame2: <img>{context}</img>\n{question}"},
        {"role": "assistant", "content": answer},
    ]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    apart = sum(
        (common.encode_prefix(tokenizer, model.config, 2), *common.encode_branch(tokenizer, question, answer)), []
    )
    assert apart == whole


def test_sampling_depends_on_seed_row_and_step_alone(model, tokenizer, frames):
    video = common.Video(model, tokenizer, frames)
    draw = lambda names, seed=0: [
        text
        for text, _ in common.decode(
            model,
            tokenizer,
            video,
            [common.ANSWER_PROMPT.format(question=QUESTIONS[0])] * len(names),
            20,
            generate.Noise(seed, names, 2.0, 1.0),
        )
    ]
    together = draw("abcdefgh")
    assert draw("hgfedcba") == together[::-1]  # the order of the batch does not matter,
    assert [draw([name])[0] for name in "abc"] == together[:3]  # nor who else is in it,
    assert len(set(together)) > 1 and draw("abcdefgh", 1) != together  # but the row and the seed do


def test_noise_draws_from_the_softmax():
    # the Gumbel-max trick: argmax(logits / t + Gumbel noise) falls on i with probability softmax(logits / t)_i
    logits = torch.tensor([[1.0, 0.0, -1.0]]).repeat(4000, 1)
    drawn = generate.Noise(0, range(4000), 0.5, 1.0)(None, logits).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(-1), atol=0.025, rtol=0)  # three standard errors
    nucleus = generate.Noise(0, range(4000), 0.5, 0.8)(None, logits).argmax(-1)  # the first alone has 0.87 of the mass
    assert nucleus.tolist() == [0] * 4000
