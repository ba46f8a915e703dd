"""Direct Preference Optimization in one file: torch, transformers, and the paper (arXiv:2305.18290).

    python examples/minimal_dpo.py MODEL_FOLDER pairs.jsonl OUT_FOLDER

pairs.jsonl holds {"prompt": ..., "chosen": ..., "rejected": ...} lines. This file is for reading, and it is the
oracle that the library is tested against: given the same pairs in the same order, both take the same steps.
It is slow: it pads, encodes every prompt twice and keeps a second model.
"""

import copy
import json
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BETA = 0.1  # strength of the KL constraint: small beta, far from the reference
LEARNING_RATE = 5e-7
BATCH = 8  # pairs in one optimizer step
MAX_GRAD_NORM = 1.0
WARMUP_STEPS = 0


def encode(tokenizer, pair):
    """Token ids of prompt, chosen and rejected. Both responses follow the same prompt ids and end with EOS."""
    prompt = tokenizer(pair["prompt"])["input_ids"]
    responses = []
    for text in (pair["chosen"], pair["rejected"]):
        joint = tokenizer(pair["prompt"] + text)["input_ids"]
        assert joint[: len(prompt)] == prompt, "a merge across the boundary: see preftune.chat.render"
        responses.append([*joint[len(prompt) :], tokenizer.eos_token_id])
    return prompt, *responses


def response_logps(model, prompts, responses):
    """log pi(y|x) of each response: the sum of its tokens' log-probabilities, prompt and padding left out."""
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    # The logits at position t predict token t + 1.
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    scored = torch.zeros_like(logps, dtype=torch.bool)
    for i, (p, r) in enumerate(zip(prompts, responses, strict=True)):
        scored[i, len(p) - 1 : len(p) - 1 + len(r)] = True
    return torch.where(scored, logps, 0.0).sum(1)


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    """Equation 7:  -log sigmoid( beta log pi(y_w|x)/ref(y_w|x) - beta log pi(y_l|x)/ref(y_l|x) ).

    beta log pi/ref is the implicit reward (up to a constant of the prompt, which cancels): the loss is the
    Bradley-Terry likelihood (equation 1) of a reward model that happens to be a language model.
    """
    reward_chosen = BETA * (policy_chosen - reference_chosen)
    reward_rejected = BETA * (policy_rejected - reference_rejected)
    return -F.logsigmoid(reward_chosen - reward_rejected), reward_chosen, reward_rejected


def lr_factor(step, total):
    """Linear warm-up, then linear decay. `step` counts from 1."""
    if step <= WARMUP_STEPS:
        return step / (WARMUP_STEPS + 1)
    return 1 - (step - WARMUP_STEPS - 1) / (total - WARMUP_STEPS)


def train(policy, batches, learning_rate=LEARNING_RATE):
    """DPO on batches of encoded pairs. Yields the metrics of each step, measured before its update."""
    policy.eval()  # dropout would make policy and reference differ for no reason
    reference = copy.deepcopy(policy).requires_grad_(False)  # the policy's state at step 0, frozen
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    for step, batch in enumerate(batches, start=1):
        prompts, chosen, rejected = zip(*batch, strict=True)
        policy_chosen = response_logps(policy, prompts, chosen)
        policy_rejected = response_logps(policy, prompts, rejected)
        with torch.no_grad():
            reference_chosen = response_logps(reference, prompts, chosen)
            reference_rejected = response_logps(reference, prompts, rejected)

        losses, reward_chosen, reward_rejected = dpo_loss(
            policy_chosen, policy_rejected, reference_chosen, reference_rejected
        )
        loss = losses.mean()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * lr_factor(step, len(batches))
        optimizer.step()
        optimizer.zero_grad()

        margins = (reward_chosen - reward_rejected).detach()
        yield {
            "step": step,
            "loss": loss.item(),  # ln 2 at step 1, where policy and reference are the same model
            "rewards/margins": margins.mean().item(),
            "rewards/accuracies": (margins > 0).float().mean().item(),
            "grad_norm": grad_norm.item(),
        }


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: python examples/minimal_dpo.py MODEL_FOLDER pairs.jsonl OUT_FOLDER")
    model_path, data_path, out_path = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    with open(data_path) as file:
        pairs = [encode(tokenizer, json.loads(line)) for line in file]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[pairs[i] for i in order[at : at + BATCH]] for at in range(0, len(order), BATCH)]
    for metrics in train(policy, batches):
        print(json.dumps(metrics))
    policy.save_pretrained(out_path)
    tokenizer.save_pretrained(out_path)


if __name__ == "__main__":
    main()
