"""The first catalogue: cases, revisions, people's edits, positions, dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "c0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "failure_case",
        sa.Column("case_id", sa.Text, primary_key=True),
        sa.Column("short_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("slice", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("episode_state", sa.Text, nullable=False),
        sa.Column("episode_seq", sa.BigInteger, nullable=False),
        sa.Column("root_class", sa.Text, nullable=False),
        sa.Column("severity_level", sa.Text, nullable=False),
        sa.Column("severity_value", sa.Float, nullable=False),
        sa.Column("opened_at_us", sa.BigInteger, nullable=False),
        sa.Column("onset_us", sa.BigInteger, nullable=False),
        sa.Column("last_seen_us", sa.BigInteger, nullable=False),
        sa.Column("closed_at_us", sa.BigInteger),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("rev", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("search", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_failure_case_opened", "failure_case", ["opened_at_us", "case_id"])
    op.create_index("ix_failure_case_short_id", "failure_case", ["tenant", "short_id"], unique=True)
    op.create_index("ix_failure_case_model", "failure_case", ["tenant", "model"])
    op.create_table(
        "case_tag",
        sa.Column("case_id", sa.Text, sa.ForeignKey("failure_case.case_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", sa.Text, primary_key=True),
    )
    op.create_index("ix_case_tag_tag", "case_tag", ["tag"])
    op.create_table(
        "case_revision",
        sa.Column("case_id", sa.Text, sa.ForeignKey("failure_case.case_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("rev", sa.Integer, primary_key=True),
        sa.Column("valid_from_us", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("patch", sa.Text, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
    )
    op.create_table(
        "case_edit",
        sa.Column("case_id", sa.Text, sa.ForeignKey("failure_case.case_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("rev", sa.Integer, nullable=False),
        sa.Column("edits", sa.Text, nullable=False),
    )
    op.create_table(
        "consumer_position",
        sa.Column("consumer_group", sa.Text, primary_key=True),
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
    )
    op.create_table(
        "short_id_counter",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("next_number", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "dead_letter",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True),
        sa.Column("timestamp_us", sa.BigInteger, nullable=False),
        sa.Column("class", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary),
    )
