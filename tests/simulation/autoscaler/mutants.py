"""Bugs planted in the autoscaler's shell: each must be caught, or the oracles are too weak."""

from grange.autoscaler.acts import Acts
from grange.autoscaler.chores import Chores
from grange.autoscaler.decisions import Decisions
from grange.autoscaler.looks import Looks
from grange.autoscaler.service import Autoscaler
from grange.autoscaler.tellings import Tellings
from grange.autoscaler.troubles import Troubles
from tests.simulation.mutants import Mutant

MUTANTS = (
    Mutant(
        "acts before the commit",
        Decisions,
        "run",
        "await self._commit(effects)",
        "actor.decided(core, events, effects); await self._commit(effects)",
    ),
    Mutant(
        "memory outlives a doubt",
        Decisions,
        "run",
        "core = await self._doubt(actor, batch, error)",
        'self._reject(batch, "ask again")',
    ),
    Mutant("refused is as good as saved", Decisions, "_commit", "wait_s = min(", "return; min("),
    Mutant(
        "a doubt is tried again", Decisions, "_commit", "except Jou", "except OutsideError or Jou"
    ),
    Mutant("answers are lost in a doubt", Decisions, "_doubt", "self._inbox[:0] = ", "_ = "),
    Mutant("callers wait for ever", Decisions, "_reject", "done.set_exception", "id"),
    Mutant("deadlines pass", Decisions, "_next_batch", "core.next_deadline()", "None"),
    Mutant("a token is called for twice", Acts, "begin", "order.token not in self._calls", "True"),
    Mutant("traffic in any order", Acts, "begin", "self._traffic.get(act.slot)", "None"),
    Mutant("launches without a term", Acts, "_launch", "* LAUNCH_SHARE", "* 1e6"),
    Mutant("ended before it is shut", Acts, "_queue", "self._latest.get(key)", "None"),
    Mutant("terminated but once", Acts, "_queue", "self._begun.discard(act)", "None"),
    Mutant("looked at in the midst of acts", Looks, "_look", "await self._acts.traffic_tried()"),
    Mutant("what fails is empty", Looks, "_part", "return None", "return ()"),
    Mutant("peeps see nothing", Looks, "_rest", "not peeped.is_within(self._useful)", "False"),
    Mutant("nothing calls for a look", Looks, "want", "self._wanted.set()"),
    Mutant("news wakes nobody", Tellings, "_wake", "future.set_result(None)"),
    Mutant("told before it is open", Tellings, "shut", "self.about_to_open.add(slot)"),
    Mutant("told before it is durable", Autoscaler, "reserve", "of_key(claim.key)", "of_key('')"),
    Mutant(
        "notices are heard and forgotten",
        Chores,
        "hear_notices",
        "self._decisions.tell(on.NoticeCame(notice))",
    ),
    Mutant("troubles never end", Troubles, "ended", "self._known.pop(what, None)", "None"),
    Mutant("keys are anybody's", Autoscaler, "reserve", "known.claim != claim", "False"),
)
