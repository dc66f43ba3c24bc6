"""The state of the emulator: its clock, tasks, account and database, and the callbacks it sends."""
