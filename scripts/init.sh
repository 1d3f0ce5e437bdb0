#!/usr/bin/env bash
# Installs what is missing and prints the versions in use. Nothing is compiled.
# Usage: scripts/init.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
use_python requirements.txt

python - <<'PY'
import platform
import sys

import torch
import torchvision

boxes = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]])
torchvision.ops.roi_align(torch.zeros(1, 1, 4, 4), boxes, 2)  # fails if torch and torchvision do not match
devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(f"python       {platform.python_version()} ({sys.executable})")
print(f"torch        {torch.__version__}")
print(f"torchvision  {torchvision.__version__}")
print(f"CUDA         {', '.join(devices) or 'no device: training and evaluation run on the CPU'}")
PY
