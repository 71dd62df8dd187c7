"""The reward model and the judge: training, calibration, best-of-n."""
