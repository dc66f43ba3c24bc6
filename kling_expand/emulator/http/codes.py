"""The documented error codes, and the exception that carries one.

Source: the error-code page of the service's documentation. Where the live service sends another
message, the caller that raises the `Refusal` passes that message.
"""

from collections.abc import Mapping

# code: (HTTP status, default message)
CODES: Mapping[int, tuple[int, str]] = {
    1000: (401, "Auth failed"),
    1001: (401, "Authorization is empty"),
    1002: (401, "Authorization is invalid"),
    1003: (401, "Authorization is not yet valid"),
    1004: (401, "Authorization has expired"),
    1100: (429, "Account exception"),
    1101: (429, "Account in arrears"),
    1102: (429, "Resource pack depleted or expired"),
    1103: (403, "No permission for the requested resource"),
    1200: (400, "Invalid request parameters"),
    1201: (400, "Invalid key or value in the request parameters"),
    1202: (404, "The requested method is invalid"),
    1203: (404, "The requested resource does not exist"),
    1300: (400, "Trigger strategy of the platform"),
    1301: (400, "Trigger the content security policy of the platform"),
    1302: (429, "The request is too frequent"),
    1303: (429, "parallel task over resource pack limit"),
    1304: (429, "Trigger the IP whitelisting policy of the platform"),
    5000: (500, "Server internal error"),
    5001: (503, "Server temporarily unavailable"),
    5002: (504, "Server internal timeout"),
}
ACCOUNT_CODES = (1100, 1101, 1102, 1103, 1304)  # refuse every request of an account


class Refusal(Exception):
    """An error response: `code`, HTTP `status`, `message`, and the `Retry-After` header's value or None."""

    def __init__(self, code: int, message: str = "", *, retry_after: str | None = None) -> None:
        status, default = CODES[code]
        self.code = code
        self.status: int = status
        self.message: str = message or default
        self.retry_after = retry_after
        super().__init__(f"{code}: {self.message}")
