"""The preference loss against numbers worked by hand."""

import math

import pytest
import torch

from dpo import dpo_loss

# One pair: the policy likes the chosen answer better than the reference does (by 1 nat), and the rejected one less (by 2).
#   h = [log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)] = (-10 + 11) - (-14 + 12) = 3
PAIR = [torch.tensor([value]) for value in (-10.0, -14.0, -11.0, -12.0)]
BETA = 0.1


@pytest.mark.parametrize(
    "loss, smoothing, expected",
    [
        ("sigmoid", 0.0, 0.554355),  # DPO eq. 7: -log sigmoid(0.1 * 3) = log(1 + e^-0.3)
        (
            "sigmoid",
            0.1,
            0.584355,
        ),  # cDPO: 0.9 * log(1 + e^-0.3) + 0.1 * log(1 + e^0.3) = 0.9 * 0.554355 + 0.1 * 0.854355
        ("hinge", 0.0, 0.7),  # 1 - 0.3
        ("ipo", 0.0, 4.0),  # (3 - 1 / (2 * 0.1))^2 = (3 - 5)^2
    ],
)
def test_by_hand(loss, smoothing, expected):
    losses, chosen_rewards, rejected_rewards = dpo_loss(*PAIR, BETA, loss, smoothing)
    assert losses.tolist() == pytest.approx([expected], abs=1e-5)
    assert chosen_rewards.tolist() == pytest.approx([0.1])  # beta * (+1)
    assert rejected_rewards.tolist() == pytest.approx([-0.2])  # beta * (-2)


def test_hinge_is_satisfied_beyond_its_margin():
    easy = [torch.tensor([value]) for value in (-5.0, -30.0, -11.0, -12.0)]  # h = 6 + 18 = 24, beta * h = 2.4 > 1
    assert dpo_loss(*easy, BETA, "hinge")[0].item() == 0


def test_at_the_reference_the_loss_is_ln_2():
    same = torch.tensor([-7.0, -9.0])
    losses, *rewards = dpo_loss(same, same - 1, same, same - 1, BETA)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    assert torch.stack(rewards).abs().max() == 0


def test_gradient_is_the_one_of_the_paper():
    # DPO, section 4: grad = -beta * sigmoid(-beta * h) * (grad log pi(y_w) - grad log pi(y_l)); here sigmoid(-0.3) = 0.425557
    pair = [value.clone().requires_grad_() for value in PAIR]
    losses, chosen_rewards, _ = dpo_loss(*pair, BETA)
    losses.sum().backward()
    assert pair[0].grad.item() == pytest.approx(-0.0425557, abs=1e-6)
    assert pair[1].grad.item() == pytest.approx(+0.0425557, abs=1e-6)
    assert not chosen_rewards.requires_grad


def test_an_unknown_loss_and_different_shapes_are_refused():
    with pytest.raises(ValueError, match="unknown loss"):
        dpo_loss(*PAIR, BETA, "nonsense")
    with pytest.raises(AssertionError, match="different shapes"):
        dpo_loss(torch.zeros(2), *PAIR[1:], BETA)
