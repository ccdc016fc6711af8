"""What commands print, as functions of what they are given: tables, JSON, notes and footnotes."""

import json

import pytest

from mint_stream.cli.generate import footnote, prompt_from
from mint_stream.cli.options import settings_from
from mint_stream.cli.output import plain, print_json, print_record, print_table
from mint_stream.cli.watching import ending, note_of
from mint_stream.errors import InvalidRequest
from mint_stream.messages.inference import InferenceResult, ServedBy, Timings, TokenUsage
from mint_stream.messages.shared import CatalogPosition, ErrorBody
from mint_stream.messages.training import TrainingEvent


def event(**fields: object) -> TrainingEvent:
    about = {"job_id": "j", "adapter_id": "poet", "tenant": "t", "worker_id": "w", "state": "running", "steps": 8, "at_ms": 1}
    return TrainingEvent(**{**about, **fields})


def result(**fields: object) -> InferenceResult:
    about = {"request_id": "r", "tenant": "t", "request_digest": "d" * 64, "status": "ok", "text": "x", "finish_reason": "stop"}
    return InferenceResult(**{**about, "completed_at_ms": 1, **fields})


def test_records_are_plain_wherever_they_lie_and_what_is_not_set_is_left_out():
    position = CatalogPosition(partition=1, offset=2)
    nested = {"a": [position], "b": (position,), "c": {"d": position}, "e": None}
    expected = {"partition": 1, "offset": 2}
    assert plain(nested) == {"a": [expected], "b": [expected], "c": {"d": expected}, "e": None}
    assert "error" not in plain(event())


def test_json_is_one_line_and_keeps_letters_as_they_are(capsys: pytest.CaptureFixture[str]):
    print_json({"text": "größer\nals"})
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and "größer" in shown and json.loads(shown) == {"text": "größer\nals"}


def test_a_table_aligns_its_columns_and_shows_a_dash_for_nothing(capsys: pytest.CaptureFixture[str]):
    print_table(("name", "size"), [("a", 1), ("long name", None), ("b", 0)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["name", "size"], ["a", "1"], ["long", "name", "-"], ["b", "0"]]
    assert len({line.rindex(line.split()[-1]) for line in lines}) == 1
    assert all(line == line.rstrip() for line in lines)


def test_a_piped_table_is_never_wrapped(capsys: pytest.CaptureFixture[str]):
    print_table((), [("x" * 500, "y" * 500)])
    assert capsys.readouterr().out.splitlines() == [f"{'x' * 500}  {'y' * 500}"]


def test_a_record_is_lines_for_people_and_a_document_for_machines(capsys: pytest.CaptureFixture[str]):
    print_record(CatalogPosition(partition=1, offset=2), as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["partition", "1"], ["offset", "2"]]
    print_record(CatalogPosition(partition=1, offset=2), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"partition": 1, "offset": 2}


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/x]", "line [3]: expected [", ":warning:"])
def test_somebody_elses_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], text: str):
    print_table(("error",), [(text,)])
    assert capsys.readouterr().out.splitlines()[1] == text


def test_a_note_has_what_the_event_has():
    assert note_of(event()) == ""
    assert note_of(event(loss=0.12345, tokens_per_s=99.6, number=7)) == "loss 0.1235 · 100 tokens/s · revision 7"
    assert note_of(event(number=7)) == "revision 7"


def test_the_last_line_of_a_job_says_how_and_where_it_ended():
    assert ending(event(state="succeeded", step=8, number=7)) == "job j succeeded at step 8/8: revision 7"
    assert ending(event(state="cancelled", step=3)) == "job j cancelled at step 3/8"
    failed = event(state="failed", step=3, number=7, error=ErrorBody(code="training-diverged", message="loss is nan"))
    assert ending(failed) == "job j failed at step 3/8: training-diverged: loss is nan"


def test_a_footnote_says_who_answered_how_many_tokens_and_where_the_time_went():
    assert footnote(result()) == "base · stop"
    served = ServedBy(adapter_id="poet", number=3, revision_digest="a" * 64, base_digest="b" * 64, worker_id="w")
    usage = TokenUsage(prompt_tokens=5, completion_tokens=2)
    timings = Timings(bus_ms=0, admit_ms=0, parked_ms=0, queued_ms=1, prefill_ms=2, decode_ms=3, total_ms=6.4)
    told = footnote(result(served_by=served, usage=usage, timings=timings))
    assert told.startswith("poet@3 · 5 + 2 tokens · 6 ms (queued 1, prefill 2)") and told.endswith(" · stop")


def test_exactly_one_way_to_give_a_prompt(tmp_path):
    turns = tmp_path / "turns.json"
    turns.write_text('[{"role": "user", "content": "x"}]')
    assert prompt_from("abc", None, None, None) == "abc"
    assert prompt_from(None, "hi", None, None) == [{"role": "user", "content": "hi"}]
    assert prompt_from(None, "hi", "be brief", None)[0] == {"role": "system", "content": "be brief"}
    assert prompt_from(None, None, None, turns) == [{"role": "user", "content": "x"}]
    with pytest.raises(InvalidRequest, match="gives --prompt, --chat"):
        prompt_from("abc", "hi", None, None)
    with pytest.raises(InvalidRequest, match="gives none"):
        prompt_from(None, None, None, None)


def test_the_command_line_goes_before_the_environment_and_leaves_the_rest_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("MINT_KAFKA__BOOTSTRAP_SERVERS", "environment:1")
    monkeypatch.setenv("MINT_KAFKA__SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("MINT_POOL", "environment")
    settings = settings_from(bootstrap="given:2", home=tmp_path)
    assert (settings.kafka.bootstrap_servers, settings.kafka.security_protocol) == ("given:2", "SSL")
    assert (settings.pool_name, settings.home) == ("environment", tmp_path)
    assert settings_from(pool="given").pool_name == "given"
    assert settings_from().kafka.bootstrap_servers == "environment:1"


def test_a_base_given_by_path_names_its_pool(monkeypatch: pytest.MonkeyPatch, tmp_path):
    assert settings_from(base=str(tmp_path / "Llama")).pool_name == "llama"
