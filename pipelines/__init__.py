"""The data plane: each stage is a plain function over datasets that runs without Prefect."""
