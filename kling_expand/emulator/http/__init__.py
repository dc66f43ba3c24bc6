"""The HTTP side of the emulator: routes, authentication, validation and response formats."""
