"""Models: loading, adapters, batching, log-probabilities."""

import logging
import sys

# peft imports bitsandbytes where it is installed, and that, on a CPU with AVX512-BF16, asks the
# package kernels for compiled code of the hub, and complains where there is none. Not here.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
