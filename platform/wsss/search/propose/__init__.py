"""Which trial comes next: samplers, and an inner search under every outer one."""
