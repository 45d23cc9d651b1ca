"""The commands of the pages in ``deploy/runbooks/stops`` are typed, in their order, and do what the pages say."""

import re
from collections.abc import Iterator

import pytest
from tests.detectors.streams import MODEL, clean, contract, reference
from tests.integration.chain import Chain, chain_on
from tests.repository.test_stop_pages import PAGE_FILES
from typer.testing import CliRunner, Result

from errata.contracts import canonical
from errata.contracts.topics import PREDICTIONS, STAGES, model_key, state_topic
from errata.domain.partitioner import partition_of
from errata.errors import NotFound
from errata.ports import Outgoing
from errata_services.cli.root import app

pytestmark = pytest.mark.servers

DETECTOR = STAGES[0]
STATE = state_topic(DETECTOR)
DAMAGED = "changelog-damaged"
NOT_OURS = ("docker ",)  # first words of commands that are not errata's


@pytest.fixture(scope="module")
def judged(
    tmp_path_factory: pytest.TempPathFactory, kafka_address: str, redis_url: str, module_database: str
) -> Iterator[tuple[Chain, int]]:
    """A chain whose detector has judged some events and has stopped; the partition of their model."""
    with chain_on(tmp_path_factory.mktemp("stops"), kafka_address, redis_url, module_database) as chain:
        chain.environment["ERRATA_LEAVE"] = "true"
        chain.apply(contract(), reference())
        chain.publish([canonical(event) for event in clean(200, 1)])
        run_detector(chain)
        yield chain, partition_of(model_key("default", MODEL), chain.transport.partitions(PREDICTIONS))


def run_detector(chain: Chain) -> None:
    service = chain.start(DETECTOR)
    chain.until(lambda: bool(service.page("/readyz")), "the detector is ready")
    chain.until(lambda: not chain.unread(DETECTOR), "the detector has read all there is")
    assert service.end() == 0


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", PAGE_FILES[page], re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith(NOT_OURS)]


def typed(chain: Chain, command: str, partition: int) -> Result:
    program, *words = command.replace("--partition 3", f"--partition {partition}").split()
    assert program == "errata", f"a command that no test types: {command}"
    return CliRunner().invoke(app, [word.strip('"') for word in words], env=chain.environment)


@pytest.mark.parametrize("page", sorted(PAGE_FILES.keys() - {DAMAGED}))
def test_commands_of_a_page_do_their_work(page: str, judged: tuple[Chain, int]) -> None:
    chain, partition = judged
    for command in commands(page):
        result = typed(chain, command, partition)
        if command.startswith("errata dlq replay"):
            assert isinstance(result.exception, NotFound), "there is no letter to replay here"
        else:
            assert (result.exit_code, result.exception) == (0, None), f"{command}: {result.output}"


def test_every_page_has_commands_or_needs_none() -> None:
    assert {page for page in PAGE_FILES if not commands(page)} == set()


def test_a_damaged_changelog_is_shown_mended_and_gone_on_from(judged: tuple[Chain, int]) -> None:
    chain, partition = judged
    damage(chain, partition)
    stopped = chain.start(DETECTOR)
    assert stopped.process.wait(60) == 70
    assert '"runbook": "deploy/runbooks/stops/changelog-damaged.md"' in stopped.logged()
    assert stopped.logged().splitlines()[-1].startswith("errata: foreign_key: ")
    chain.running.remove(stopped)
    chain.until(lambda: not chain.transport.group_members(f"errata.{DETECTOR}"), "the group is empty")
    results = [typed(chain, command, partition) for command in commands(DAMAGED)]
    codes = [result.exit_code for result in results]
    assert codes == [1, 0, 0], results[-1]  # show says that it is damaged; topics plan; rebuild
    assert typed(chain, "errata state show", partition).exit_code == 0
    run_detector(chain)


def damage(chain: Chain, partition: int) -> None:
    producer = chain.transport.producer("somebody-else")
    producer.begin()
    producer.produce(Outgoing(STATE, b"mine", b"{}", partition=partition))
    producer.commit()
    producer.close()
