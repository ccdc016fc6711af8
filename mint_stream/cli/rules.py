"""`mint-stream adapters rules`: what a new revision does to production, and what a gate and a canary ask of it."""

from typing import Annotated

import typer

from mint_stream.cli.jobs import uri_of
from mint_stream.cli.options import AsJson, Bootstrap, Pool, Timeout, settings_from
from mint_stream.cli.output import print_record
from mint_stream.cli.running import ask
from mint_stream.cli.shares import basis_points
from mint_stream.errors import InvalidRule
from mint_stream.messages.adapters import PromotionRule
from mint_stream.messages.gates import GateTerms
from mint_stream.settings import Settings

ANSWER_S = 30.0
GATE, CANARY = "The gate", "The canary"


def rules(
    adapter_id: Annotated[str, typer.Argument(metavar="ADAPTER", help="The adapter's name.")],
    rule: Annotated[
        PromotionRule | None, typer.Argument(help="auto: an announce moves production; manual: a person does; gated: a gate decides.")
    ] = None,
    gated: Annotated[bool, typer.Option("--gated", help="The same as the rule gated.")] = False,
    dataset: Annotated[
        str | None, typer.Option(help="JSON lines with prompt or messages, and answer: a file or a uri.", rich_help_panel=GATE)
    ] = None,
    grader: Annotated[
        str, typer.Option(help="exact-match, contains, regex, reasoning-gym:TASK, or an installed one.", rich_help_panel=GATE)
    ] = "exact-match",
    floor: Annotated[float, typer.Option(help="The least mean score, 0 to 1.", rich_help_panel=GATE)] = 0.0,
    max_regression: Annotated[
        float, typer.Option(help="In mean score: so much worse than production is still no worse.", rich_help_panel=GATE)
    ] = 0.05,
    confidence: Annotated[float, typer.Option(help="Of every limit of gate and canary.", rich_help_panel=GATE)] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.", rich_help_panel=GATE)] = 64,
    canary: Annotated[
        str | None, typer.Option(help="A share of production's requests first, as 5%; default: none.", rich_help_panel=CANARY)
    ] = None,
    min_requests: Annotated[int, typer.Option(help="That the canary has to answer.", rich_help_panel=CANARY)] = 200,
    max_minutes: Annotated[float, typer.Option(help="After which it is rolled back.", rich_help_panel=CANARY)] = 60.0,
    max_error_rate: Annotated[float, typer.Option(rich_help_panel=CANARY)] = 0.02,
    latency_percentile: Annotated[float, typer.Option(help="At which its latency is compared.", rich_help_panel=CANARY)] = 95.0,
    max_latency_ratio: Annotated[float, typer.Option(help="Times production's.", rich_help_panel=CANARY)] = 1.5,
    canary_dataset: Annotated[
        str | None, typer.Option(help="Items scored while the canary runs: a file or a uri.", rich_help_panel=CANARY)
    ] = None,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    timeout: Timeout = ANSWER_S,
    as_json: AsJson = False,
) -> None:
    """Choose what a new revision does to production.

    Gated without a dataset: what the gate asked before. A candidate that failed is tried again when the rule is set again."""
    settings = settings_from(bootstrap, pool)
    chosen = _chosen(rule, gated, dataset)
    terms = None
    if dataset is not None:
        limits = {"min_requests": min_requests, "max_seconds": max_minutes * 60, "max_error_rate": max_error_rate}
        latency = {"latency_percentile": latency_percentile, "max_latency_ratio": max_latency_ratio}
        score = {"dataset_uri": canary_dataset}
        share = {} if canary is None else {"share_basis_points": basis_points(canary, "--canary"), **limits, **latency, **score}
        asked = {"grader": grader, "floor": floor, "max_regression": max_regression, "confidence": confidence, "max_tokens": max_tokens}
        terms = _checked({"dataset_uri": dataset, **asked, "canary": share or None}, settings)
    print_record(ask(settings, lambda client: client.set_rule(adapter_id, chosen, terms, timeout_s=timeout)), as_json)


def _chosen(rule: PromotionRule | None, gated: bool, dataset: str | None) -> PromotionRule:
    chosen = rule or ("gated" if gated or dataset else None)
    if chosen is None:
        raise typer.BadParameter("name a rule: auto, manual or gated", param_hint="RULE")
    if chosen != "gated" and (gated or dataset):
        raise typer.BadParameter(f"{chosen} and a gate exclude each other", param_hint="RULE")
    return chosen


def _checked(fields: dict[str, object], settings: Settings) -> GateTerms:
    """The terms. Raises InvalidRule and more when nobody could be judged by them."""
    from mint_stream.app.gating import check
    from mint_stream.client.requests import made

    terms = made(GateTerms, InvalidRule, **fields)
    canary = terms.canary
    if canary is not None and canary.dataset_uri is not None:
        canary = canary.model_copy(update={"dataset_uri": uri_of(canary.dataset_uri, settings)})
    stored = terms.model_copy(update={"dataset_uri": uri_of(terms.dataset_uri, settings), "canary": canary})
    check(stored, settings)
    return stored
