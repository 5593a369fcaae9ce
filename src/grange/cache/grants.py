"""Grants: who may upload what, until when."""

from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

from grange.cache.tokens import TokenKey
from grange.cache.verify import Candidates, Claims
from grange.errors import OutsideError, PeerError
from grange.ports import Clock
from grange.scheduler.facts import AttemptId
from grange.store.path import StorePath
from grange.wire.messages import BuiltOutput

GRANT_S: Final = 3600  # to begin an upload; how long it then takes does not matter
GRANTS_MAX: Final = 200_000  # some 200 MB; an attempt has about two


class UploadError(PeerError):
    """An upload cannot be taken; the status is that of HTTP."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to upload one path."""

    id: bytes
    attempt: AttemptId | None  # None for a source
    output: BuiltOutput | None  # None for a source
    claims: Claims
    candidates: Candidates | None  # None for a source
    expires: int  # wall clock
    is_spent: bool = False


class Grants:
    """All grants that have not expired. A restart forgets them."""

    def __init__(self, key: TokenKey, clock: Clock) -> None:
        self._key = key
        self._clock = clock
        self._by_id: dict[bytes, Grant] = {}  # in the order in which they expire
        self._by_attempt: dict[AttemptId, dict[StorePath, Grant]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def issue(
        self,
        attempt: AttemptId | None,
        output: BuiltOutput | None,
        claims: Claims,
        candidates: Candidates | None,
    ) -> str:
        """The token of a new grant, which replaces the attempt's earlier one for the path.

        Raises OutsideError where too many are outstanding.
        """
        now = int(self._clock.wall_s())
        self._forget_expired(now)
        if len(self._by_id) >= GRANTS_MAX:
            raise OutsideError(
                f"{GRANTS_MAX} uploads are granted and not finished; try again in some minutes"
            )
        id_, token = self._key.issue(now + GRANT_S)
        grant = Grant(id_, attempt, output, claims, candidates, now + GRANT_S)
        if attempt is not None:
            grants = self._by_attempt.setdefault(attempt, {})
            if (earlier := grants.get(claims.path)) is not None:
                self._by_id.pop(earlier.id, None)
            grants[claims.path] = grant
        self._by_id[id_] = grant
        return token

    def find(self, token: str) -> Grant:
        """The unspent grant of a token; raises UploadError."""
        try:
            read = self._key.read(token)
        except PeerError as error:
            raise UploadError(HTTPStatus.FORBIDDEN, str(error)) from None
        if read.expires <= self._clock.wall_s():
            raise UploadError(
                HTTPStatus.GONE, "this upload URL has expired; ask the farm for a new one"
            )
        return self._unspent(read.id)

    def has(self, id_: bytes) -> bool:
        """Whether there is a grant of this id that was neither spent, revoked nor forgotten."""
        grant = self._by_id.get(id_)
        return grant is not None and not grant.is_spent

    def _unspent(self, id_: bytes) -> Grant:
        grant = self._by_id.get(id_)
        if grant is None:
            raise UploadError(
                HTTPStatus.GONE,
                "this upload URL was revoked, or the farm has restarted; ask for a new one",
            )
        if grant.is_spent:
            raise UploadError(
                HTTPStatus.CONFLICT, "this upload URL has been used: the path is stored already"
            )
        return grant

    def spend(self, grant: Grant) -> None:
        """Mark a grant as used; raises UploadError where another upload was faster."""
        self._unspent(grant.id)
        # Candidates may be many, and what is left only answers a second try.
        self._by_id[grant.id] = replace(grant, candidates=None, is_spent=True)

    def unspend(self, grant: Grant) -> None:
        """Take back `spend`, unless the grant has been revoked since."""
        if grant.id in self._by_id:
            self._by_id[grant.id] = grant

    def revoke(self, attempt: AttemptId) -> None:
        """Make all of an attempt's grants void."""
        for grant in self._by_attempt.pop(attempt, {}).values():
            self._by_id.pop(grant.id, None)

    def _forget_expired(self, now: int) -> None:
        while self._by_id:
            grant = next(iter(self._by_id.values()))
            if grant.expires > now:
                return
            del self._by_id[grant.id]
            if grant.attempt is not None:
                grants = self._by_attempt[grant.attempt]
                if grants[grant.claims.path].id == grant.id:
                    del grants[grant.claims.path]
                if not grants:
                    del self._by_attempt[grant.attempt]
