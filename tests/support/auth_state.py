"""Users and roles in a dict: `kvd.v2.documents.decision.Documents` without a store."""

from collections.abc import Iterator

from kvd.storage.format.records import Entry
from kvd.v2.documents import auth_commands
from kvd.v2.documents.decision import Reply


class People:
    """The state that `kvd.v2.documents.auth` reads and that a decided command changes."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Entry] = {}

    def entry(self, what: str, name: str) -> Entry | None:
        return self.rows.get((what, name))

    def each_entry(self, what: str) -> Iterator[Entry]:
        return (entry for entry in self.rows.values() if entry.what == what)

    def do(self, command: auth_commands.Command) -> Reply:
        """Decide a command and do what is decided; return the reply."""
        entries, reply = auth_commands.decide(self, command)
        for entry in entries:
            if entry.document is None:
                del self.rows[entry.what, entry.name]
            else:
                self.rows[entry.what, entry.name] = entry
        return reply
