"""Start a client from a folder, a trainer and options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hefl.client.callbacks import OnRound
from hefl.client.client import Client
from hefl.client.kept_models import BestModel
from hefl.client.learner import Learner
from hefl.client.options import ClientOptions
from hefl.client.state import FILE, ClientState, is_session
from hefl.engines.load import load_engine
from hefl.errors import StateError, UsageError
from hefl.files import locked, private_folder, state_folder
from hefl.keys.credentials import announce_expiry
from hefl.keys.folders import ClientFolder, read_client_folder
from hefl.loops import run_to_end
from hefl.models.file import check_absent, check_target
from hefl.models.layout import Arrays
from hefl.models.trainer import Trainer

log = logging.getLogger("hefl")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client has when its run is over.

    Attributes:
        names: Of the model's tensors.
        arrays: The final global model; None where there is none.
        confirmed, unconfirmed: Other clients for which the run has ended in the same model, and those of whom that is
            not known.
    """

    names: tuple[str, ...]
    arrays: Arrays | None
    confirmed: tuple[str, ...]
    unconfirmed: tuple[str, ...]


class Participation:
    """A client that can run: it holds its state folder."""

    def __init__(self, client: Client, learner: Learner, options: ClientOptions) -> None:
        self._client, self._learner, self._options = client, learner, options

    async def run(self) -> None:
        """Take part until the run has ended.

        Raises:
            HeflError: Anything that this client or the server refused.
            StateError: The model that is to be saved does not exist.
        """
        await self._client.run()
        save, save_best = self._options.save, self._options.save_best
        if save and self._learner.model is None:
            raise StateError(f"{save} was not written: this client has no model")
        if save_best and not save_best.exists():
            log.warning("%s was not written: no model that came here is known to be the best so far", save_best)

    @property
    def outcome(self) -> Outcome:
        """What has come of it so far."""
        model, names = self._learner.model, tuple(tensor.name for tensor in self._learner.layout.tensors)
        return Outcome(names, model.arrays if model else None, self._client.confirmed, self._client.unconfirmed)


@contextmanager
def opened(
    folder: Path,
    load: Callable[[str], Trainer],
    options: ClientOptions,
    on_round: OnRound,
    *,
    find_proxy: Callable[[str], str | None] = lambda url: None,
    step: Callable[[str], None] = lambda what: None,
) -> Iterator[Participation]:
    """Open a client's state, and close it afterwards.

    Args:
        folder: DIR/clients/NAME.
        load: Makes the trainer, and is told the client's name.
        options: The person's.
        on_round: Is told a RoundReport of each round.
        find_proxy: Says for a server's URL through which proxy it is called, where the options name none.
        step: Is told what is done before the client joins, in words.

    Raises:
        HeflError: Keys, options, trainer or state do not fit; says which, and what does.
    """
    if options.save and options.save_best and options.save.absolute() == options.save_best.absolute():
        raise UsageError(f"--save and --save-best both name {options.save}", hint="name two files")
    wanted = {"--save": options.save, "--save-best": options.save_best}
    targets = {flag: path for flag, path in wanted.items() if path}
    for flag, path in targets.items():
        check_target(flag, path)
    keys = read_client_folder(folder, options.passphrase)
    announce_expiry(keys.credentials)
    step("preparing the encryption")
    engine = load_engine(
        options.engine,
        precision_bits=options.precision_bits,
        weighting=options.weighting,
        insecure_plaintext=options.insecure_plaintext,
    )
    engine.prepare()
    place = state_folder(options.state or folder / "state", FILE, is_session)
    with locked(place, "client"):
        step("loading the model and its data")
        kept = ClientState(place, options.keep)
        _prepare(kept, {} if options.force else targets, options.again)
        learner = Learner(
            keys.name,
            load(keys.name),
            keys.secret,
            engine,
            seed=options.seed,
            num_examples=options.num_examples,
            initial=options.initial,
            save_best=BestModel(kept, options.save_best) if options.save_best else None,
            patience=options.patience,
            trace=options.trace and private_folder(options.trace),
            one_set=kept.one_set,
        )
        client = _client(keys, learner, kept, options, on_round, find_proxy)
        step("waiting for the first model")
        yield Participation(client, learner, options)


def take_part(
    folder: Path | str,
    trainer: Trainer,
    options: ClientOptions | None = None,
    *,
    on_round: OnRound = lambda report: None,
) -> Outcome:
    """Take part in a run until it has ended, as ``hefl client`` does.

    It blocks, in a notebook's cell too. The same call again goes on with a run that was interrupted.

    Args:
        folder: DIR/clients/NAME, as ``hefl keygen`` made it.
        trainer: The client's model and data.
        options: How it takes part.
        on_round: Is told a RoundReport of each round, in a thread of its own. What it raises ends the run with a
            TrainerError.

    Raises:
        HeflError: Keys, options, trainer or state do not fit, or this client or the server refused something.
    """
    with opened(Path(folder), lambda name: trainer, options or ClientOptions(), on_round) as participation:
        run_to_end(participation.run())
        return participation.outcome


def _client(
    keys: ClientFolder,
    learner: Learner,
    kept: ClientState,
    options: ClientOptions,
    on_round: OnRound,
    find_proxy: Callable[[str], str | None],
) -> Client:
    save = options.save
    return Client(
        keys,
        learner,
        kept,
        url=options.server,
        connect_timeout_s=options.connect_timeout_s,
        insecure_http=options.insecure_http,
        proxy=options.proxy or find_proxy(options.server or keys.url),
        min_participants=options.min_participants,
        on_tamper=options.on_tamper,
        report_metrics=options.report_metrics,
        on_end=partial(learner.save, save, kept.write_model) if save else lambda: None,
        on_round=on_round,
    )


def _prepare(kept: ClientState, targets: Mapping[str, Path], again: str | None) -> None:
    """Claim the files that may be replaced, and lift what a person has lifted. Raises ExistsError."""
    for flag, path in targets.items():
        if not kept.claim(path):
            check_absent(flag, path)
    if again and not kept.lift(again):
        log.warning("--again %s changes nothing: it was used, or is the code of another refusal", again)
