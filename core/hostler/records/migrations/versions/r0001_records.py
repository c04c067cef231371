"""Threads, messages, assistants, files, runs, their steps, the events, webhooks and their deliveries. Floor 1; run by Alembic
inside the transaction of records/upgrade.py.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
IS_ACTIVE = sa.text("status IN ('queued', 'in_progress', 'requires_action', 'cancelling')")
HAS_RUN = sa.text("run_id IS NOT NULL")


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "threads",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("updated", NUMBER, nullable=False),
        sa.Column("next_position", NUMBER, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_index("threads_by_time", "threads", ["created_at", "seq"])
    op.create_table(
        "messages",
        sa.Column("thread_id", sa.Text, sa.ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", NUMBER, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("body", sa.JSON, nullable=False),
        sa.UniqueConstraint("thread_id", "id", name="messages_id"),
    )
    op.create_index("messages_of_run", "messages", ["run_id", "position"], sqlite_where=HAS_RUN, postgresql_where=HAS_RUN)
    op.create_table(
        "assistants",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_index("assistants_by_time", "assistants", ["created_at", "seq"])
    op.create_table(
        "files",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_index("ix_files_sha256", "files", ["sha256"])
    op.create_index("files_by_time", "files", ["created_at", "seq"])
    op.create_table(
        "runs",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("thread_id", sa.Text, sa.ForeignKey("threads.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("home", sa.Text, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_index("runs_by_time", "runs", ["thread_id", "created_at", "seq"])
    op.create_index("runs_one_active", "runs", ["thread_id"], unique=True, sqlite_where=IS_ACTIVE, postgresql_where=IS_ACTIVE)
    op.create_table(
        "steps",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_index("steps_by_run", "steps", ["run_id", "seq"])
    op.create_table(
        "events",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "webhooks",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("home", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("events", sa.JSON, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("seen", NUMBER, nullable=False),
        sa.Column("last_status", NUMBER),
        sa.Column("last_error", sa.Text),
        sa.Column("last_delivery_at", NUMBER),
        sa.Column("n_delivered", NUMBER, nullable=False),
        sa.Column("n_dropped", NUMBER, nullable=False),
        sa.UniqueConstraint("home", "url", name="webhooks_url"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("webhook_id", sa.Text, sa.ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("event_id", NUMBER, nullable=False),
        sa.Column("message_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created", NUMBER, nullable=False),
        sa.Column("n_attempts", NUMBER, nullable=False),
        sa.Column("next_at", sa.Double),
        sa.Column("last_error", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("deliveries_by_subject", "deliveries", ["webhook_id", "subject", "id"])
    op.create_index("deliveries_by_time", "deliveries", ["webhook_id", "next_at"])
