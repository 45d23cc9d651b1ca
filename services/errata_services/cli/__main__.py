"""``python -m errata_services.cli``: what supervisors start, whatever stands on the PATH."""

from errata_services.cli import main

main()
