"""How a job stands, from everything that was said of it. Pure."""

from mint_stream.messages.training import JobState, TrainingEvent

AT_WORK: frozenset[JobState] = frozenset({"running", "publishing"})


def after(known: TrainingEvent | None, event: TrainingEvent) -> TrainingEvent:
    """The latest event with what earlier ones told and it does not: loss, revision and, while the job is trained, remaining time.

    Law: nothing said after the end, or under an older attempt, changes anything."""
    if known is None:
        return event
    if known.terminal or event.attempt < known.attempt:
        return known
    carried = ("loss", "number", "eta_s", "tokens_per_s") if event.state in AT_WORK else ("loss", "number")
    return event.model_copy(update={name: getattr(known, name) for name in carried if getattr(event, name) is None})
