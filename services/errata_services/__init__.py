"""The processes of errata and the command line."""
