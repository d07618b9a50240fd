"""``hefl keygen``: the key authority."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hefl.cli.interrupts import raised
from hefl.cli.options import json_option, print_json
from hefl.cli.passphrase import existing_passphrase, new_passphrase, passphrase_file_option
from hefl.cli.progress import show_progress
from hefl.cli.terminal import clear, say
from hefl.errors import UsageError

if TYPE_CHECKING:
    from hefl.keys.authority import Change, Federation


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--client", "clients", metavar="NAME", multiple=True, help="A client; once for each.")
@click.option(
    "--server-name",
    "server_names",
    metavar="HOST[:PORT]",
    multiple=True,
    help="Where clients reach the server; the first is the one they call.  [default: 127.0.0.1 and localhost]",
)
@click.option("--rotate", is_flag=True, help="New keys for all clients and the server: the next key generation.")
@click.option(
    "--revoke", metavar="NAME", multiple=True, help="Remove a client, and --rotate, because it knows the old keys."
)
@click.option("--renew", is_flag=True, help="New certificates for all; the keys stay.")
@click.option("--days", default=730, show_default=True, help="Validity of the certificates.")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase, and seal every secret file with it.")
@passphrase_file_option
@click.option("--force", is_flag=True, help="Replace the federation in DIR; its old keys are removed.")
@json_option
def keygen(
    folder: Path,
    clients: tuple[str, ...],
    server_names: tuple[str, ...],
    rotate: bool,
    revoke: tuple[str, ...],
    renew: bool,
    days: int,
    passphrase: bool,
    passphrase_file: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Make a federation's keys: a folder for the server, one for each client, one to lock away.

    \b
    DIR/server/         for the machine that runs 'hefl serve'; holds no secret of the clients'
    DIR/clients/NAME/   for that client alone, by a channel you trust
    DIR/authority/      to lock away, offline

    Where DIR holds a federation, --client adds to it, and --rotate, --revoke and --renew change it; DIR/authority/ is
    all that they need. New keys do not open the models that a client keeps: see 'hefl export'.
    """  # noqa: D301 - click reads the escape
    show_progress(f"making keys in {folder}", as_json=as_json)
    from hefl.keys import authority
    from hefl.keys.names import DEFAULT_SERVER_NAMES

    if passphrase and passphrase_file:
        raise UsageError("--passphrase asks, and --passphrase-file reads", hint="name one of them")
    wants_seal = passphrase or passphrase_file is not None
    wanted = authority.Change(
        add=clients, revoke=revoke, rotate=rotate, renew=renew, server_names=server_names, days=days
    )
    if authority.exists(folder) and not force:
        asks_new = wants_seal and not authority.is_sealed(folder)
        words = new_passphrase(passphrase_file) if asks_new else existing_passphrase(passphrase_file)
        with raised():
            changed = authority.change(folder, wanted, words, seals=wants_seal)
        clear()
        _report_change(changed, wanted, as_json=as_json)
        return
    if wanted.concerns_all:
        raise UsageError(
            "--rotate, --revoke and --renew change a federation that exists",
            hint="leave out --force" if force else f"{folder} holds none: make it with --client NAME first",
        )
    if not clients:
        raise UsageError("keygen needs --client", hint="name each client of the new federation: --client NAME")
    with raised():
        made = authority.create(
            folder,
            clients,
            server_names or DEFAULT_SERVER_NAMES,
            days=days,
            force=force,
            passphrase=new_passphrase(passphrase_file) if wants_seal else None,
        )
    clear()
    if as_json:
        print_json({"event": "created", **_facts(made)})
        return
    say(f"{made.identity} is in {made.folder}:")
    _say_where(made, made.clients)


def _report_change(made: Federation, wanted: Change, *, as_json: bool) -> None:
    """Say what changed, and which folders have to travel again."""
    if as_json:
        kind = "rotated" if wanted.rotates else "renewed" if wanted.renew else "added"
        new = made.clients if wanted.concerns_all else sorted(wanted.add)
        print_json({"event": kind, **_facts(made), "issued": list(new), "revoked": list(made.revoked)})
        return
    if wanted.rotates:
        gone = f"; {', '.join(sorted(wanted.revoke))} revoked" if wanted.revoke else ""
        say(f"{made.identity} is in {made.folder}, with new keys for all{gone}. Hand out every folder again:")
    elif wanted.renew:
        say(f"{made.identity} has new certificates in {made.folder}. Hand out every folder again:")
    else:
        say(f"{made.identity} has {len(made.clients)} clients now. Copy server/ again:")
        say(f"  {made.folder}/server/clients.hefl  to the server's folder; a server that runs picks it up", indent=4)
        for name in sorted(wanted.add):
            say(f"  {made.folder}/clients/{name}/  to {name} alone, by a channel you trust", indent=4)
        return
    _say_where(made, made.clients)
    if wanted.rotates:
        say(
            "Models that a client keeps are read with its old keys alone. Before its folder is replaced, it runs "
            "'hefl export' for what it still wants, or puts its old secret.hefl by.",
            indent=0,
        )
    say("Then restart the server and the clients.")


def _say_where(made: Federation, names: tuple[str, ...]) -> None:
    say(f"  {made.folder}/server/  to the machine at {made.urls[0]}", indent=4)
    for name in names:
        say(f"  {made.folder}/clients/{name}/  to {name} alone, by a channel you trust", indent=4)
    say(f"  {made.folder}/authority/  to lock away, offline", indent=4)


def _facts(made: Federation) -> dict[str, object]:
    return {
        "folder": str(made.folder),
        "federation": made.identity.federation,
        "generation": made.identity.generation,
        "clients": list(made.clients),
        "servers": list(made.urls),
    }
