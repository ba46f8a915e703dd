"""Direct Preference Optimization (arXiv:2305.18290) in one file, with torch and transformers only.

    python examples/minimal_dpo.py MODEL_FOLDER pairs.jsonl OUT_FOLDER

Each line of pairs.jsonl is {"prompt": ..., "chosen": ..., "rejected": ...}. This file is meant for reading. The tests
compare preftune with it: for the same pairs in the same order, both take the same steps. It is slow, because it pads
rows, processes every prompt twice, and keeps a second model in memory.
"""

import copy
import json
import sys

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BETA = 0.1  # strength of the KL constraint; with a smaller beta, the policy moves further from the reference
LEARNING_RATE = 5e-7
BATCH = 8  # pairs per optimizer step
MAX_GRAD_NORM = 1.0
WARMUP_STEPS = 0


def encode(tokenizer, pair):
    """Return the token ids of prompt, chosen and rejected. The responses end with EOS."""
    prompt = tokenizer(pair["prompt"])["input_ids"]
    responses = []
    for text in (pair["chosen"], pair["rejected"]):
        joint = tokenizer(pair["prompt"] + text)["input_ids"]
        assert joint[: len(prompt)] == prompt, "a token spans prompt and response; preftune.chat.render handles this"
        responses.append([*joint[len(prompt) :], tokenizer.eos_token_id])
    return prompt, *responses


def response_logps(model, prompts, responses):
    """Return log pi(y|x) of each response: the sum over its tokens, without prompt and padding."""
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

    beta log pi/ref is the implicit reward, up to a constant per prompt, which cancels. The loss is the negative
    log-likelihood of the Bradley-Terry model (equation 1) with this reward.
    """
    reward_chosen = BETA * (policy_chosen - reference_chosen)
    reward_rejected = BETA * (policy_rejected - reference_rejected)
    return -F.logsigmoid(reward_chosen - reward_rejected), reward_chosen, reward_rejected


def lr_factor(step, total):
    """Return the factor on the learning rate: linear warm-up, then linear decay. `step` starts at 1."""
    if step <= WARMUP_STEPS:
        return step / (WARMUP_STEPS + 1)
    return 1 - (step - WARMUP_STEPS - 1) / (total - WARMUP_STEPS)


def train(policy, batches, learning_rate=LEARNING_RATE):
    """Train on batches of encoded pairs. Yield the metrics of each step, measured before its update."""
    policy.eval()  # without dropout, which would make policy and reference differ
    reference = copy.deepcopy(policy).requires_grad_(False)  # a frozen copy of the initial policy
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
            "loss": loss.item(),  # ln 2 at step 1, because policy and reference are equal
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
