"""One training job as a user of PEFT runs it, in a process of its own: load the base, load the adapter, step.

Reads {base, adapter, dtype, steps, learning_rate, weight_decay, max_grad_norm, sequences} as JSON from stdin and prints
{"training_s", "loss"}: the seconds of the steps alone, and the last loss.
"""

import json
import sys
import time
import warnings

import peft
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Train and print."""
    work = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(work["base"], dtype=getattr(torch, work["dtype"]), local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(model, work["adapter"], is_trainable=True).train()
    learned = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=work["learning_rate"], weight_decay=work["weight_decay"])
    begun = time.perf_counter()
    for number in range(work["steps"]):
        tokens = torch.tensor([work["sequences"][number]])
        loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, work["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
    sys.stdout.write(json.dumps({"training_s": time.perf_counter() - begun, "loss": float(loss)}) + "\n")


if __name__ == "__main__":
    main()
