"""params.yaml, one schema file per section: a new knob reruns only the stages that read it."""
