"""Read ``clients.hefl`` again whenever it changes: the clients that may join."""

from __future__ import annotations

import logging

from hefl.errors import KeysError, MismatchError
from hefl.keys.folders import ServerFolder
from hefl.keys.keyfile import ClientNames, read_clients

log = logging.getLogger("hefl")


class Roll:
    """Follows the list of clients in a server's folder.

    Args:
        folder: As it was read when the server started.

    Attributes:
        names: The newest list that could be used.
    """

    def __init__(self, folder: ServerFolder) -> None:
        self.names = folder.names
        self._path = folder.path / "clients.hefl"
        self._identity = folder.public.identity
        self._seen: tuple[int, ...] | None = ()

    def refresh(self) -> ClientNames:
        """Look at the file, and read it if it is another; one that cannot be used is logged, and the old list stays."""
        found = self._look()
        if found == self._seen:
            return self.names
        self._seen = found
        try:
            names = self._read()
        except KeysError as error:
            log.error("%s; the list of clients stays as it was", error.message)
            log.error("hint: %s", error.hint or "copy it from the authority's folder again")
            return self.names
        before, self.names = self.names, names
        for what, some in (
            ("may join now", set(names.clients) - set(before.clients)),
            ("may not join any more", set(before.clients) - set(names.clients)),
        ):
            if some:
                log.info("%s has changed: %s %s", self._path, ", ".join(sorted(some)), what)
        return names

    def _look(self) -> tuple[int, ...] | None:
        """What tells one state of the file from another; None where it is missing."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _read(self) -> ClientNames:
        file, names = read_clients(self._path)
        if file.identity != self._identity or file.holder != "server":
            raise MismatchError(
                f"{self._path} is of {file.identity}, issued to {file.holder}, and this server runs {self._identity}",
                hint="copy the whole folder server/ from the authority again, and restart the server",
            )
        return names
