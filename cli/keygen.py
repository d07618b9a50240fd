"""``hefl keygen``: the key authority."""

from __future__ import annotations

from pathlib import Path

import click

from hefl.cli.options import json_option, print_json


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--client", "clients", metavar="NAME", multiple=True, required=True, help="A client; once for each.")
@click.option(
    "--server-name",
    "server_names",
    metavar="HOST[:PORT]",
    multiple=True,
    help="Where clients reach the server; the first is the one they call.  [default: 127.0.0.1 and localhost]",
)
@click.option("--days", default=730, show_default=True, help="Validity of the certificates.")
@click.option("--force", is_flag=True, help="Replace the federation in DIR; its old keys are removed.")
@json_option
def keygen(
    folder: Path, clients: tuple[str, ...], server_names: tuple[str, ...], days: int, force: bool, as_json: bool
) -> None:
    """Make a federation's keys: a folder for the server, one for each client, one to lock away.

    \b
    DIR/server/         for the machine that runs 'hefl serve'; holds no secret of the clients'
    DIR/clients/NAME/   for that client alone, by a channel you trust
    DIR/authority/      to lock away, offline
    """  # noqa: D301 - click reads the escape
    from hefl.keys import authority

    made = authority.create(folder, clients, server_names or authority.DEFAULT_SERVER_NAMES, days=days, force=force)
    if as_json:
        print_json(
            {
                "event": "created",
                "folder": str(made.folder),
                "federation": made.identity.federation,
                "generation": made.identity.generation,
                "clients": list(made.clients),
                "servers": list(made.urls),
            }
        )
        return
    click.echo(f"{made.identity} is in {made.folder}:")
    click.echo(f"  {made.folder}/server/  to the machine at {made.urls[0]}")
    for name in made.clients:
        click.echo(f"  {made.folder}/clients/{name}/  to {name} alone, by a channel you trust")
    click.echo(f"  {made.folder}/authority/  to lock away, offline")
