"""What operators rule, and what projects used: as rows and back."""

import json
from typing import Final

from grange.db.rows import Row
from grange.db.script import Script, ask
from grange.ports import Rulings
from grange.scheduler.effects import SaveAgentRule, SavePause, SaveUses
from grange.scheduler.facts import AgentRule

_FARM: Final = "farm"
_PROJECT: Final = "project "


def agent_rule_row(effect: SaveAgentRule) -> Row:
    rule = effect.rule
    return str(effect.agent), json.dumps(rule.tags), int(rule.is_paused), rule.reason


def pause_row(effect: SavePause) -> Row:
    subject = _FARM if effect.project is None else _PROJECT + effect.project
    return subject, effect.reason, effect.now


def use_rows(effect: SaveUses) -> list[Row]:
    return [(project, agent_s, effect.now) for project, agent_s in effect.uses]


def read_rulings() -> Script[Rulings]:
    rules = yield from ask("agent_rules")
    pauses = yield from ask("pauses")
    uses = yield from ask("uses")
    return Rulings(
        agents=tuple(
            [
                (agent, AgentRule(tuple(json.loads(tags)), bool(is_paused), reason))
                for agent, tags, is_paused, reason in rules
            ]
        ),
        farm_pause=next((reason for subject, reason, _ in pauses if subject == _FARM), None),
        project_pauses=tuple(
            [
                (subject.removeprefix(_PROJECT), reason)
                for subject, reason, _ in pauses
                if subject.startswith(_PROJECT)
            ]
        ),
        uses=tuple([(project, agent_s) for project, agent_s, _ in uses]),
        uses_at=max([at for _, _, at in uses], default=0.0),
    )
