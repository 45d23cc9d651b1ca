"""The tables of the catalogue as the newest migration leaves them. Times are microseconds since 1970, UTC.

Documents are canonical JSON in text columns, so that equal content is equal bytes in every database. Names compare by
their bytes, whatever language a PostgreSQL was made for: order and prefixes are then the same everywhere.
"""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData()
CASE_OVERVIEW = "case_overview"  # PostgreSQL only: the cases with times as timestamptz and documents as jsonb

_Name = Text().with_variant(Text(collation="C"), "postgresql")

failure_case = Table(
    "failure_case",
    metadata,
    Column("case_id", _Name, primary_key=True),
    Column("short_id", _Name, nullable=False),
    Column("tenant", _Name, nullable=False),
    Column("model", _Name, nullable=False),
    Column("slice", Text, nullable=False),
    Column("status", Text, nullable=False),  # people's; the chain only sets it on the first write
    Column("episode_state", Text, nullable=False),
    Column("episode_seq", BigInteger, nullable=False),
    Column("root_class", Text, nullable=False),
    Column("severity_level", Text, nullable=False),
    Column("severity_value", Float, nullable=False),
    Column("opened_at_us", BigInteger, nullable=False),
    Column("onset_us", BigInteger, nullable=False),
    Column("last_seen_us", BigInteger, nullable=False),
    Column("closed_at_us", BigInteger),
    Column("count", BigInteger, nullable=False),
    Column("rev", Integer, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("search", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("ix_failure_case_opened", "opened_at_us", "case_id"),
    Index("ix_failure_case_short_id", "tenant", "short_id", unique=True),
    Index("ix_failure_case_model", "tenant", "model"),
)

case_tag = Table(
    "case_tag",
    metadata,
    Column("case_id", _Name, ForeignKey("failure_case.case_id", ondelete="CASCADE"), primary_key=True),
    Column("tag", _Name, primary_key=True),
    Index("ix_case_tag_tag", "tag"),
)

case_revision = Table(
    "case_revision",
    metadata,
    Column("case_id", _Name, ForeignKey("failure_case.case_id", ondelete="CASCADE"), primary_key=True),
    Column("rev", Integer, primary_key=True),
    Column("valid_from_us", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("content_hash", Text, nullable=False),
    Column("patch", Text, nullable=False),
    Column("previous", Text, nullable=False),
)

case_edit = Table(
    "case_edit",
    metadata,
    Column("case_id", _Name, ForeignKey("failure_case.case_id", ondelete="CASCADE"), primary_key=True),
    Column("rev", Integer, nullable=False),
    Column("edits", Text, nullable=False),  # people's fields as one object: status, title, owner, priority, …
)

consumer_position = Table(
    "consumer_position",
    metadata,
    Column("consumer_group", _Name, primary_key=True),
    Column("topic", _Name, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
)

short_id_counter = Table(
    "short_id_counter",
    metadata,
    Column("tenant", _Name, primary_key=True),
    Column("next_number", BigInteger, nullable=False),
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("topic", _Name, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("timestamp_us", BigInteger, nullable=False),
    Column("class", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("payload", LargeBinary),
)
