"""Telemetry as Prometheus metrics, made from the table of `errata.runtime.telemetry`."""
