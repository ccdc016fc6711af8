"""`mint-stream generate`: one request, its answer."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_stream.cli.options import AsJson, Bootstrap, Pool, settings_from
from mint_stream.cli.output import print_json
from mint_stream.cli.running import ask
from mint_stream.errors import InvalidRequest
from mint_stream.messages.inference import InferenceChunk, InferenceResult, Sampling
from mint_stream.settings import Settings

if TYPE_CHECKING:
    from mint_stream.client.requests import Prompt

Ref = Annotated[str | None, typer.Option("--adapter", "-a", help="adapter, adapter@7 or adapter@alias; none: the bare base model.")]


def generate(
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Plain text to go on from; - reads standard input.")] = None,
    chat: Annotated[str | None, typer.Option("--chat", "-c", help="A user's message, put through the chat template.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="With --chat: the system message.")] = None,
    messages: Annotated[Path | None, typer.Option("--messages", help='A JSON file with [{"role": ..., "content": ...}, ...].')] = None,
    adapter: Ref = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it is made.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Send it and print its id; `mint-stream result` has the answer later.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 keeps every token.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    tenant: Annotated[str, typer.Option()] = "default",
    request_id: Annotated[str | None, typer.Option(help="Your own id; the same request sent twice is answered alike.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait; the request's deadline too.")] = 120.0,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    as_json: AsJson = False,
) -> None:
    """Ask for one completion and print it. An error answer is printed like every error and exits with 1."""
    from mint_stream.client.requests import made

    choice = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "stop": stop or (), "seed": seed}
    sampling = made(Sampling, InvalidRequest, **choice)
    asked = {"sampling": sampling, "tenant": tenant, "request_id": request_id, "timeout_s": timeout}
    settings = settings_from(bootstrap, pool)
    what = prompt_from(prompt, chat, system, messages)
    if no_wait:
        return _send(settings, what, adapter, as_json, asked)
    result = asyncio.run((_stream if stream else _whole)(settings, what, adapter, as_json, asked))
    return show_result(result, as_json, stream)


def prompt_from(prompt: str | None, chat: str | None, system: str | None, messages: Path | None) -> "Prompt":
    """The one prompt that the options give. Raises InvalidRequest for none or several."""
    given = [name for name, value in (("--prompt", prompt), ("--chat", chat), ("--messages", messages)) if value is not None]
    if len(given) != 1:
        raise InvalidRequest(f"give exactly one of --prompt, --chat, --messages; this command gives {', '.join(given) or 'none'}")
    if prompt is not None:
        return typer.get_text_stream("stdin").read() if prompt == "-" else prompt
    if chat is not None:
        turns = [{"role": "system", "content": system}] if system else []
        return [*turns, {"role": "user", "content": chat}]
    return _turns(messages or Path())


def _turns(path: Path) -> "Prompt":
    try:
        turns: Prompt = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"--messages {path}: {error}") from error
    return turns


def _send(settings: Settings, prompt: "Prompt", adapter: str | None, as_json: bool, asked: dict[str, Any]) -> None:
    deadline_s = asked.pop("timeout_s")
    ticket = ask(settings, lambda client: client.submit(prompt, adapter, deadline_s=deadline_s, **asked))
    if as_json:
        print_json(ticket)
    else:
        typer.echo(ticket.request_id)


async def _whole(settings: Settings, prompt: "Prompt", adapter: str | None, _: bool, asked: dict[str, Any]) -> InferenceResult:
    from mint_stream.client import Client

    async with Client(settings) as client:
        return await client.generate(prompt, adapter, **asked)


async def _stream(settings: Settings, prompt: "Prompt", adapter: str | None, as_json: bool, asked: dict[str, Any]) -> InferenceResult:
    from mint_stream.client import Client, StreamRestart

    async with Client(settings) as client:
        async for part in client.stream(prompt, adapter, **asked):
            if isinstance(part, InferenceResult):
                return part
            if isinstance(part, StreamRestart):
                typer.echo("\n[another worker begins anew]", err=True)
            else:
                _print_chunk(part, as_json)
    raise AssertionError("a stream ends with its result")


def _print_chunk(chunk: InferenceChunk, as_json: bool) -> None:
    if as_json:
        print_json(chunk)
    else:
        typer.echo(chunk.text, nl=False)


def show_result(result: InferenceResult, as_json: bool, streamed: bool = False) -> None:
    """Print an answer; an error is raised, or printed as JSON with exit code 1. `streamed`: its text was printed before."""
    from mint_stream.client import raise_for_error

    if as_json:
        print_json(result)
        if result.error is not None:
            raise typer.Exit(1)
        return
    raise_for_error(result)
    typer.echo("" if streamed else result.text)
    typer.echo(footnote(result), err=True)


def footnote(result: InferenceResult) -> str:
    """Who answered, how many tokens, and where the time went."""
    served, usage, timings = result.served_by, result.usage, result.timings
    who = "base" if served is None or served.adapter_id is None else f"{served.adapter_id}@{served.number}"
    tokens = "" if usage is None else f" · {usage.prompt_tokens} + {usage.completion_tokens} tokens"
    time = "" if timings is None else f" · {timings.total_ms:.0f} ms (queued {timings.queued_ms:.0f}, prefill {timings.prefill_ms:.0f})"
    return f"{who}{tokens}{time} · {result.finish_reason}"
