"""Imported by every Python that a test starts (notebook kernels, killed trainings): they are offline too."""

from network_guard import forbid_network

forbid_network()
