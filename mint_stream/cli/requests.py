"""`mint-stream result` and `mint-stream cancel`: what can be done about a request that was sent before."""

from typing import Annotated

import typer

from mint_stream.cli.generate import show_result
from mint_stream.cli.options import AsJson, Bootstrap, settings_from
from mint_stream.cli.output import print_json
from mint_stream.cli.running import ask

RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="The request's id.")]
Tenant = Annotated[str, typer.Option(help="Whose request it is.")]


def result(
    request_id: RequestId,
    tenant: Tenant = "default",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a result that is not there yet.")] = 120.0,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Print the result of a request that was sent with `generate --no-wait`, or by anything else that named no reply_to."""
    show_result(ask(settings_from(bootstrap), lambda client: client.result_of(request_id, tenant, timeout)), as_json)


def cancel(
    request_id: RequestId,
    tenant: Tenant = "default",
    reason: Annotated[str, typer.Option(help="Why; its result will say so.")] = "",
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Stop working on a request. Its result will be the error `cancelled`, unless it is already there."""
    ask(settings_from(bootstrap), lambda client: client.cancel(request_id, reason, tenant))
    if as_json:
        print_json({"request_id": request_id, "tenant": tenant, "action": "cancel"})
    else:
        typer.echo(f"request {request_id}: cancel requested")
