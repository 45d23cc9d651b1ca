"""README is true to the letter: what the code offers stands there, and what stands there the code offers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import typer
from pydantic_settings import BaseSettings

from errata import settings
from errata_services.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

VARIABLE = re.compile(r"\bERRATA_[A-Z0-9]+(?:_+[A-Z0-9]+)*\b")
COMMAND = re.compile(r"(?:^|[\s`|])errata((?: [a-z][a-z-]*)+)", re.MULTILINE)
TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")


class Command(Protocol):
    """What typer makes of a command or of a group; only a group has ``commands``."""

    hidden: bool


def commands(command: Command, path: str = "errata") -> Iterator[str]:
    """Every command a person can type, as ``errata cases list``; hidden ones are not for people."""
    if command.hidden:
        return
    children: dict[str, Command] | None = getattr(command, "commands", None)
    if children is None:
        yield path
    else:
        for name, child in children.items():
            yield from commands(child, f"{path} {name}")


def words_of_code(text: str) -> set[str]:
    """The words of code of a Markdown text: fenced blocks and spans."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return {*fenced, *re.findall(r"`([^`\n]+)`", rest)}


def variables_of_code() -> set[str]:
    """Variables that the code names, and those of the settings classes."""
    found: set[str] = set()
    for folder in ("shared", "services"):
        for path in (ROOT / folder).rglob("*.py"):
            found.update(VARIABLE.findall(path.read_text(encoding="utf-8")))
    return found | variables_of_settings(settings_classes())


def settings_classes() -> list[type[BaseSettings]]:
    return [
        value
        for value in vars(settings).values()
        if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == settings.__name__
    ]


def variables_of_settings(classes: list[type[BaseSettings]]) -> set[str]:
    return {
        f"{kind.model_config.get('env_prefix', '')}{field}".upper() for kind in classes for field in kind.model_fields
    }


def undocumented(offered: set[str], text: str) -> set[str]:
    """What of the offered names does not stand in a text as a whole word."""
    return {name for name in offered if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)}


def unknown_commands(text: str, offered: set[str]) -> set[str]:
    """Commands that a text shows in code and nobody can type. Words after a whole command are its arguments."""
    shown = {f"errata{words}" for code in words_of_code(text) for words in COMMAND.findall(code)}
    prefixes = {" ".join(name.split()[:length]) for name in offered for length in range(1, len(name.split()) + 1)}
    return {
        name
        for name in shown
        if name not in prefixes and not any(name.startswith(f"{command} ") for command in offered)
    }


COMMANDS = set(commands(typer.main.get_command(app)))


def test_every_command_stands_in_readme() -> None:
    assert {"errata demo", "errata cases list"} <= COMMANDS
    assert undocumented(COMMANDS, README) == set()


def test_every_command_in_readme_can_be_typed() -> None:
    assert unknown_commands(README, COMMANDS) == set()


def single(names: set[str]) -> set[str]:
    """Variables without those of two families: properties of the Kafka client, and files that hold a value."""
    bare = {name.removesuffix(settings.FILE_SUFFIX) for name in names}
    return {name for name in bare if not f"{name}__".startswith(settings.KAFKA_PREFIX)}


def test_every_variable_stands_in_readme_and_exists() -> None:
    offered = single(variables_of_code())
    assert undocumented(offered, README) == set()
    assert single(set(VARIABLE.findall(README))) - offered == set()
    assert {f"{settings.KAFKA_PREFIX}…", f"{settings.KAFKA_PREFIX}REPLICATION", settings.FILE_SUFFIX} <= words_of_code(
        README
    )


def test_every_make_target_in_readme_exists() -> None:
    offered = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    shown = {target for code in words_of_code(README) for target in TARGET.findall(code)}
    assert {"demo", "test"} <= shown
    assert shown - offered == set()


def test_what_is_missing_is_seen() -> None:
    class Planted(BaseSettings, env_prefix="ERRATA_"):
        planted_limit: int = 1

    planted, cases = typer.Typer(), typer.Typer()
    planted.add_typer(cases, name="cases")
    cases.command("lose")(lambda: None)
    planted.command("plant")(lambda: None)
    planted.command("secret", hidden=True)(lambda: None)
    assert set(commands(typer.main.get_command(planted))) == {"errata plant", "errata cases lose"}
    assert variables_of_settings([Planted]) == {"ERRATA_PLANTED_LIMIT"}
    assert undocumented({"errata run"}, "type `errata runs`") == {"errata run"}
    assert undocumented({"errata run"}, "type `errata run --embedded`") == set()
    text = "`errata cases lost`, `errata cases list mine`, `errata cases`, errata works\n```\nerrata gone --now\n```\n"
    assert unknown_commands(text, {"errata cases list"}) == {"errata cases lost", "errata gone"}
