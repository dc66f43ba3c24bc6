"""A log handler that finds secrets in the records of every library, at DEBUG."""

import logging

SECRETS = (
    "emulator-secret-key-0123456789abcdef",
    "api-key-kling-emulator",
    "dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI",  # the whsec_… of the published vector
    "eyJhbGciOi",  # the first characters of every JWT
    "Bearer ",
)


class SecretScanner(logging.Handler):
    """A handler that keeps the records that contain a secret, in the message or a traceback."""

    def __init__(self, secrets: tuple[str, ...] = SECRETS) -> None:
        super().__init__(logging.DEBUG)
        self._secrets = secrets
        self.records = 0
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Check one record."""
        self.records += 1
        text = f"{record.name}: {self.format(record)}"
        if any(secret in text for secret in self._secrets):
            self.leaks.append(text)
