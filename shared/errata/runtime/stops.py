"""Why a service ended, and the page of ``deploy/runbooks/stops`` that tells an operator what to do."""

from errata.errors import Fenced, Misconfigured, StateDamaged, Unavailable

FOLDER = "deploy/runbooks/stops"
STATE_PAGES = {
    "digest": "changelog-damaged",
    "position": "changelog-damaged",
    "position_missing": "changelog-damaged",
    "wrong_partition": "changelog-damaged",
    "foreign_key": "changelog-damaged",
    "unreadable": "changelog-damaged",
    "schema_older": "state-of-another-release",
    "schema_newer": "state-of-another-release",
    "config": "state-of-another-release",
    "state_behind": "state-behind",
    "state_ahead": "state-ahead",
    "rebuild_unfinished": "rebuild-unfinished",
    "hanging_transaction": "hanging-transaction",
    "offset_out_of_range": "offset-out-of-range",
    "catalogue_ahead": "catalogue-ahead",
    "trends_unreadable": "trends-unreadable",
}
BUG, STALLED = "bug", "stalled"
_BY_EXIT_CODE = {
    Unavailable.exit_code: "unavailable",
    Misconfigured.exit_code: "misconfigured",
    StateDamaged.exit_code: BUG,  # what is not one of the reasons above
}
PAGES = frozenset({*STATE_PAGES.values(), *_BY_EXIT_CODE.values(), "fenced", STALLED})


def page_of(error: Exception, exit_code: int) -> str:
    """The page for a service that an error ended with ``exit_code``.

    >>> page_of(StateDamaged("state_behind: errata.anomaly-detector.state partition 3: …"), 70)
    'deploy/runbooks/stops/state-behind.md'
    >>> page_of(ValueError(), 70)
    'deploy/runbooks/stops/bug.md'
    """
    return f"{FOLDER}/{_name(error, exit_code)}.md"


def _name(error: Exception, exit_code: int) -> str:
    if isinstance(error, StateDamaged) and error.reason in STATE_PAGES:
        return STATE_PAGES[error.reason]
    if isinstance(error, Fenced):
        return "fenced"
    return _BY_EXIT_CODE[exit_code]
