"""The data plane: each stage is a plain function over datasets that runs without Prefect.

`sources` and `archives` read annotated and bare photographs, `detection` finds faces, `checks` doubts annotations.
`dataset` → `training` → `evaluation` → `registry` and `promotion` make a champion, `annotation` uses it, `monitoring`
compares what it sees. Modules beside them are what several need; `retraining` and `report` join stations.
"""

import os

# MLflow reads some of these while it is imported, so they stand before any module of ours can import it.
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
# Of runs on a server it prints the addresses, in the midst of what a command gives to machines.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow's 7 hide a wrong address for minutes: they are for runs that nobody waits for (`prefect.yaml`).
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
# Models are small: they go through the server, so that whoever reaches it need not reach its storage.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
