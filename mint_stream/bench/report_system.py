"""README's blocks of the benchmarks of a whole system: hand-off, roll-back, routing, learning from grades and the bus."""

from collections.abc import Callable, Mapping
from typing import Any

from mint_stream.bench.markdown import machine_name, table

STAGES = {
    "write": "checkpoint and files durable",
    "announce": "announce acknowledged",
    "catalogued": "event at the client",
    "request": "request at the worker",
    "applied": "catalog applied, admitted",
    "loaded": "adapter loaded",
    "prefill": "queued and prefilled",
    "first_token": "first text at the client",
}
SIDES = {"ours": "serving worker, null engine", "raw": "raw aiokafka"}


def _handoff(found: Mapping[str, Any]) -> str:
    work, ratios = found["workload"], found["ratios"]
    rows = [
        _percentiles("last optimizer step to the client's first token", found["handoff_ms"]),
        _percentiles("of it: one prefill of the engine alone", found["prefill_ms"]),
        _percentiles("full checkpoint: merge, write, new process, first token", found["baseline_cold_ms"]),
        _percentiles("full checkpoint: loaded by a warm process, first token", found["baseline_warm_ms"]),
    ]
    load = f"rank {work['rank']}, {work['prompt_tokens']} prompt tokens, {work['dtype']}, n = {found['n']}"
    stages = ((STAGES[name], f"{ms:.0f}") for name, ms in found["stages_ms"].items())
    return _block(
        f"`mint-stream bench handoff`: {load}, baselines n = {found['baseline_cold_ms']['n']}, on {machine_name(found['machine'])}:",
        table(("ms", "p50", "p99", "min to max"), rows),
        f"That is {ratios['vs_cold']:.1f}x faster than the new process and {ratios['vs_warm']:.1f}x than the warm one.",
        table(("stage of a hand-off", "ms, p50"), stages),
    )


_SINCE = {
    "in_force_ms": "command to the first moment from which no request sent is answered by the other revision",
    "request_alone_ms": "a request alone",
}
"""Figures of roll-backs that results from before they were measured have not."""


def _rollback(found: Mapping[str, Any]) -> str:
    rows = [
        _percentiles("command to the first result of the previous revision", found["effect_ms"]),
        _percentiles("command to its event at the client", found["event_ms"]),
        _percentiles("any request of the stream", found["request_ms"]),
    ]
    rows += [_percentiles(what, found[figure]) for figure, what in _SINCE.items() if figure in found]
    load = f"a request every {found['workload']['every_ms']:g} ms, n = {found['n']}"
    return _block(
        f"`mint-stream bench rollback`: {load}, on {machine_name(found['machine'])}:", table(("ms", "p50", "p99", "min to max"), rows)
    )


def _routing(found: Mapping[str, Any]) -> str:
    work = found["workload"]
    rows = [_percentiles("over Kafka", found["served_ms"]), _percentiles("the engine directly", found["direct_ms"])]
    load = f"{work['adapters']} adapters, {work['prompt_tokens']} + {work['new_tokens']} tokens, {work['dtype']}, n = {found['n']} rounds"
    together = f"{found['together_s']['median']:.1f} s against {found['full_checkpoint_server_s']['median']:.1f} s"
    share, ratio = found["share_of_latency"], found["ratio_vs_full_checkpoint_server"]
    return _block(
        f"`mint-stream bench routing`: {load}, on {machine_name(found['machine'])}:",
        table(("one request at a time, ms", "p50", "p99", "min to max"), rows),
        f"Bus, resolve and admission are {share:.1%} of a request's latency. A round of {work['requests']} requests at once takes "
        f"{together} where a full checkpoint is loaded at each switch: {ratio:.1f}x.",
    )


def _bus(found: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{trip['p50']:.1f}", f"{trip['p99']:.1f}", f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}")
        for side, name in SIDES.items()
        for trip, rate in ((found["round_trip_ms"][side], found["sustained_per_s"][side]),)
    ]
    memory, backlog = found["backlog"]["ours"]["worker_mib"], found["workload"]["backlog"]
    return _block(
        f"`mint-stream bench bus`: n = {found['n']} rounds of {found['workload']['requests']}, on {machine_name(found['machine'])}:",
        table(("", "round trip, ms, p50", "p99", "requests/s out of a backlog", "min to max"), rows),
        f"A round trip takes {found['latency_ratio']['median']:.2f}x the raw one, the sustained rate is {found['sustained_share']:.0%} of "
        f"the raw one. Of {backlog:,} waiting requests each had one visible result; the worker held {memory['first']:.0f} MiB after a "
        f"tenth of them, {memory['most']:.0f} at most.",
    )


def _rl(found: Mapping[str, Any]) -> str:
    work, (low, high) = found["workload"], found["gain_interval_95"]
    load = f"{work['steps']} steps of {work['questions']} x {work['group_size']} answers, loss {work['loss']}, rank {work['rank']}"
    rows = [
        ("after the supervised warm-up", f"{found['score_before']:.1%}"),
        ("after learning from graded answers", f"{found['score_after']:.1%}"),
        ("gain, 95 % interval over pairs", f"{found['gain']:+.1%} ({low:+.1%} to {high:+.1%})"),
    ]
    drawn, seconds = found["rollouts"], {part: f"{value:.0f} s" for part, value in found["seconds"].items()}
    return _block(
        f"`mint-stream bench rl`: {load}, on {machine_name(found['machine'])}:",
        table((f"held-out items, n = {found['n']}, grader {work['grader']}", "score"), rows),
        f"{drawn['graded']} answers were drawn by the serving worker and graded, {drawn['dropped']} dropped, none by a revision more than "
        f"{max(found['staleness'])} behind. Warm-up {seconds['warm_up']}, learning {seconds['rl']}, all of it {seconds['total']}.",
    )


def _percentiles(name: str, found: Mapping[str, float]) -> tuple[str, ...]:
    return (name, f"{found['p50']:.0f}", f"{found['p99']:.0f}", f"{found['min']:.0f} to {found['max']:.0f}")


def _block(*parts: str) -> str:
    return "\n\n".join(parts)


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "handoff.json": _handoff,
    "rollback.json": _rollback,
    "routing.json": _routing,
    "rl.json": _rl,
    "bus.json": _bus,
}
"""By the file of a committed result."""
