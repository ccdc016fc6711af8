"""docker-compose.yml without a container engine: its commands exist, its settings load, and run as written they make a working system."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from mint_stream.app.child import Child, ChildCommand
from mint_stream.app.datasets import upload
from mint_stream.app.importing import import_adapter
from mint_stream.app.probe import answers_ready, free_port
from mint_stream.bus.connection import Connection
from mint_stream.client import Client
from mint_stream.kernels import native_library
from mint_stream.messages.inference import Sampling
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingJob
from mint_stream.model.pull import resolve_base
from mint_stream.settings import Settings
from tests.factories import chat_lines, peft_files, tiny_base
from tests.provisioned import PARTITIONS
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "mint-stream"}
DOCKERFILE = re.sub(r"\\\n *", "", (ROOT / "infra/docker/Dockerfile").read_text())
"""A line an instruction."""
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ on this machine")
ROLES = ("register", "serve", "train", "evaluate")


def environment() -> dict[str, str]:
    """The settings every service of ours gets."""
    lines = (ROOT / "infra/docker/mint.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def command_of(name: str) -> tuple[str, ...]:
    """The service's command line, after the image's entry point `mint-stream`."""
    return (sys.executable, "-m", "mint_stream.cli.main", *OURS[name]["command"])


def test_every_service_waits_for_what_it_needs() -> None:
    for name in ROLES:
        conditions = {needed: how["condition"] for needed, how in OURS[name]["depends_on"].items()}
        assert conditions == dict.fromkeys(("topics", "bucket", "base"), "service_completed_successfully")


def test_every_volume_is_declared() -> None:
    used = {volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service.get("volumes", ())}
    assert used == set(COMPOSE["volumes"])


def test_the_environment_is_settings_that_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.store_uri == "s3://mint/store"
    assert settings.store.options["endpoint_url"] == "http://minio:9000"


def test_the_image_builds_from_files_that_exist() -> None:
    lines = (ROOT / "infra/docker/Dockerfile").read_text().splitlines()
    copied = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY")]
    assert all((ROOT / name).exists() for names in copied for name in names)


def in_the_image(command: str, room: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Python as a RUN line has it, in a folder that holds a copy of the sources beside what was installed."""
    (room / "mint_stream").mkdir()
    (room / "mint_stream" / "__init__.py").touch()
    python, *arguments = shlex.split(command)
    assert python == "python"
    return subprocess.run([sys.executable, *arguments], cwd=room, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_image_has_a_compiler_and_a_place_for_what_it_makes_that_its_user_may_write(tmp_path: Path) -> None:
    as_root, _ = DOCKERFILE.split("USER mint\n")
    assert re.search(r"RUN apt-get update && apt-get install .* g\+\+ ", as_root)
    place = re.search(r"install -d -o mint -g mint .* \"\$\((python .*?)\)(/kernels/__pycache__)\"", as_root)
    assert place is not None
    package = in_the_image(place[1], tmp_path).stdout.strip()
    assert Path(package + place[2]) == native_library.SOURCE.parent / "__pycache__", "where the library is looked for"


@pytest.mark.parametrize("found", [pytest.param(True, marks=needs_compiler), False], ids=["g++", "no g++"])
def test_an_image_without_the_kernels_is_not_built(found: bool, tmp_path: Path) -> None:
    [command] = re.findall(r"^RUN (.*)$", DOCKERFILE.split("USER mint\n")[1], re.MULTILINE)
    done = in_the_image(command, tmp_path, PATH=os.environ["PATH"] if found else str(tmp_path))
    assert (done.returncode == 0) == found and ("no g++ here" in done.stderr) != found


@pytest.mark.kafka
@pytest.mark.s3
@pytest.mark.long
@pytest.mark.timeout(180)
async def test_the_services_command_lines_make_a_working_system(connection: Connection, s3_server: S3Server, tmp_path: Path) -> None:
    """Each command exactly as written; only host names, keys, the base and the port differ, for here they share a machine."""
    s3_server.new_bucket("mint")
    here = placed(connection, s3_server.options, tmp_path)
    await finished("topics", here, tmp_path)
    ports = {name: free_port() for name in ROLES}
    children = [await started(name, {**here, "MINT_HTTP__PORT": str(port)}, tmp_path) for name, port in ports.items()]
    running = [asyncio.create_task(child.ended()) for child in children]
    try:
        for port in ports.values():
            await until_ready(port, running)
        settings = settings_of(here)
        await an_imported_adapter_answers(settings, tmp_path)
        await a_job_becomes_a_revision_in_the_bucket(settings, tmp_path)
    finally:
        for child in children:
            child.terminate()
        assert await asyncio.gather(*running) == [0] * len(ROLES)


@pytest.mark.model
@pytest.mark.timeout(120)
async def test_the_base_services_command_line_leaves_the_base_where_the_roles_look_for_it(smollm2_path: Path, tmp_path: Path) -> None:
    """The home is one where it was pulled before, for a test fetches it once; the roles share it by a volume."""
    home = smollm2_path.parents[1]
    assert OURS["base"]["command"][-1] == environment()["MINT_BASE"]
    await finished("base", {**environment(), "MINT_HOME": str(home)}, tmp_path)
    assert resolve_base(environment()["MINT_BASE"], home) == smollm2_path


def placed(connection: Connection, store: dict[str, str], room: Path) -> dict[str, str]:
    changed = {
        "MINT_KAFKA__BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "MINT_STORE__OPTIONS": json.dumps(store),
        "MINT_HTTP__HOST": "127.0.0.1",
    }
    local = {"MINT_BASE": str(tiny_base(room / "base", "llama")), "MINT_HOME": str(room / "home"), "MINT_PARTITIONS": str(PARTITIONS)}
    return {**environment(), **changed, **local, "MINT_POOL": f"compose-{uuid4().hex[:8]}", "OMP_WAIT_POLICY": "PASSIVE"}


async def started(name: str, environment: dict[str, str], room: Path) -> Child:
    return await Child.start(ChildCommand(name, command_of(name), environment), room / f"{name}.log")


async def finished(name: str, environment: dict[str, str], room: Path) -> None:
    child = await started(name, environment, room)
    assert await child.ended() == 0, child.last_line


async def until_ready(port: int, running: "list[asyncio.Task[int]]") -> None:
    async with asyncio.timeout(90):
        while not await answers_ready("127.0.0.1", port):
            assert not any(task.done() for task in running), "a service ended"
            await asyncio.sleep(0.1)


def settings_of(environment: dict[str, str]) -> Settings:
    """What a command in this environment would load."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return Settings.load()


async def a_job_becomes_a_revision_in_the_bucket(settings: Settings, room: Path) -> None:
    """Its dataset comes from S3, and its checkpoints and revision go there."""
    lines = room / "lines.jsonl"
    lines.write_bytes(chat_lines())
    dataset, name = upload(lines, settings), f"compose-{uuid4().hex[:8]}"
    job = TrainingJob(
        job_id=name,
        adapter_id=name,
        dataset_uri=dataset,
        lora=LoraSettings(rank=4),
        hyperparameters=Hyperparameters(steps=4, batch_size=4, max_length_tokens=256),
        checkpoint_every_steps=2,
        submitted_at_ms=1,
    )
    async with Client(settings) as client:
        await client.train(job)
        last = [event async for event in client.watch(name)][-1]
        assert (last.state, last.error) == ("succeeded", None)
        view = await client.adapter(name)
        answer = await client.generate("hello", name, sampling=Sampling(max_tokens=4), after=view.position)
    assert dataset.startswith("s3://") and str(view.revisions[-1].uri).startswith("s3://")
    assert answer.served_by is not None and answer.served_by.revision_digest == view.revisions[-1].digest


async def an_imported_adapter_answers(settings: Settings, room: Path) -> None:
    directory = room / "adapter"
    directory.mkdir()
    for file, content in peft_files(room / "base").items():
        (directory / file).write_bytes(content)
    name = f"compose-{uuid4().hex[:8]}"
    async with Client(settings) as client:
        event = await import_adapter(client, settings, name, str(directory))
        answer = await client.generate("hello", name, sampling=Sampling(max_tokens=4), after=event.catalog_position)
    assert answer.status == "ok", answer.error
    assert answer.served_by is not None
    assert answer.served_by.number == 1
