"""What is kept for people: the ledger of trials, the Optuna study, MLflow, the importance of keys."""
