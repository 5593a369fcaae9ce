"""Where instances come from and how they are reached: EC2, local processes, HAProxy, overlays."""
