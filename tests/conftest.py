"""Settings that must be made before torch and transformers are imported."""

import os

# No test asks a hub, whatever the environment of the developer says.
os.environ["HF_HUB_OFFLINE"] = "1"
# Some virtual machines announce AMX instructions that they do not have, and half precision on the CPU would crash.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
