"""What MLflow knows of runs and models, who is champion, and the log of why."""
