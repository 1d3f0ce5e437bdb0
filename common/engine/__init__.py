"""How a run is run: training, evaluation, checkpoints. Knows a task only through the `Task` contract."""
