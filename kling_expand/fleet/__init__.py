"""Many machines that share one account, on procrastinate and PostgreSQL (extra `fleet`)."""
