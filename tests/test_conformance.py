"""Plays the recorded scenarios of tests/conformance, section by section."""

import asyncio
import json
import secrets
from pathlib import Path

import pytest

from tests.conformance.replay import Replay, Scenario
from tests.server import Server

SCENARIOS: list[Scenario] = [
    scenario
    for path in sorted((Path(__file__).parent / "conformance" / "scenarios").glob("*.json"))
    for scenario in json.loads(path.read_text())
]
# By the beginnings of their names, with the reason.
EXCLUDED = {
    "auth/": "kvd has no users and roles",
    "members/delete-missing": "kvd has the read side of /v2/members only",
    "members/post-existing": "kvd has the read side of /v2/members only",
}


def chosen(mode: str) -> dict[str, list[Scenario]]:
    """The scenarios of a mode by their sections, without those that are excluded."""
    sections: dict[str, list[Scenario]] = {}
    for scenario in SCENARIOS:
        if scenario["mode"] == mode and not scenario["name"].startswith(tuple(EXCLUDED)):
            sections.setdefault(scenario["section"], []).append(scenario)
    return sections


EXACT, LOOSE = chosen("exact"), chosen("loose")


def new_prefix() -> str:
    return f"c{secrets.token_hex(3)}"  # seven characters, as in the recordings


def replay(server: Server, scenario: Scenario, *, loose: bool) -> Replay:
    return Replay(scenario, ("127.0.0.1", server.port), new_prefix(), loose=loose)


@pytest.mark.parametrize("section", EXACT)
def test_exact(server: Server, section: str):
    async def play_in_turn() -> list[str]:
        failures = []
        for scenario in EXACT[section]:
            failures += await replay(server, scenario, loose=False).play()
        return failures

    assert asyncio.run(play_in_turn()) == []


@pytest.mark.parametrize("section", LOOSE)
def test_loose(server: Server, section: str):
    async def play_side_by_side() -> list[str]:
        replays = [replay(server, scenario, loose=True).play() for scenario in LOOSE[section]]
        return [failure for found in await asyncio.gather(*replays) for failure in found]

    assert asyncio.run(play_side_by_side()) == []


@pytest.mark.parametrize("beginning", EXCLUDED)
def test_excluded(beginning: str):
    assert any(scenario["name"].startswith(beginning) for scenario in SCENARIOS)
    pytest.skip(EXCLUDED[beginning])


def test_every_scenario_is_played_or_excluded():
    played = sum(map(len, [*EXACT.values(), *LOOSE.values()]))
    excluded = [s for s in SCENARIOS if s["name"].startswith(tuple(EXCLUDED))]
    assert played + len(excluded) == len(SCENARIOS) > 300
