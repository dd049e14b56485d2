"""Exercise of lesson 3: the DPO loss.

Level 2 of 3, about 30 minutes. Check it: python -m course.check 3
Hint: equation 7 of arXiv 2305.18290; dpo.dpo_loss is what the stage does, with three variants more.
"""


def dpo_loss(
    policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta
):
    """Compute the loss of B pairs.

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: (B,) each,
            log-probs of whole answers
        beta: strength of the tie to the reference

    Returns:
        losses, chosen_rewards, rejected_rewards: (B,) each; rewards carry no gradient
    """
    raise NotImplementedError
