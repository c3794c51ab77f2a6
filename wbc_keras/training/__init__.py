"""How a network is trained: data, devices, loop."""
