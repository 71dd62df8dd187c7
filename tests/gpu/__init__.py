"""Tests marked `gpu`; on a machine without one: KOQA_TEST_DEVICE=cpu pytest -m gpu tests/gpu."""

import os

DEVICE = os.environ.get("KOQA_TEST_DEVICE", "cuda")
