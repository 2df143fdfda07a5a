"""The world that a simulated federation stands in: links, devices, time, energy."""
