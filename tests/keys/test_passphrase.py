"""Sealed key files: what opens them, what does not, and that nothing of them is readable without the words."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from builders import rewritten
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from hefl.ckks.context import SecretContext
from hefl.errors import KeyFileError, MismatchError, SecretAtServerError, UsageError
from hefl.keys import file_format, keyfile, passphrase
from hefl.keys.passphrase import Passphrase

WORDS = "correct horse batterie stäple"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, secret: SecretContext) -> bytes:
    path = tmp_path_factory.mktemp("sealed") / "secret.hefl"
    keyfile.write_secret(path, secret, "alice", Passphrase(lambda _: WORDS))
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, sealed: bytes) -> Path:
    path = tmp_path / "secret.hefl"
    path.touch(0o600)
    path.write_bytes(sealed)
    return path


@pytest.fixture(scope="module")
def words() -> Passphrase:
    return Passphrase(lambda _: WORDS)


def test_the_passphrase_opens_what_it_sealed_and_everyone_sees_whose_file_it_is(
    path: Path, words: Passphrase, secret: SecretContext
) -> None:
    file, back = keyfile.read_secret(path, words)
    assert back == secret
    seen = file_format.read(path)
    assert (seen.kind, seen.identity, seen.holder) == ("sealed", file.identity, file.holder)
    assert [line.split(": ")[0] for line in path.read_text().splitlines()[1:]] == list(file_format.FIELDS["sealed"])


def test_a_sealed_file_is_what_the_readme_says(path: Path, secret: SecretContext) -> None:
    """By the standard library's scrypt and a cipher that knows nothing of hefl."""
    import base64
    import hashlib

    text = path.read_bytes()
    found = dict(line.split(": ", 1) for line in text.decode().splitlines()[1:])
    form = re.fullmatch(r"scrypt 131072:8:1 ([0-9a-f]{32})", found["kdf"])
    assert form
    salt = bytes.fromhex(form[1])
    key = hashlib.scrypt(WORDS.encode(), salt=salt, n=2**17, r=8, p=1, maxmem=2**28, dklen=32)
    sealed, head = base64.b64decode(found["sealed"]), text[: text.index(b"sealed: ")]
    plain = ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], head)
    assert plain.startswith(b"hefl/v1 secret\n")
    assert f"group-key: {base64.b64encode(secret.group_key).decode()}\n".encode() in plain
    assert found["checksum"] == hashlib.sha256(text[: text.rindex(b"checksum: ")]).hexdigest()


def test_another_passphrase_is_told_from_a_damaged_file(path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"the passphrase does not open .*secret\.hefl") as caught:
        keyfile.read_secret(path, Passphrase(lambda _: WORDS + " "))
    assert caught.value.hint
    data = path.read_bytes()
    path.write_bytes(data[:-100] + (b"y" if data[-100:-99] == b"x" else b"x") + data[-99:])
    with pytest.raises(KeyFileError, match="is damaged"):
        keyfile.read_secret(path, Passphrase(lambda _: WORDS))


def test_no_passphrase_opens_nothing_and_the_hint_says_how(path: Path) -> None:
    with pytest.raises(KeyFileError, match="is sealed with a passphrase") as caught:
        keyfile.read_secret(path)
    assert "--passphrase-file" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("^generation: 1", "generation: 2"),
        ("^holder: alice", "holder: bob"),
        ("^created: 20", "created: 21"),
        ("^sealed: .", "sealed: /"),
        ("^sealed: .*", "sealed: AAAA"),
        ("^(kdf: .*).$", r"\g<1>0"),
    ],
)
def test_every_line_is_bound_whoever_makes_the_checksum_right(
    path: Path, words: Passphrase, old: str, new: str
) -> None:
    if old.startswith("^(kdf") and path.read_text().split("kdf: ")[1].split("\n")[0].endswith("0"):
        new = r"\g<1>1"
    if new == "sealed: /" and "\nsealed: /" in path.read_text():
        new = "sealed: A"
    rewritten(path, old, new)
    with pytest.raises(KeyFileError, match="does not open"):
        keyfile.read_secret(path, words)


@pytest.mark.parametrize("kdf", ["524288:8:1", "131072:9:1", "131072:8:5", "131073:8:1", "9999999:99:99"])
def test_a_file_that_asks_for_too_much_work_is_refused_before_any_is_done(
    path: Path, kdf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("scrypt was called")

    monkeypatch.setattr(passphrase, "Scrypt", work)
    rewritten(path, "scrypt [0-9:]+", f"scrypt {kdf}")
    with pytest.raises(KeyFileError, match="is more than"):
        keyfile.read_secret(path, Passphrase(lambda _: WORDS))


def test_a_sealed_file_of_another_content_or_place_is_refused(path: Path, words: Passphrase) -> None:
    rewritten(path, "content: secret", "content: tls-key")
    with pytest.raises(KeyFileError, match="holds a tls-key, not a secret"):
        keyfile.read_secret(path, words)
    with pytest.raises(SecretAtServerError, match="a server may not hold one"):
        keyfile.read_public(path)


def test_what_is_inside_must_be_whose_the_outside_says(
    tmp_path: Path, words: Passphrase, secret: SecretContext
) -> None:
    from hefl.files import write_private
    from hefl.keys.sealed import seal

    keyfile.write_secret(tmp_path / "bobs.hefl", secret, "bob")
    wrapped = seal((tmp_path / "bobs.hefl").read_bytes(), "secret", secret.identity, "alice", words)
    write_private(tmp_path / "secret.hefl", wrapped)
    with pytest.raises(MismatchError, match=r"issued to alice.*to bob"):
        keyfile.read_secret(tmp_path / "secret.hefl", words)


def test_two_files_of_one_passphrase_show_nothing_in_common(tmp_path: Path, secret: SecretContext) -> None:
    words = Passphrase(lambda _: WORDS)
    texts = []
    for name in ("a", "b"):
        keyfile.write_secret(tmp_path / name, secret, "alice", words)
        texts.append((tmp_path / name).read_text().split("sealed: ")[1])
    assert not {texts[0][i : i + 8] for i in range(0, 4000, 8)} & {texts[1][i : i + 8] for i in range(0, 4000, 8)}


def test_a_passphrase_is_the_same_however_it_was_typed(path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", WORDS)
    assert decomposed != WORDS
    keyfile.read_secret(path, Passphrase(lambda _: decomposed))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line", [f"{WORDS}\n", f"{WORDS}\r\nsecond line\r\n", f"{WORDS}\rsecond line\r", WORDS])
def test_a_passphrase_file_gives_its_first_line_whatever_an_editor_puts_around_it(
    path: Path, line: str, encoding: str
) -> None:
    file = path.with_name("words")
    file.touch(0o600)
    file.write_bytes(line.encode(encoding))
    keyfile.read_secret(path, Passphrase.from_file(file))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_passphrase_file_of_another_encoding_is_refused_with_the_way_out(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "words"
    file.touch(0o600)
    file.write_bytes("correct horse\r\n".encode(encoding))
    with pytest.raises(KeyFileError, match="is UTF-16 or UTF-32 text, and not UTF-8") as caught:
        Passphrase.from_file(file)
    assert "save it again as UTF-8" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("data", "mode", "message"),
    [
        (b"\n", 0o600, "empty line"),
        (b"\xef\xbb\xbf\r\n", 0o600, "empty line"),
        (b"\xe9\n", 0o600, "is not UTF-8 text"),
        (b"x\n", 0o640, "read by others"),
    ],
)
def test_a_passphrase_file_that_is_none_is_refused(tmp_path: Path, data: bytes, mode: int, message: str) -> None:
    (tmp_path / "words").write_bytes(data)
    (tmp_path / "words").chmod(mode)
    with pytest.raises(KeyFileError, match=message):
        Passphrase.from_file(tmp_path / "words")


def test_an_empty_passphrase_seals_nothing(tmp_path: Path, secret: SecretContext) -> None:
    with pytest.raises(UsageError, match="at least one character"):
        keyfile.write_secret(tmp_path / "secret.hefl", secret, "alice", Passphrase(lambda _: ""))
    assert not list(tmp_path.iterdir())
