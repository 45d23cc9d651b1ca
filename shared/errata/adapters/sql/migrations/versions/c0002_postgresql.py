"""On PostgreSQL names compare byte by byte, as they do in SQLite, and people get a view with times and JSON.

The tables keep times as microseconds and documents as the text they came in: both are exact to the byte. The view
has them as timestamptz and jsonb, for dashboards and for questions in SQL. In SQLite nothing changes.
"""

from alembic import op

revision = "c0002"
down_revision = "c0001"
branch_labels = None
depends_on = None

NAMES = {
    "failure_case": ("case_id", "short_id", "tenant", "model"),
    "case_tag": ("case_id", "tag"),
    "case_revision": ("case_id",),
    "case_edit": ("case_id",),
    "consumer_position": ("consumer_group", "topic"),
    "short_id_counter": ("tenant",),
    "dead_letter": ("topic",),
}
CASE_OVERVIEW = """
CREATE VIEW case_overview AS
SELECT
    c.case_id, c.short_id, c.tenant, c.model, c.slice, c.status, c.episode_state, c.root_class,
    c.severity_level, c.severity_value, c.count, c.rev,
    timestamptz 'epoch' + c.opened_at_us * interval '1 microsecond' AS opened_at,
    timestamptz 'epoch' + c.onset_us * interval '1 microsecond' AS onset,
    timestamptz 'epoch' + c.last_seen_us * interval '1 microsecond' AS last_seen,
    timestamptz 'epoch' + c.closed_at_us * interval '1 microsecond' AS closed_at,
    ARRAY(SELECT t.tag FROM case_tag t WHERE t.case_id = c.case_id ORDER BY t.tag) AS tags,
    c.body::jsonb AS document,
    e.edits::jsonb AS edits
FROM failure_case c LEFT JOIN case_edit e USING (case_id)
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in NAMES.items():
        changes = ", ".join(f'ALTER COLUMN {column} TYPE text COLLATE "C"' for column in columns)
        op.execute(f"ALTER TABLE {table} {changes}")
    op.execute(CASE_OVERVIEW)
