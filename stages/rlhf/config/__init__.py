"""params.yaml, one schema file per section: a new parameter reruns only the stages that read it."""
