"""Errors that say whose fault it is and what to do.

Exactly three parties can be at fault apart from Grange itself, whose own faults are assertions.
A failed build is no error: it is an outcome (`grange.scheduler.events.Outcome`).
"""


class GrangeError(Exception):
    """Something went wrong that a person can act on; its text is shown to them as it stands."""


class PeerError(GrangeError):
    """The other side of a connection said something wrong: a submitter, an agent, a file."""


class NotFoundError(PeerError):
    """It asked for something that is not here."""


class ConflictError(PeerError):
    """What it asks contradicts what is already here."""


class UnauthenticatedError(PeerError):
    """It shows no credential, or one that is not good here."""


class ThrottledError(PeerError):
    """It has shown bad credentials too often."""


class ForbiddenError(PeerError):
    """It is known, and has no right to what it asks for."""


class OperatorError(GrangeError):
    """The installation is set up wrongly; the text names the setting and the remedy."""


class OutsideError(GrangeError):
    """The world failed: a disk, a network, a daemon. Trying again later may help."""


class FencedError(OutsideError):
    """Another coordinator leads now: what this one wanted to write did not apply."""


class JournalError(OutsideError):
    """The journal's database cannot be read or written just now."""


class JournalRefusedError(JournalError):
    """A write that certainly did not apply, such as on a full disk: it may be tried again."""
