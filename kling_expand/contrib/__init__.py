"""Adapters for web frameworks and OpenTelemetry, one per file."""
