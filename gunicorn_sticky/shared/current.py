"""What this process is: all that belongs to the process, and not to an object that could be handed on.

This is loaded at the start of every Python program: it imports nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol
    from uuid import UUID

    class Minter(Protocol):
        def mint(self, text: str) -> str: ...

        def mint_uuid(self, uuid: UUID) -> UUID: ...

        def is_own(self, text: str) -> bool: ...


#: Whether Gunicorn had been imported before us, so that no start-up hook can have run.
loaded_late = False
#: Why the start-up hook has left Gunicorn as it is, if it has.
hook_failure: "str | None" = None
#: Whether the application's arbiter was made by the start-up hook; without that, our worker has nobody to feed it.
arbiter_is_ours = False
#: Who makes session ids, in workers that are sticky by session.
minter: "Minter | None" = None
#: In workers, what they all belong to (broadcast/cluster.py), a function of that and a log that returns what is told
#: there, and the log.
cluster: "Any" = None
#: How often this process and its parents have been forked since ours was loaded; cheaper to ask for than a pid.
generation = 0


def refusal(reason: Exception) -> str:
    """Say why there can be no sticky workers."""
    return f"gunicorn_sticky does not know this version of Gunicorn: {type(reason).__name__}: {reason}"
