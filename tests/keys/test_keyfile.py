from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders import rewritten

from hefl.ckks.context import PublicContext, SecretContext
from hefl.errors import ExistsError, KeyFileError, SecretAtServerError
from hefl.keys import file_format, keyfile
from hefl.keys.keyfile import ClientNames


@pytest.fixture
def path(tmp_path: Path, secret: SecretContext) -> Path:
    keyfile.write_secret(tmp_path / "secret.hefl", secret, "alice")
    return tmp_path / "secret.hefl"


def test_what_is_written_is_read(path: Path, secret: SecretContext, public: PublicContext) -> None:
    file, back = keyfile.read_secret(path)
    assert back == secret
    assert (file.kind, file.identity, file.holder) == ("secret", secret.identity, "alice")
    keyfile.write_public(path.with_name("public.hefl"), public, "server")
    assert keyfile.read_public(path.with_name("public.hefl"))[1] == public
    keyfile.write_clients(path.with_name("clients.hefl"), secret.identity, "server", ("alice", "bob-2"))
    assert keyfile.read_clients(path.with_name("clients.hefl"))[1] == ClientNames(("alice", "bob-2"), ())
    urls = ("https://[::1]:8443", "https://fl.example.org:443")
    keyfile.write_address(path.with_name("address.hefl"), secret.identity, "alice", urls)
    assert keyfile.read_address(path.with_name("address.hefl"))[1] == urls


def test_a_key_file_is_its_owners_alone_and_never_written_over(path: Path, secret: SecretContext) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ExistsError):
        keyfile.write_secret(path, secret, "alice")


def test_the_first_line_is_the_version_and_the_rest_can_be_read_with_cat(path: Path) -> None:
    lines = path.read_text("ascii").split("\n")
    assert lines[0] == "hefl/v1 secret"
    assert [line.split(": ")[0] for line in lines[1:-1]] == list(file_format.FIELDS["secret"])
    assert lines[-1] == ""


def test_a_public_file_holds_neither_key(path: Path, public: PublicContext, secret: SecretContext) -> None:
    keyfile.write_public(path.with_name("public.hefl"), public, "server")
    text = path.with_name("public.hefl").read_text()
    private = dict(line.split(": ", 1) for line in path.read_text().splitlines()[1:])
    assert private["group-key"] not in text
    assert private["ckks"] not in text
    assert len(text) < 2000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"hefl/v1 secret", "hefl/v2 secret", "starts with"),
        (r"hefl/v1 secret", "hefl/v1 public", "starts with"),
        (r"generation: 1", "generation: 0", "line 3: the value of 'generation'"),
        (r"generation: 1", "generation: one", "line 3"),
        (r"generation: 1\n", "", "fields where"),
        (r"generation: 1\n", "generation: 1\ngeneration: 1\n", "fields where"),
        (r"generation", "colour", "'generation' belongs here"),
        (r"(federation: .*)\n(generation: .*)\n", r"\2\n\1\n", "'federation' belongs here"),
        (r"holder: alice", "holder: Alice", "'holder' is not in form"),
        (r"\n\Z", "", "truncated"),
        (r"\Z", "x", "truncated"),
        (r"\Z", "x\n", "fields where"),
        (r"\Z", "\n", "fields where"),
        (r"group-key: .", "group-key: !", "'group-key' is not in form"),
        (r"created: 20", "created: 21", "its checksum is another"),
        (r"checksum: .*", "checksum: " + "0" * 64, "its checksum is another"),
        (r"checksum: .*\n", "", "fields where"),
        (r"ckks-fingerprint: .", "ckks-fingerprint: ", "not in form"),
        (r"alice", "älice", "ASCII"),
    ],
)
def test_a_file_that_is_not_to_the_letter_is_refused(path: Path, old: str, new: str, message: str) -> None:
    text = path.read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(KeyFileError, match=message) as caught:
        keyfile.read_secret(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"rings: \d+", "rings: 2048", "rings are not those"),
        (r"group-key: ....", "group-key: ", "32 bytes"),
        (r"group-key: ....", "group-key: AAAA", "do not match their fingerprints"),
        (r"group-key: (.*)=", r"group-key: \1", "not base64"),
    ],
)
def test_a_checksum_alone_makes_no_file_genuine(path: Path, old: str, new: str, message: str) -> None:
    rewritten(path, old, new)
    with pytest.raises(KeyFileError, match=message):
        keyfile.read_secret(path)


@pytest.mark.parametrize(
    ("clients", "revoked", "message"),
    [
        ("bob alice", "-", "clients must be sorted"),
        ("alice alice", "-", "clients must be sorted"),
        ("alice", "dave carol", "revoked must be sorted"),
        ("alice bob", "bob", "bob is both"),
        ("-", "bob", "'clients' is not in form"),
    ],
)
def test_a_list_of_clients_says_each_thing_once(
    tmp_path: Path, secret: SecretContext, clients: str, revoked: str, message: str
) -> None:
    path = tmp_path / "clients.hefl"
    keyfile.write_clients(path, secret.identity, "server", ("alice",), ("zoe",))
    assert keyfile.read_clients(path)[1] == ClientNames(("alice",), ("zoe",))
    rewritten(path, r"clients: .*\nrevoked: .*", f"clients: {clients}\nrevoked: {revoked}")
    with pytest.raises(KeyFileError, match=message):
        keyfile.read_clients(path)


def test_a_secret_file_is_refused_where_a_public_one_belongs(path: Path) -> None:
    with pytest.raises(SecretAtServerError, match="a server may not hold one"):
        keyfile.read_public(path)


def test_a_file_that_others_may_read_is_refused_with_the_mend(path: Path) -> None:
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="may be read by others") as caught:
        keyfile.read_secret(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_link_is_not_followed(path: Path) -> None:
    path.with_name("link.hefl").symlink_to(path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        keyfile.read_secret(path.with_name("link.hefl"))


def test_no_message_shows_a_key(path: Path, secret: SecretContext) -> None:
    shown = f"{secret!r} {keyfile.read_secret(path)[0]!r}"
    assert secret.group_key.hex() not in shown
    assert "ckks" not in shown
