"""The demo's input: real census predictions, with failures planted by seed at simulated times and latencies."""
