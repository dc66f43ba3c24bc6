"""A fleet of machines that share one account, built on procrastinate and PostgreSQL (extra `fleet`)."""

from kling_expand.errors import require

require("fleet", "procrastinate", "psycopg")
