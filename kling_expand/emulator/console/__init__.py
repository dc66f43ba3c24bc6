"""The emulator's web console: its page, its static files and its event stream."""
