"""Alembic's scripts. They ship in the wheel, and `migrate` runs them; there is no alembic.ini."""
