"""Many machines that share one account, over PostgreSQL (extra `fleet`)."""

from kling_expand.errors import require

require("fleet", "psycopg")
