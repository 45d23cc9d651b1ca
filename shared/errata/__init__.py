"""errata turns the prediction events of ML models in production into a catalogue of failure cases.

This package must stay light: ``import errata.client`` runs inside other people's services.
"""

__version__ = "0.1.0"
