"""What every script needs and a reader of the paper may skip: errors, flags, a run's folder, metrics, fast layers."""

import os

# Waiting threads sleep. OpenMP's default is to spin, and beside another process a step then takes 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
