import os

from tests.environment import be_nobodys


def test_no_test_reaches_what_is_a_persons() -> None:
    persons = {
        "AWS_PROFILE": "work",
        "COLUMNS": "40",
        "AWS_CONFIG_FILE": "/home/ann/.aws/config",
        "MLFLOW_TRACKING_URI": "https://mlflow.example",
        "MSRRN_METRICS_DIR": "/var/lib/node_exporter",
        "PREFECT_API_URL": "https://prefect.example/api",
        "RAY_ADDRESS": "ray.example:6379",
    }
    others = {"HOME": "/home/ann", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MSRRN_DATA": "/data"}
    environment = persons | others
    be_nobodys(environment)
    files = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "PREFECT_PROFILES_PATH")
    assert environment == others | dict.fromkeys(files, os.devnull)


def test_nothing_of_a_person_is_left_here() -> None:
    for name in ("MLFLOW_TRACKING_URI", "MSRRN_METRICS_DIR", "PREFECT_API_URL", "RAY_ADDRESS"):
        assert name not in os.environ
