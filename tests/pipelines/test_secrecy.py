import pytest

from pipelines.registry import tracking
from pipelines.secrecy import has_password, without_secrets

SECRET = "Ve7ry5ecret"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"postgresql://mlflow:{SECRET}@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        (f"mysql+pymysql://u:a@{SECRET}@db/mlflow", "mysql+pymysql://db/mlflow"),
        (f"http://{SECRET}@host:5000", "http://host:5000"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////tmp/me@home/mlflow.db", "sqlite:////tmp/me@home/mlflow.db"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("me@home/photos", "me@home/photos"),
    ],
)
def test_an_address_is_shown_without_user_and_password(
    address: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking.shown_uri() == shown
    assert has_password(address) == (address != shown)
    assert without_secrets(f"API request to {address} failed") == f"API request to {shown} failed"


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"])
def test_what_the_environment_holds_is_not_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert without_secrets(f"the key {SECRET} is bad") == "the key *** is bad"
