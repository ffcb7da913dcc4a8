"""What a run writes names no secret, and keeps everything else."""

from __future__ import annotations

import pytest

from slipstream.secrets import REDACTED, is_secret_name, looks_secret, redact, secret_values


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "RAY_AUTH_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "MLFLOW_TRACKING_PASSWORD",
        "GITHUB_PAT",
        "apiKey",
        "apikey",
        "SSHKEY",
        "GOOGLE_CREDENTIALS",
        "--hub-token",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_new_tokens", "TOKENIZERS_PARALLELISM", "tokenizer", "num_tokens", "PWD", "PATH"),
        *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "key", "pat", "keep_last", "prompt_field", ""),
        *("donkey", "sort_monkey", "turkeyCount"),
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


ENVIRON = {"HF_TOKEN": "correct-horse", "MY_KEY": "1234", "OTHER_TOKEN": "correct-horse-battery"}


def test_values_of_the_environment_are_known_longest_first() -> None:
    assert list(secret_values(ENVIRON)) == ["correct-horse-battery", "correct-horse"]
    assert redact("a correct-horse-battery, correct-horse; 1234", ENVIRON) == (
        f"a {REDACTED}, {REDACTED}; 1234"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--token=abc --steps=3", f"--token={REDACTED} --steps=3"),
        ("api_key: abc", f"api_key: {REDACTED}"),
        ('{"password": "abc", "a": 1}', f'{{"password": "{REDACTED}", "a": 1}}'),
        ("git clone https://me:abc@host/x", f"git clone https://{REDACTED}@host/x"),
        ("Authorization: Bearer abcdefgh", f"Authorization: Bearer {REDACTED}"),
        ("with hf_abcdefghijklmnopqrst", f"with {REDACTED}"),
        ("the last token: the", "the last token: the"),
        ("max_new_tokens: 5 learner.num_steps=3", "max_new_tokens: 5 learner.num_steps=3"),
        ("You do basic arithmetic. Basic understanding12", None),
        ("donkey=grey turkey: 1 sort_monkey: 2", None),
        ("Authorization: basic dTpwYXNz", f"Authorization: basic {REDACTED}"),
        ("curl -H Bearer eyJhbGciOiJIUzI1", f"curl -H Bearer {REDACTED}"),
        ("apikey=abc", f"apikey={REDACTED}"),
        ("http://host:8265/x@y", "http://host:8265/x@y"),
    ],
)
def test_texts(text: str, expected: str | None) -> None:
    """None: nothing in it is a secret."""
    expected = text if expected is None else expected
    assert redact(text, {}) == expected
    assert redact(expected, {}) == expected, "once is as good as twice"


def test_containers_keep_their_form() -> None:
    found = redact(
        {
            "argv": ["slipstream", "launch", "--hub-token", "abc", "seed=3"],
            "env": {"HF_TOKEN": "abc", "EMPTY_TOKEN": "", "HOME": "/root", "n": 3, "t": True},
            "pair": ("correct-horse", None),
            "vault_secret": {"deep": ["abc"]},
        },
        ENVIRON,
    )
    assert found == {
        "argv": ["slipstream", "launch", "--hub-token", REDACTED, "seed=3"],
        "env": {"HF_TOKEN": REDACTED, "EMPTY_TOKEN": "", "HOME": "/root", "n": 3, "t": True},
        "pair": (REDACTED, None),
        "vault_secret": REDACTED,
    }


def test_forms_of_credentials() -> None:
    assert looks_secret("https://me:abc@host/x")
    assert looks_secret("ghp_abcdefghijklmnopqrstuvwxyz")
    assert not looks_secret("0123456789abcdef0123456789abcdef01234567"), "a commit"
    assert not looks_secret("some/model")
    assert not looks_secret("You do basic arithmetic.")
