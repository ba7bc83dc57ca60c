"""The vision tasks. Each folder is a task; the command line finds it by its entry point in ``polydit.tasks``."""
