"""What may be refused, and how does a refusal look? The documented table, nothing else.

Source: the vendor's error-code page, as recorded row by row; the texts that were seen live stand where they
arise.
"""

from collections.abc import Mapping

# code → (HTTP status, the message when there is nothing more to say)
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
ACCOUNT_CODES = (1100, 1101, 1102, 1103, 1304)  # states of an account, whatever it asks for


class Refusal(Exception):
    """The service says no: `code`, HTTP `status`, `message`, and `retry_after`, a header value or None."""

    def __init__(self, code: int, message: str = "", *, retry_after: str | None = None) -> None:
        self.status, usual = CODES[code]
        self.code = code
        self.message = message or usual
        self.retry_after = retry_after
        super().__init__(f"{code}: {self.message}")
