import re

import pytest
from pydantic import TypeAdapter

from flows.parameters import Place
from pipelines.registry.store import shown_uri
from pipelines.secrecy import has_password, masked, without_secrets

SECRET = "Ve7ry5ecret"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"postgresql://mlflow:{SECRET}@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        (f"mysql+pymysql://u:a@{SECRET}@db/mlflow", "mysql+pymysql://db/mlflow"),
        (f"postgresql://mlflow:ab/cd{SECRET}@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        (f"postgresql://mlflow:{SECRET}/1@2/3@db/mlflow", "postgresql://db/mlflow"),
        (f"s3://AKIA:ab/cd{SECRET}@bucket/photos", "s3://bucket/photos"),
        (f"s3://AKIA:12345678/{SECRET}@bucket/photos", "s3://bucket/photos"),
        (f"postgresql://mlflow:123/{SECRET}@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        (f"s3://AKIA:1/{SECRET}@bucket/photos", "s3://bucket/photos"),
        ("postgresql://db:5432/mlflow", "postgresql://db:5432/mlflow"),
        (f"http://{SECRET}@host:5000", "http://host:5000"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////tmp/me@home/mlflow.db", "sqlite:////tmp/me@home/mlflow.db"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("s3://bucket/12:30/a@b.jpg", "s3://bucket/12:30/a@b.jpg"),
        ("file:///photos/12:30/a@b.jpg", "file:///photos/12:30/a@b.jpg"),
        ("me@home/photos", "me@home/photos"),
    ],
)
def test_an_address_is_shown_without_user_and_password(
    address: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert shown_uri() == shown
    assert has_password(address) == (address != shown)
    assert without_secrets(f"API request to {address} failed") == f"API request to {shown} failed"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (
            f"https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKIA&X-Amz-Expires=60&X-Amz-Signature={SECRET}",
            "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=***&X-Amz-Expires=60&X-Amz-Signature=***",
        ),
        (
            f"https://a.blob.core.windows.net/c/a.jpg?sv=2024&sig={SECRET}",
            "https://a.blob.core.windows.net/c/a.jpg?sv=2024&sig=***",
        ),
        (f"https://host/a.jpg?token={SECRET}#b", "https://host/a.jpg?token=***#b"),
        (f"postgresql://db/mlflow?user=u&password={SECRET}", "postgresql://db/mlflow?user=u&password=***"),
        ("https://host/a.jpg?size=2&keyword=b", "https://host/a.jpg?size=2&keyword=b"),
        ("s3://bucket/a?key=1.jpg", "s3://bucket/a?key=1.jpg"),
        ("file:///photos/a?key=1.jpg", "file:///photos/a?key=1.jpg"),
        ("photos/a?key=1.jpg", "photos/a?key=1.jpg"),
    ],
)
def test_an_address_is_shown_without_its_signature(address: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert shown_uri() == shown
    assert without_secrets(f"cannot open '{address}': no") == f"cannot open '{shown}': no"
    assert masked(address) == shown


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL"])
def test_an_address_that_lost_its_scheme_is_shown_without_user_and_password(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (f"user:{SECRET}@host:5000", f"user:a@{SECRET}/b@host:5000"):
        monkeypatch.setenv(name, address)
        assert without_secrets(f"cannot open '{address}': no") == "cannot open 'host:5000': no"
    for address in ("file:/photos/me@home", "C:/me@home", "host:5000/a"):
        monkeypatch.setenv(name, address)
        assert without_secrets(f"cannot open {address}") == f"cannot open {address}"


@pytest.mark.parametrize(
    "message",
    ["http://host: who is me@home?", '{"uri": "http://host","path": "/a@b"}', '{"uri":"http://host","a":"/@b"}'],
)
def test_what_stands_beside_an_address_is_told(message: str) -> None:
    assert without_secrets(message) == message


def test_the_forms_of_flows_refuse_what_would_be_told() -> None:
    refused = re.compile(TypeAdapter(Place).json_schema()["not"]["pattern"])
    assert refused.search(f"s3://AKIA:ab/cd{SECRET}@bucket/photos")
    assert not refused.search("s3://bucket/12:30/a@b.jpg")


@pytest.mark.parametrize(
    "name",
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "FSSPEC_S3_KEY",
        "FSSPEC_S3_SECRET",
        "FSSPEC_S3_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "PGPASSWORD",
        "PREFECT_API_AUTH_STRING",
        "PREFECT_API_KEY",
        "RAY_AUTH_TOKEN",
    ],
)
def test_what_the_environment_holds_is_not_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert without_secrets(f"the key {SECRET} is bad") == "the key *** is bad"
    monkeypatch.setenv(name, f"{SECRET}\n")
    assert without_secrets(f"no header: 'Bearer {SECRET}\\n'") == r"no header: 'Bearer ***\n'"
