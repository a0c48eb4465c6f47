"""Users and roles in a dict: `kvd.v2.documents.decision.Documents` without a store."""

from collections.abc import Iterator

from kvd.storage.format.records import Document
from kvd.v2.documents import auth_commands
from kvd.v2.documents.decision import Reply


class People:
    """The state that `kvd.v2.documents.auth` reads and that a decided command changes."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Document] = {}

    def document(self, what: str, name: str) -> Document | None:
        return self.rows.get((what, name))

    def documents(self, what: str) -> list[Document]:
        return list(self.each_document(what))

    def each_document(self, what: str) -> Iterator[Document]:
        return (document for document in self.rows.values() if document.what == what)

    def do(self, command: auth_commands.Command) -> Reply:
        """Decide a command and do what is decided; return the reply."""
        documents, reply = auth_commands.decide(self, command)
        for document in documents:
            if document.content is None:
                del self.rows[document.what, document.name]
            else:
                self.rows[document.what, document.name] = document
        return reply
