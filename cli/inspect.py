"""``hefl inspect``: what a file is, whom it is for, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hefl.cli.options import json_option, print_json
from hefl.cli.progress import show_progress
from hefl.cli.terminal import clear, say

if TYPE_CHECKING:
    from hefl.inspection.compare import FileReport


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def inspect(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what files and folders of hefl's are, who may see them, whether they fit each other, and what is wrong.

    Takes key files, certificates, private keys, updates, sums, models, and folders of them. Prints no secret. Ends
    with exit code 3 where something is wrong.
    """
    show_progress(f"looking at {', '.join(map(str, files))}", as_json=as_json)
    from hefl.errors import KeysError
    from hefl.inspection.describe import inspect as look

    findings = look(files)
    clear()
    for finding in findings:
        if as_json:
            print_json(_as_json(finding))
        else:
            _print(finding)
    wrong = [finding for finding in findings if finding.problems]
    if wrong:
        raise KeysError(
            f"something is wrong with {len(wrong)} of {len(findings)}: {', '.join(str(f.path) for f in wrong[:3])}"
            + (" and more" if len(wrong) > 3 else ""),
            hint="the lines above say what, and the way out",
        )
    of = sorted({str(f.references.identity) for f in findings if f.references.identity})
    if len(findings) > 1 and not as_json:
        say(f"together: {', '.join(of) or 'no federation is named'}; nothing is wrong")


def _print(finding: FileReport) -> None:
    say(f"{finding.path}: {finding.what}")
    rows = list(finding.details)
    if finding.references.identity:
        whom = f", issued to {finding.references.holder}" if finding.references.holder else ""
        rows.insert(0, ("of", f"{finding.references.identity}{whom}"))
    if finding.audience:
        rows.append(("for", finding.audience))
    rows += [("soon", notice) for notice in finding.notices]
    for problem in finding.problems:
        rows.append(("wrong", problem.message))
        if problem.hint:
            rows.append(("hint", problem.hint))
    for label, text in rows:
        say(f"  {label + ':':<9} {text}", indent=12)


def _as_json(finding: FileReport) -> dict[str, Any]:
    identity = finding.references.identity
    return {
        "path": str(finding.path),
        "what": finding.what,
        "federation": identity and identity.federation,
        "generation": identity and identity.generation,
        "holder": finding.references.holder or None,
        "details": dict(finding.details),
        "for": finding.audience or None,
        "notices": list(finding.notices),
        "problems": [{"message": p.message, "hint": p.hint} for p in finding.problems],
    }
