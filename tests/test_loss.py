"""The preference loss against numbers worked by hand."""

import math

import pytest
import torch

from dpo import dpo_loss

# One pair: the policy likes the chosen answer better than the reference does (by 1 nat), and the rejected one less
# (by 2). The order is dpo_loss's: policy chosen, policy rejected, reference chosen, reference rejected.
#
#   h = [log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)]
#     = (-10 + 11) - (-14 + 12) = 3
PAIR = [torch.tensor([logp]) for logp in (-10.0, -14.0, -11.0, -12.0)]
BETA = 0.1


@pytest.mark.parametrize(
    "loss, smoothing, expected",
    [
        # DPO, equation 7: -log sigmoid(0.1 * 3) = log(1 + e^-0.3)
        ("sigmoid", 0.0, 0.554355),
        # cDPO: 0.9 * log(1 + e^-0.3) + 0.1 * log(1 + e^0.3) = 0.9 * 0.554355 + 0.1 * 0.854355
        ("sigmoid", 0.1, 0.584355),
        # 1 - 0.3
        ("hinge", 0.0, 0.7),
        # (3 - 1 / (2 * 0.1))^2 = (3 - 5)^2
        ("ipo", 0.0, 4.0),
    ],
)
def test_by_hand(loss, smoothing, expected):
    losses, chosen_rewards, rejected_rewards = dpo_loss(*PAIR, BETA, loss, smoothing)
    assert losses.tolist() == pytest.approx([expected], abs=1e-5)
    assert chosen_rewards.tolist() == pytest.approx([0.1])  # beta * (+1)
    assert rejected_rewards.tolist() == pytest.approx([-0.2])  # beta * (-2)


def test_hinge_is_satisfied_beyond_its_margin():
    # h = 6 + 18 = 24, and beta * h = 2.4 is more than 1
    easy = [torch.tensor([logp]) for logp in (-5.0, -30.0, -11.0, -12.0)]
    losses, _, _ = dpo_loss(*easy, BETA, "hinge")
    assert losses.item() == 0


def test_at_the_reference_the_loss_is_ln_2():
    chosen = torch.tensor([-7.0, -9.0])
    rejected = chosen - 1
    losses, *rewards = dpo_loss(chosen, rejected, chosen, rejected, BETA)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2)])
    assert torch.stack(rewards).abs().max() == 0


def test_gradient_is_the_one_of_the_paper():
    # DPO, section 4: the gradient is -beta * sigmoid(-beta * h) * (grad log pi(y_w) - grad log pi(y_l)).
    # Here sigmoid(-0.3) = 0.425557.
    pair = [logp.clone().requires_grad_() for logp in PAIR]
    losses, chosen_rewards, _ = dpo_loss(*pair, BETA)
    losses.sum().backward()
    chosen, rejected, *_ = pair
    assert chosen.grad.item() == pytest.approx(-0.0425557, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(+0.0425557, abs=1e-6)
    assert not chosen_rewards.requires_grad


def test_an_unknown_loss_and_different_shapes_are_refused():
    with pytest.raises(ValueError, match="unknown loss"):
        dpo_loss(*PAIR, BETA, "nonsense")
    with pytest.raises(AssertionError, match="different shapes"):
        dpo_loss(torch.zeros(2), *PAIR[1:], BETA)
