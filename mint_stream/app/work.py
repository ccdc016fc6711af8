"""Serving and training in one process, on one resident base: training takes the gaps."""

from contextlib import ExitStack

from mint_stream.app import logs
from mint_stream.app.resident import Resident
from mint_stream.app.serve import ServeRole
from mint_stream.app.shell import Shell
from mint_stream.app.train import TrainRole
from mint_stream.app.workplace import Workplace
from mint_stream.client.connect import connection_from
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings


async def run(settings: Settings) -> None:
    """Serve and train until told to stop. Raises a Stop that says what a person has to change."""
    logs.configure(settings.log_json)
    connection, metrics = connection_from(settings), Metrics()
    resident = Resident(settings, both=True)
    with ExitStack() as held:
        office = held.enter_context(Workplace(settings.home, "serve", settings.worker_id))
        school = held.enter_context(Workplace(settings.home, "train", settings.worker_id and f"{settings.worker_id}-train"))
        serve = ServeRole(settings, connection, metrics, office, resident)
        train = TrainRole(settings, connection, metrics, school, resident=resident)
        await Shell((serve, train), connection, metrics).serve(settings.http)
