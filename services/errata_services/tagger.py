"""The tagger: gives each enriched anomaly its diagnosis, by the taxonomy and rules in force."""

from collections.abc import Mapping, Sequence
from functools import cache

from errata.contracts import EnrichedAnomaly, Heartbeat
from errata.contracts.cloudevents import cloud_event
from errata.contracts.strict import to_us
from errata.contracts.topics import ENRICHED, TAGGED
from errata.domain.diagnosis.rules import Ruleset, default_rules
from errata.domain.diagnosis.tagging import diagnose
from errata.domain.diagnosis.taxonomy import Taxonomy, default_taxonomy
from errata.errors import Refused
from errata.ports import DeadInput, Outgoing, Record, StepResult
from errata.runtime.heartbeats import pass_on, read_record


@cache
def _package_rules() -> Ruleset:
    return default_rules(default_taxonomy())


class Tagger:
    """The stage from ``errata.enriched.v1`` to ``errata.tagged.v1``, keyed by case id. Holds no state."""

    name = "tagger"
    input = ENRICHED
    side_inputs: tuple[str, ...] = ()

    def __init__(self, taxonomy: Taxonomy | None = None, rules: Ruleset | None = None) -> None:
        """Without a taxonomy or rules, those of the package. Raises ``Misconfigured`` if they do not fit together."""
        self._taxonomy = taxonomy if taxonomy is not None else default_taxonomy()
        self._rules = rules if rules is not None else _package_rules() if taxonomy is None else default_rules(taxonomy)

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        pass

    def revoke(self, partition: int) -> None:
        pass

    def prepare(self, batch: Sequence[Record]) -> None:
        """Nothing to fetch: all a diagnosis needs is in the message."""

    def step(self, batch: Sequence[Record], prepared: object) -> StepResult:
        result = StepResult()
        for record in batch:
            anomaly = read_record(EnrichedAnomaly, record)
            if isinstance(anomaly, Refused):
                result.dead.append(DeadInput(record, anomaly))
                continue
            if isinstance(anomaly, Heartbeat):
                pass_on(result, anomaly, TAGGED, self.name, record.partition)
                continue
            case = diagnose(anomaly, self._taxonomy, self._rules)
            headers = cloud_event(case, TAGGED, self.name)
            result.outputs.append(Outgoing(TAGGED, case.episode.id.encode(), case.to_json(), headers))
            seen_us = to_us(case.episode.last_seen)
            result.max_event_time_us = max(seen_us, result.max_event_time_us or seen_us)
        return result

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass
