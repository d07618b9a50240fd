"""``hefl export``: a global model out of a client's folder."""

from __future__ import annotations

from pathlib import Path

import click

from hefl.cli.interrupts import raised
from hefl.cli.options import json_option, print_json
from hefl.cli.passphrase import existing_passphrase, passphrase_file_option
from hefl.cli.progress import show_progress
from hefl.cli.terminal import clear, say


@click.command()
@click.argument("keys", metavar="DIR/clients/NAME", type=click.Path(path_type=Path))
@click.option("--round", "round_num", type=click.IntRange(0), help="The model after this one.  [default: the last]")
@click.option("--to", "target", type=click.Path(path_type=Path), metavar="FILE", required=True, help="Where to.")
@click.option("--force", is_flag=True, help="Replace a file.")
@click.option("--state", type=click.Path(path_type=Path), help="The client's.  [default: DIR/clients/NAME/state]")
@passphrase_file_option
@json_option
def export(
    keys: Path,
    round_num: int | None,
    target: Path,
    force: bool,
    state: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Verify and decrypt one of the last global models that a client keeps, without a server.

    Writes .npz or .safetensors: names, shapes and types as the trainer has them. The file is not encrypted. Models that
    were made with earlier keys are read with those: name the folder that the client had then, or a copy of its
    secret.hefl, and the client's --state.
    """
    progress = show_progress(f"reading the keys in {keys}", as_json=as_json)
    from hefl.client.kept_models import read_model
    from hefl.keys.folders import read_client_secret
    from hefl.models.file import check_absent, check_target, write_model

    check_target("--to", target)
    if not force:
        check_absent("--to", target)
    secret = read_client_secret(keys, existing_passphrase(passphrase_file))
    folder = keys.parent if keys.is_file() else keys
    progress.step("verifying and decrypting the model")
    model = read_model(state or folder / "state", secret, round_num)
    with raised():
        write_model(target, model.layout, model.arrays)
    clear()
    if as_json:
        print_json({"event": "exported", "path": str(target), "round": model.round, "verified": model.verified})
        return
    proved = "verified" if model.verified else "not verified: its engine cannot prove sums"
    say(f"the model of round {model.round} is in {target} ({proved})")
