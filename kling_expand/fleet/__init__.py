"""Many machines that share one account, on procrastinate and PostgreSQL (extra `fleet`)."""

from kling_expand.errors import require

require("fleet", "procrastinate", "psycopg")
