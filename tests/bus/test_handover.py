"""What a gained partition begins with when its group's coordinator is moving, loading, or has never heard of it."""

from collections.abc import Collection

from aiokafka import TopicPartition
from aiokafka.errors import NotCoordinatorForGroupError
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.commit_metadata import encode_metadata
from mint_stream.bus.handover import Handover
from mint_stream.bus.offsets import Progress, fresh

WORKED, NEW = TopicPartition("t", 0), TopicPartition("t", 1)
LEFT = Progress(next_offset=7, position=9, open=(7,), high=8, until=9, tenure=3)
KNOWN = {WORKED: OffsetAndMetadata(LEFT.next_offset, encode_metadata(LEFT)), NEW: OffsetAndMetadata(-1, "")}


class Cluster:
    """Answers about commits in turn, as aiokafka hands them on; both logs begin at 2."""

    def __init__(self, *answers: dict[TopicPartition, OffsetAndMetadata] | Exception) -> None:
        self.answers = list(answers)

    async def list_consumer_group_offsets(self, _: str, partitions: Collection[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 2)


async def left_behind(cluster: Cluster) -> dict[TopicPartition, Progress]:
    return await Handover(cluster, cluster, "group").left_behind([WORKED, NEW])


async def test_an_answer_that_names_no_partition_is_no_answer_and_is_asked_for_again() -> None:
    """That is what is left of NOT_COORDINATOR and COORDINATOR_LOAD_IN_PROGRESS."""
    cluster = Cluster({}, {WORKED: KNOWN[WORKED]}, KNOWN)
    assert await left_behind(cluster) == {WORKED: LEFT, NEW: fresh(2)}
    assert not cluster.answers


async def test_a_coordinator_that_refuses_is_asked_again() -> None:
    assert await left_behind(Cluster(NotCoordinatorForGroupError(), KNOWN)) == {WORKED: LEFT, NEW: fresh(2)}


async def test_what_others_wrote_into_a_commit_is_its_offset_and_no_more() -> None:
    foreign = KNOWN | {WORKED: OffsetAndMetadata(7, "from somebody else")}
    assert (await left_behind(Cluster(foreign)))[WORKED] == fresh(7)
