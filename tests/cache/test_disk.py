"""The disk tier: what it gives is whole whatever was killed, the budget holds for all workers together, and what is read is not removed."""

import fcntl
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from mint_stream.adapter import AdapterBlock, BlockForm
from mint_stream.adapter.block_file import block_name, block_parts
from mint_stream.cache import DiskTier
from tests.cache.blocks import BLOCKS
from tests.factories import random_weights

FILE_BYTES = {block.digest: sum(len(bytes(part)) for part in block_parts(block)) for block in BLOCKS}
ALL = sum(FILE_BYTES.values())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def tier(path: Path) -> Iterator[DiskTier]:
    with opened(path) as tier:
        yield tier


@contextmanager
def opened(path: Path, budget: int = ALL, dtype: torch.dtype = torch.float32) -> Iterator[DiskTier]:
    tier = DiskTier(path, budget, BlockForm(dtype))
    yield tier
    tier.close()


def file_of(path: Path, block: AdapterBlock) -> Path:
    return path / block.digest[:2] / block_name(block.digest, block.flat.dtype)


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != "lock")


def test_what_was_written_is_read_back_by_whoever_opens_the_directory(tier: DiskTier, path: Path) -> None:
    for block in BLOCKS:
        assert tier.read(block.digest) is None
        assert tier.write(block) and tier.write(block)
    with opened(path) as other:
        for block in BLOCKS:
            found = other.read(block.digest)
            assert found is not None and found.digest == block.digest and found.layout == block.layout
            assert torch.equal(found.flat, block.flat)
            for name, layer in block.layers.items():
                assert torch.equal(found.layers[name].A, layer.A) and torch.equal(found.layers[name].Bt, layer.Bt)
    assert tier.used_bytes == on_disk(path) == ALL
    assert (tier.tally.hits, tier.tally.misses, other.tally.hits) == (0, len(BLOCKS), len(BLOCKS))


def test_another_dtype_is_another_file(path: Path) -> None:
    half = AdapterBlock.build(random_weights(), torch.bfloat16)
    with opened(path, dtype=torch.bfloat16) as tier, opened(path) as other:
        assert tier.write(half)
        assert other.read(half.digest) is None
        found = tier.read(half.digest)
        assert found is not None and torch.equal(found.flat, half.flat)


@pytest.mark.parametrize("place", range(64))
def test_a_file_whose_beginning_has_a_flipped_bit_is_removed_and_not_given(tier: DiskTier, path: Path, place: int) -> None:
    """Also where the lengths are: nothing asks for memory of a length that the file has not."""
    block = BLOCKS[0]
    assert tier.write(block)
    whole = file_of(path, block).read_bytes()
    file_of(path, block).write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
    assert tier.read(block.digest) is None
    assert not file_of(path, block).exists()


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "of another"])
def test_a_file_that_is_not_what_was_written_is_removed_and_not_given(tier: DiskTier, path: Path, harm: str) -> None:
    block, other = BLOCKS[:2]
    for place in (0, 9, 30, 60, FILE_BYTES[block.digest] - 1):
        assert tier.write(block) and tier.write(other)
        whole = file_of(path, block).read_bytes()
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        harms = {"flip": flipped, "cut": whole[:place], "empty": b"", "of another": file_of(path, other).read_bytes()}
        file_of(path, block).write_bytes(harms[harm])
        assert tier.read(block.digest) is None
        assert not file_of(path, block).exists()
        assert tier.used_bytes == FILE_BYTES[other.digest] == on_disk(path)


def test_the_budget_holds_and_what_is_read_again_and_again_stays(path: Path) -> None:
    hot, *others = BLOCKS
    budget = 4 * max(FILE_BYTES.values())
    with opened(path, budget) as tier:
        tier.write(hot)
        for block in others * 3:
            assert tier.read(hot.digest) is not None
            tier.write(block)
            assert tier.used_bytes == on_disk(path) <= budget
        assert tier.tally.evictions > len(others)


def test_what_is_larger_than_the_budget_is_not_let_in_and_evicts_nothing(path: Path) -> None:
    small, large = sorted(BLOCKS, key=lambda block: block.nbytes)[:: len(BLOCKS) - 1]
    with opened(path, FILE_BYTES[small.digest]) as tier:
        assert tier.write(small)
        assert not tier.write(large)
        assert tier.read(small.digest) is not None


def test_what_somebody_reads_is_not_removed(path: Path) -> None:
    read, small, large = BLOCKS[3], BLOCKS[0], BLOCKS[7]
    with opened(path, FILE_BYTES[read.digest] + FILE_BYTES[small.digest]) as tier, ExitStack() as reading:
        assert tier.write(read)
        held = reading.enter_context(file_of(path, read).open("rb"))
        fcntl.flock(held, fcntl.LOCK_SH)
        assert not tier.write(large)
        assert tier.write(small)
        assert tier.used_bytes == on_disk(path) and file_of(path, read).exists()
        fcntl.flock(held, fcntl.LOCK_UN)
        assert tier.write(large)
        assert not file_of(path, read).exists()


@pytest.mark.parametrize("whole_shard", [False, True])
def test_what_somebody_else_removed_is_written_again(tier: DiskTier, path: Path, whole_shard: bool) -> None:
    """As a cleaner of old files does, which knows nothing of tiers."""
    removed, other = BLOCKS[:2]
    assert tier.write(removed) and tier.write(other)
    file_of(path, removed).unlink()
    if whole_shard:
        file_of(path, removed).parent.rmdir()
    assert tier.read(removed.digest) is None and removed.digest not in tier
    assert tier.write(removed) and tier.read(removed.digest) is not None
    assert tier.used_bytes == on_disk(path) == FILE_BYTES[removed.digest] + FILE_BYTES[other.digest]


def test_workers_see_what_others_wrote_and_removed(path: Path) -> None:
    draw = random.Random(0)
    with ExitStack() as workers:
        tiers = [workers.enter_context(opened(path, ALL // 2)) for _ in range(3)]
        for _ in range(200):
            tier, block = draw.choice(tiers), draw.choice(BLOCKS)
            tier.write(block) if draw.random() < 0.7 else tier.read(block.digest)
            assert on_disk(path) <= ALL // 2
        for tier in tiers:
            tier.write(BLOCKS[0])
            assert tier.used_bytes == on_disk(path)


def test_a_directory_that_is_over_a_smaller_budget_is_brought_under_it_by_the_next_write(tier: DiskTier, path: Path) -> None:
    for block in BLOCKS[1:]:
        tier.write(block)
    with opened(path, ALL // 3) as smaller:
        assert smaller.write(BLOCKS[0])
        assert smaller.used_bytes == on_disk(path) <= ALL // 3


def test_a_disk_that_cannot_be_written_costs_nothing_but_the_tier(tier: DiskTier, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path / "new").rmdir()
    assert not tier.write(BLOCKS[0])
    assert "not written" in caplog.text and tier.read(BLOCKS[0].digest) is None
    assert not on_disk(path)


def test_leftovers_of_dead_writers_are_swept_at_start_and_those_of_living_ones_are_not(tier: DiskTier, path: Path) -> None:
    left, living = path / "new" / "left", path / "new" / "living"
    left.write_bytes(b"half a")
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with opened(path):
            assert not left.exists() and living.exists()


@pytest.mark.long
@pytest.mark.timeout(120)
def test_kill_9_at_any_moment_leaves_nothing_that_is_read_as_whole(path: Path) -> None:
    """Three workers write and read under a budget for half; each is killed and replaced, time and again."""
    budget = ALL // 2
    for seed in range(4):
        workers = [started(path, budget, 3 * seed + number) for number in range(3)]
        for worker in workers:
            for _ in range(5 + 20 * seed):
                assert worker.stdout is not None and worker.stdout.readline() == b"ok\n", worker.communicate()
            worker.kill()
            worker.communicate()
        with opened(path, budget) as tier:
            assert not list((path / "new").iterdir())
            for block in BLOCKS:
                found = tier.read(block.digest)
                assert found is None or torch.equal(found.flat, block.flat)
            assert tier.tally.hits
            tier.write(BLOCKS[0])
            assert tier.used_bytes == on_disk(path) <= budget


def started(path: Path, budget: int, seed: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.cache.disk_process", str(path), str(budget), str(seed)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
