"""The only place that picks adapters."""

import os
from pathlib import Path

import platformdirs

from errata.adapters.sql import SqlCatalogue
from errata.errors import Misconfigured
from errata.ports import Catalogue

CATALOGUE_FILE = "catalogue.sqlite"


def data_folder(option: Path | None) -> Path:
    """Where errata keeps its data: ``--data``, else ``ERRATA_DATA``, else the platform's folder for a user's data."""
    if option is not None:
        return option
    named = os.environ.get("ERRATA_DATA")
    return Path(named) if named else platformdirs.user_data_path("errata")


def open_catalogue(data: Path) -> Catalogue:
    """The catalogue of a data folder, brought to this version's schema; made when it is not there."""
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured("--data: the folder cannot be made; name one that this user may write to") from error
    catalogue = SqlCatalogue(f"sqlite:///{(data / CATALOGUE_FILE).absolute()}")
    try:
        catalogue.migrate()
    except BaseException:
        catalogue.close()
        raise
    return catalogue
